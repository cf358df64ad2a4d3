"""What comes back from the storage module: entries, content, hits, versions, plans."""

import base64
from typing import Literal

from msgspec import Struct

from aios_broker.contract.storage import Encoding


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
    """Hits, best first, at most k."""

    hits: tuple[Found, ...]


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
