"""What an agent may ask of the storage module, and what comes back: files with versions.

A path starts at the root of the agent's namespace: `notes/today.md`, `/notes/today.md` is the same.
`owner` names another agent whose namespace it is; without it the agent's own is meant.
Content is text, or bytes in base64; what is not UTF-8 comes back as base64, unchanged.
"""

import base64
from typing import Annotated, Literal

from msgspec import Meta, Struct

from aios_broker.contract.names import (
    AgentName,
    GrantVerbs,
    GroupName,
    K,
    Name,
    Query,
    Request,
    Row,
    SearchMode,
    Text,
    Ttl,
    refuse_blank,
)

MAX_FILE_BYTES = 64 * 1024 * 1024  # appended to piece by piece; one syscall carries 4 MiB
MAX_PATH_CHARACTERS = 1_024
MAX_NAME_BYTES = 255  # of one part of a path
MAX_CHANGES = 200  # of files, in one `storage.apply`

Path = Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARACTERS)]
Version = Annotated[int, Meta(ge=1)]
Encoding = Literal["utf-8", "base64"]
GroupBy = Literal["file", "directory"]
UnixTime = Annotated[float, Meta(ge=0.0)]


class Owned(Request, frozen=True, kw_only=True):
    """What may be in another agent's namespace; None: in the agent's own."""

    owner: AgentName | None = None


class OfPath(Owned, frozen=True):
    """What is asked of one file or directory."""

    path: Path


class StorageCreate(OfPath, frozen=True, tag="storage.create"):
    """Make a new file; `already-exists` where there is one. Its directories are made."""

    content: Text = ""
    encoding: Encoding = "utf-8"


class StorageRead(OfPath, frozen=True, tag="storage.read"):
    """Return a file's content, or a part of it."""

    version: Version | None = None  # None: the newest
    offset: Annotated[int, Meta(ge=0)] = 0  # in bytes
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)] = 4 * 1024 * 1024


class StorageWrite(OfPath, frozen=True, tag="storage.write"):
    """Replace a file's content (class `overwrite`), or make the file. The old version is kept."""

    content: Text
    encoding: Encoding = "utf-8"
    if_version: Annotated[int, Meta(ge=0)] | None = None  # 0: only if there is none


class StorageAppend(OfPath, frozen=True, tag="storage.append"):
    """Add to the end of a file, or make the file."""

    content: Text
    encoding: Encoding = "utf-8"
    if_version: Annotated[int, Meta(ge=0)] | None = None  # 0: only if there is none


class FileChange(Request, frozen=True):
    """One change of several: what a file holds from now on, or that it goes (no `content`)."""

    path: Path
    content: Text | None = None
    encoding: Encoding = "utf-8"
    if_version: Annotated[int, Meta(ge=0)] | None = None  # 0: only if there is none
    if_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None  # of what is there


class StorageApply(Owned, frozen=True, tag="storage.apply"):
    """Write and delete several files (classes `overwrite`, `delete`): all of it, or nothing.

    One approval is for all of it. What lies in mounted directories is not changed so.
    """

    changes: Annotated[Row[FileChange], Meta(min_length=1, max_length=MAX_CHANGES)]


class StorageList(Owned, frozen=True, tag="storage.list"):
    """List what is in a directory, by name."""

    path: Path = "/"
    recursive: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    after: Path | None = None  # the last one of the page before


class StorageStat(OfPath, frozen=True, tag="storage.stat"):
    """Return what is known of a file or a directory."""


class StorageMove(OfPath, frozen=True, tag="storage.move"):
    """Move or rename a file or a directory.

    Over a file, or into `/scratch`: class `delete`; out of a shared directory: class `unshare`.
    """

    to: Path
    overwrite: bool = False


class StorageCopy(OfPath, frozen=True, tag="storage.copy"):
    """Copy a file or a directory, without its history. `owner`: of the source."""

    to: Path
    overwrite: bool = False


class StorageDelete(OfPath, frozen=True, tag="storage.delete"):
    """Delete a file with its versions, or a directory (class `delete`)."""

    recursive: bool = False  # needed where a directory is not empty


class StorageMkdir(OfPath, frozen=True, tag="storage.mkdir"):
    """Make a directory and those above it; one that is there is left alone."""


class StorageMount(Request, frozen=True, tag="storage.mount"):
    """Show a real directory of the worker's host at a path of the agent's namespace.

    Only directories below those that the operator lets this agent mount (`AIOS_STORAGE_MOUNTS`).
    Writable: class `privilege`. Searchable: the texts of its files are kept in Postgres, and read
    anew a moment after they have changed.
    """

    path: Path
    source: Path  # an absolute path on the worker's host
    writable: bool = False
    searchable: bool = False


class StorageUnmount(Request, frozen=True, tag="storage.unmount"):
    """Take a mounted directory out of the namespace; the real one is left alone."""

    path: Path


class StorageSearch(Owned, frozen=True, tag="storage.search"):
    """Find files by the meaning of their parts, by words, or by both, best first."""

    query: Query
    k: K = 10
    mode: SearchMode = "hybrid"
    path: Path = "/"  # only below it
    group_by: GroupBy = "file"
    shared: bool = False  # own ones and all that others granted `search` on

    def __post_init__(self) -> None:
        """Refuse a blank query."""
        refuse_blank(self.query)


class StorageVersions(OfPath, frozen=True, tag="storage.versions"):
    """List the versions of a file, newest first."""

    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100


class StorageDiff(OfPath, frozen=True, tag="storage.diff"):
    """Return what changed between two versions of a text file, as a unified diff."""

    a: Version
    b: Version | None = None  # None: the newest


