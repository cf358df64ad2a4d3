"""What an agent may ask of the storage module: files with versions in a namespace of its own.

A path starts at the root of the agent's namespace: `notes/today.md`, `/notes/today.md` is the same.
`owner` names another agent whose namespace it is; without it the agent's own is meant.
Content is text, or bytes in base64; what is not UTF-8 comes back as base64, unchanged.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from aios_broker.contract.names import (
    AgentName,
    GrantVerbs,
    GroupName,
    K,
    Name,
    Query,
    SearchMode,
    Text,
    Ttl,
)

MAX_FILE_BYTES = 64 * 1024 * 1024  # appended to piece by piece; one syscall carries 4 MiB
MAX_PATH_CHARACTERS = 1_024
MAX_NAME_BYTES = 255  # of one part of a path

Path = Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARACTERS)]
Version = Annotated[int, Meta(ge=1)]
Encoding = Literal["utf-8", "base64"]
GroupBy = Literal["file", "directory"]
UnixTime = Annotated[float, Meta(ge=0.0)]


class StorageCreate(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.create"
):
    """Make a new file; `already-exists` where there is one. Its directories are made."""

    path: Path
    content: Text = ""
    encoding: Encoding = "utf-8"
    owner: AgentName | None = None


class StorageRead(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.read"
):
    """Return a file's content, or a part of it."""

    path: Path
    version: Version | None = None  # None: the newest
    offset: Annotated[int, Meta(ge=0)] = 0  # in bytes
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)] = 4 * 1024 * 1024
    owner: AgentName | None = None


class StorageWrite(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.write"
):
    """Replace a file's content (class `overwrite`), or make the file. The old version is kept."""

    path: Path
    content: Text
    encoding: Encoding = "utf-8"
    if_version: Annotated[int, Meta(ge=0)] | None = None  # 0: only if there is none
    owner: AgentName | None = None


class StorageAppend(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.append"
):
    """Add to the end of a file, or make the file."""

    path: Path
    content: Text
    encoding: Encoding = "utf-8"
    owner: AgentName | None = None


class StorageList(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.list"
):
    """List what is in a directory, by name."""

    path: Path = "/"
    recursive: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    after: Path | None = None  # the last one of the page before
    owner: AgentName | None = None


class StorageStat(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.stat"
):
    """Return what is known of a file or a directory."""

    path: Path
    owner: AgentName | None = None


class StorageMove(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.move"
):
    """Move or rename a file or a directory. Over a file that is there: class `overwrite`."""

    path: Path
    to: Path
    overwrite: bool = False
    owner: AgentName | None = None


class StorageCopy(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.copy"
):
    """Copy a file or a directory, without its history."""

    path: Path
    to: Path
    overwrite: bool = False
    owner: AgentName | None = None  # of the source; the copy is the agent's


class StorageDelete(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.delete"
):
    """Delete a file with its versions, or a directory (class `delete`)."""

    path: Path
    recursive: bool = False  # needed where a directory is not empty
    owner: AgentName | None = None


class StorageMkdir(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.mkdir"
):
    """Make a directory and those above it; one that is there is left alone."""

    path: Path
    owner: AgentName | None = None


class StorageMount(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.mount"
):
    """Show a real directory of the worker's host at a path of the agent's namespace.

    Only directories below those that the operator allowed (`AIOS_STORAGE_MOUNTS`). Searchable: the
    texts of its files are kept in Postgres, and read anew a moment after they have changed.
    """

    path: Path
    source: Path  # an absolute path on the worker's host
    writable: bool = False
    searchable: bool = False


class StorageUnmount(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.unmount"
):
    """Take a mounted directory out of the namespace; the real one is left alone."""

    path: Path


class StorageSearch(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.search"
):
    """Find files by the meaning of their parts, by words, or by both, best first."""

    query: Query
    k: K = 10
    mode: SearchMode = "hybrid"
    path: Path = "/"  # only below it
    group_by: GroupBy = "file"
    owner: AgentName | None = None
    shared: bool = False  # own ones and all that others granted `search` on


class StorageVersions(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.versions"
):
    """List the versions of a file, newest first."""

    path: Path
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100
    owner: AgentName | None = None


class StorageDiff(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.diff"
):
    """Return what changed between two versions of a text file, as a unified diff."""

    path: Path
    a: Version
    b: Version | None = None  # None: the newest
    owner: AgentName | None = None


class StorageRollback(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.rollback"
):
    """Make an older version the newest one (class `rollback`): by number, or as it was at a time.

    Exactly one of the two is given.
    """

    path: Path
    version: Version | None = None
    at: UnixTime | None = None  # s
    owner: AgentName | None = None


class StorageShare(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.share"
):
    """Grant verbs on a file or a directory, or make a link that reads it.

    Exactly one of group, agent and link. A link expires, and is served by this kernel alone.
    """

    path: Path
    group: GroupName | None = None
    agent: AgentName | None = None
    link: bool = False
    verbs: GrantVerbs = ("read", "search")
    ttl_s: Ttl | None = None  # of a link: a day unless set


class StorageUnshare(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.unshare"
):
    """Take grants and links back (class `unshare`); neither group nor agent: all of them."""

    path: Path
    group: GroupName | None = None
    agent: AgentName | None = None


class StorageOpen(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.open"
):
    """Read the file that a link points to."""

    link: Annotated[str, Meta(min_length=16, max_length=256)]


class StorageLock(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.lock"
):
    """Keep others from changing a file until `ttl_s` is over; again: for longer."""

    path: Path
    ttl_s: Annotated[float, Meta(gt=0.0, le=86_400.0)] = 60.0
    owner: AgentName | None = None


class StorageUnlock(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.unlock"
):
    """Let others change it again."""

    path: Path
    owner: AgentName | None = None


class StorageOperate(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="storage.operate"
):
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
