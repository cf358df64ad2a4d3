"""The files of a manifest, fetched from storage by syscalls in the agent's name.

So the agent gets what it may read, and nothing else. First all is listed and counted, then read.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from aios_broker.contract.errors import InvalidSyscall, ModuleError, NotFound, WorkspaceLimit
from aios_broker.contract.storage import (
    Content,
    Entries,
    Entry,
    StorageList,
    StorageRead,
    StorageStat,
)
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.contract.workspace import MAX_BYTES, Manifest
from aios_workers.modules.tool.sessions.session_calls import Calls
from aios_workers.modules.tool.workspace.changes import KeptFile
from aios_workers.modules.tool.workspace.names import refusal_of_name
from aios_workers.modules.tool.workspace.patterns import (
    fixed_part,
    is_deep,
    is_wild,
    matches,
    normal_pattern,
)

SHARED = "shared"  # the folder in which files of other agents lie
MOST_LISTED = 20_000  # entries that are looked at for one manifest
PAGE = 1_000
READ_BYTES = 2 * 1024**2  # of one syscall
AT_ONCE = 8  # reads
FIELD = "body.workspace.files"
MOUNTED = "it lies in a mounted directory: write it there by storage.write"


Answer = TypeVar("Answer", Entry, Entries, Content)


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file that a manifest means, as it is listed."""

    entry: Entry
    owner: str | None  # None: the agent's own
    placed: KeptFile


@dataclass(slots=True)
class FileListing:
    """What a manifest means."""

    files: dict[str, WantedFile] = field(default_factory=dict)  # by their paths in the folder
    foreign: dict[str, str] = field(default_factory=dict)  # folders that commits leave alone: why


class Fetching:
    """Fetches for one syscall, which opens a session."""

    def __init__(self, calls: Calls, asked: Syscall, manifest: Manifest) -> None:
        self._calls = calls
        self._asked = asked
        self._manifest = manifest
        self._looked_at = 0

    async def listed(self, most_bytes: int) -> FileListing:
        """Return what the manifest means; `most_bytes`: that the session may have.

        Raises:
            WorkspaceLimit: It is more than there may be.
            NotFound: A pattern means nothing that the agent may read.
        """
        found = FileListing()
        for owner, patterns in self._wanted():
            for pattern in patterns:
                await self._add(found, owner, normal_pattern(pattern, FIELD))
        sizes = sum(one.entry.size_bytes for one in found.files.values())
        most = min(self._manifest.max_bytes, most_bytes)
        if sizes > most:
            raise self._limit(f"{sizes} bytes", f"{most}", "max_bytes")
        _refuse_clashes(found.files)
        return found

    def _wanted(self) -> Iterable[tuple[str | None, Iterable[str]]]:
        yield None, self._manifest.files
        for shared in self._manifest.shared:
            is_own = shared.owner == self._asked.agent
            yield None if is_own else shared.owner, shared.files

    async def _add(self, found: FileListing, owner: str | None, pattern: str) -> None:
        before = len(found.files)
        known = 0
        async for entry in self._entries(found, owner, pattern):
            if entry.kind == "file" and matches(pattern, entry.path):
                wanted = _wanted_file(entry, owner)
                other = found.files.setdefault(wanted.placed.path, wanted)
                known += other is not wanted
                if other.owner != owner:
                    raise _clash(wanted.placed.path, f"is both of {SHARED}/ and the agent's own")
                if len(found.files) > self._manifest.max_files:
                    count = f"more than {self._manifest.max_files} files"
                    raise self._limit(count, str(self._manifest.max_files), "max_files")
        if len(found.files) == before and not known:
            raise NotFound(
                f"no file of {owner or self._asked.agent} that may be read is meant by {pattern}",
                field=FIELD if owner is None else "body.workspace.shared",
                remedy="look at what is there: storage.list",
            )

    async def _entries(
        self, found: FileListing, owner: str | None, pattern: str
    ) -> AsyncIterator[Entry]:
        """Yield what lies where the pattern looks, mounted directories with what is in them."""
        start = fixed_part(pattern)
        if start != "/":
            at = await self._call(StorageStat(start, owner=owner), Entry)
            if at.kind == "file":
                if not is_wild(pattern):
                    yield at
                return
            if at.mounted:
                found.foreign[_in_folder(start, owner)] = MOUNTED
        waiting = [start]
        while waiting:
            directory = waiting.pop()
            async for entry in self._pages(owner, directory, recursive=is_deep(pattern)):
                yield entry
                is_mount = entry.kind == "directory" and entry.mounted
                if is_mount and not _is_below(entry.path, found.foreign, owner):
                    found.foreign[_in_folder(entry.path, owner)] = MOUNTED
                    if is_deep(pattern):
                        waiting.append(entry.path)

    async def _pages(
        self, owner: str | None, directory: str, *, recursive: bool
    ) -> AsyncIterator[Entry]:
        after: str | None = None
        while True:
            body = StorageList(directory, recursive, PAGE, after, owner=owner)
            page = await self._call(body, Entries)
            self._looked_at += len(page.entries)
            if self._looked_at > MOST_LISTED:
                raise WorkspaceLimit(
                    f"the manifest's patterns look at more than {MOST_LISTED} files",
                    field=FIELD,
                    remedy="begin them with a directory: notes/**/*.md",
                )
            for entry in page.entries:
                yield entry
            if not page.more:
                return
            after = page.entries[-1].path

    async def read(
        self, listed: FileListing, put: Callable[[KeptFile, bytes], object]
    ) -> dict[str, KeptFile]:
        """Read all files, and give each to `put`, which blocks; return them as they are placed."""
        placed: dict[str, KeptFile] = {}
        left = self._manifest.max_bytes
        files = list(listed.files.values())
        for at in range(0, len(files), AT_ONCE):
            part = files[at : at + AT_ONCE]
            contents = await asyncio.gather(*map(self._content, part))
            for wanted, content in zip(part, contents, strict=True):
                left -= len(content)
                if left < 0:  # what is mounted may have grown
                    most = self._manifest.max_bytes
                    raise self._limit(f"more than {most} bytes", str(most), "max_bytes")
                one = _as_read(wanted, content)
                await asyncio.to_thread(put, one, content)
                placed[one.path] = one
        return placed

    async def content_of(self, entry: Entry) -> bytes:
        """Return a version of a file of the agent's own."""
        return await self._content(_wanted_file(entry, None))

    async def _content(self, wanted: WantedFile) -> bytes:
        entry = wanted.entry
        version = None if entry.mounted else entry.version
        parts: list[bytes] = []
        offset = 0
        while True:
            body = StorageRead(entry.path, version, offset, READ_BYTES, owner=wanted.owner)
            part = await self._call(body, Content)
            parts.append(part.data)
            offset += len(parts[-1])
            if part.end or not parts[-1] or offset > MAX_BYTES:
                return b"".join(parts)

    async def _call(self, body: Body, kind: type[Answer]) -> Answer:
        result = await self._calls.call(self._asked, body, "workspace")
        if not isinstance(result, kind):
            raise ModuleError(f"storage answered with {type(result).__name__}")
        return result

    def _limit(self, has: str, most: str, name: str) -> WorkspaceLimit:
        return WorkspaceLimit(
            f"the manifest means {has}; there may be {most}",
            field=f"body.workspace.{name}",
            remedy="name fewer files, or allow more (max_files, max_bytes, limits.file_bytes)",
        )