class StorageRollback(OfPath, frozen=True, tag="storage.rollback"):
    """Make an older version the newest one (class `rollback`): by number, or as it was at a time.

    Exactly one of the two is given.
    """

    version: Version | None = None
    at: UnixTime | None = None  # s


class StorageShare(Request, frozen=True, tag="storage.share"):
    """Grant verbs on a file or a directory, or make a link that reads it.

    Exactly one of group, agent and link. A link expires, and is served by this kernel alone.
    """

    path: Path
    group: GroupName | None = None
    agent: AgentName | None = None
    link: bool = False
    verbs: GrantVerbs = ("read", "search")
    ttl_s: Ttl | None = None  # of a link: a day unless set


class StorageUnshare(Request, frozen=True, tag="storage.unshare"):
    """Take grants and links back (class `unshare`); neither group nor agent: all of them."""

    path: Path
    group: GroupName | None = None
    agent: AgentName | None = None


class StorageOpen(Request, frozen=True, tag="storage.open"):
    """Read the file that a link points to."""

    link: Annotated[str, Meta(min_length=16, max_length=256)]


class StorageLock(OfPath, frozen=True, tag="storage.lock"):
    """Keep others from changing a file until `ttl_s` is over; again: for longer."""

    ttl_s: Annotated[float, Meta(gt=0.0, le=86_400.0)] = 60.0


class StorageUnlock(OfPath, frozen=True, tag="storage.unlock"):
    """Let others change it again; a file's owner also where another agent has locked it."""


class StorageOperate(Request, frozen=True, tag="storage.operate"):
    """Do with files what a sentence says: a model plans, the kernel checks and runs the plan.

    Steps that cannot be taken back wait for a person, with the whole plan shown.
    """

    instruction: Annotated[str, Meta(min_length=1, max_length=8_192)]
    dry_run: bool = False  # return the plan and do nothing
    core: Name | None = None


StorageBody = (
    StorageCreate
    | StorageRead
    | StorageWrite
    | StorageAppend
    | StorageApply
    | StorageList
    | StorageStat
    | StorageMove
    | StorageCopy
    | StorageDelete
    | StorageMkdir
    | StorageMount
    | StorageUnmount
    | StorageSearch
    | StorageVersions
    | StorageDiff
    | StorageRollback
    | StorageShare
    | StorageUnshare
    | StorageOpen
    | StorageLock
    | StorageUnlock
    | StorageOperate
)


class Entry(Struct, frozen=True, omit_defaults=True, tag="storage.entry"):
    """A file or a directory; a directory has no version, and no size."""

    path: str
    kind: Literal["file", "directory"]
    owner: str
    version: int = 0
    size_bytes: int = 0
    sha256: str = ""
    created_at: float = 0.0  # Unix time, s
    updated_at: float = 0.0
    locked_by: str = ""
    locked_until: float | None = None
    mounted: bool = False
    unindexed_parts: int = 0  # of what `storage.stat` names and all below: not found by meaning yet


class Entries(Struct, frozen=True, omit_defaults=True, tag="storage.entries"):
    """What a directory holds, by path; `more`: there are further ones after the last."""

    entries: tuple[Entry, ...]
    more: bool = False


class Content(Struct, frozen=True, omit_defaults=True, tag="storage.content"):
    """A file's content from `offset` on; `end` is false where there is more of it."""

    path: str
    version: int
    content: str
    encoding: Encoding
    size_bytes: int  # of the whole file
    offset: int = 0
    end: bool = True

    @property
    def data(self) -> bytes:
        """The content as bytes, whatever it is."""
        if self.encoding == "base64":
            return base64.b64decode(self.content)
        return self.content.encode()


class Found(Struct, frozen=True, omit_defaults=True):
    """One hit: a file or a directory, and the part of it that fits best."""

    path: str
    owner: str
    score: float
    text: str
    version: int = 0
    offset: int = 0  # of the text, in characters


class FoundFiles(Struct, frozen=True, omit_defaults=True, tag="storage.found"):
    """Hits, best first, at most k.

    `unindexed`: so many parts of the files that were searched, up to 1,000, are not found by
    meaning yet.
    """

    hits: tuple[Found, ...]
    unindexed: int = 0


class FileVersion(Struct, frozen=True, omit_defaults=True):
    """One version in a file's history."""

    version: int
    at: float  # Unix time, s
    by: str
    operation: str
    size_bytes: int
    sha256: str
    syscall_id: str


class FileVersions(Struct, frozen=True, omit_defaults=True, tag="storage.versions"):
    """The versions of a file, newest first."""

    versions: tuple[FileVersion, ...]


class Diff(Struct, frozen=True, omit_defaults=True, tag="storage.diff"):
    """A unified diff; empty: both versions are the same."""

    path: str
    a: int
    b: int
    diff: str


class ShareLink(Struct, frozen=True, omit_defaults=True, tag="storage.link"):
    """A link to a file; whoever has it may read the file until it expires."""

    path: str
    link: str
    expires_at: float  # Unix time, s


class Step(Struct, frozen=True, omit_defaults=True):
    """One step of a plan: a storage syscall, and what came of it."""

    kind: str
    arguments: dict[str, object]
    outcome: str = ""  # empty: it was not run


class Plan(Struct, frozen=True, omit_defaults=True, tag="storage.plan"):
    """A plan, step by step, and whether it was run."""

    instruction: str
    steps: tuple[Step, ...]
    done: bool
    model: str = ""


StorageResult = Entry | Entries | Content | FoundFiles | FileVersions | Diff | ShareLink | Plan