def _wanted_file(entry: Entry, owner: str | None) -> WantedFile:
    why = MOUNTED if entry.mounted else ""
    if owner is not None:
        why = f"it is {owner}'s: a commit changes this agent's own files alone"
    path = _in_folder(entry.path, owner)
    placed = KeptFile(path, entry.version, entry.size_bytes, entry.sha256, why)
    return WantedFile(entry, owner, placed)


def _as_read(wanted: WantedFile, content: bytes) -> KeptFile:
    """Return a file with the digest of what was read; of a version it is the one that was listed.

    Raises:
        ModuleError: It is not: storage is damaged.
    """
    placed, sha256 = wanted.placed, hashlib.sha256(content).hexdigest()
    if placed.sha256 and placed.sha256 != sha256:
        raise ModuleError(f"what storage has of {wanted.entry.path} is not what was written")
    return KeptFile(placed.path, placed.version, len(content), sha256, placed.foreign)


def _in_folder(path: str, owner: str | None) -> str:
    """Return where a path of a namespace lies in the folder."""
    return path.strip("/") if owner is None else f"{SHARED}/{owner}{path}".rstrip("/")


def _is_below(path: str, foreign: Iterable[str], owner: str | None) -> bool:
    folder = _in_folder(path, owner)
    return any(folder == each or folder.startswith(f"{each}/") for each in foreign)


def _refuse_clashes(files: Iterable[str]) -> None:
    """Refuse two that cannot lie in one folder.

    Raises:
        InvalidSyscall: One would be a file and the folder of another.
    """
    paths = set(files)
    for path in paths:
        if why := refusal_of_name(path):
            raise _clash(path, f"cannot lie in a folder: {why}")
        parts = path.split("/")
        for count in range(1, len(parts)):
            if (above := "/".join(parts[:count])) in paths:
                raise _clash(above, f"would be a file, and a folder with {path} in it")


def _clash(path: str, what: str) -> InvalidSyscall:
    remedy = f"leave one out; files of other agents lie below {SHARED}/"
    return InvalidSyscall(f"{path} {what}", field=FIELD, remedy=remedy)
