"""Files of an agent's storage, laid where a call of a tool finds them.

A tool says in `files` which it reads, by its arguments. They are read by syscalls in the name of
the agent whose call it is: what it may not read its tool does not see. The tool gets copies.
"""

import asyncio
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from pathlib import Path
from typing import Any

from aios_broker.contract.errors import KernelError, NotFound, ToolFailed, ToolLimit
from aios_broker.contract.storage import (
    Content,
    Entries,
    Entry,
    StorageList,
    StorageRead,
    StorageStat,
)
from aios_broker.contract.syscall import Syscall
from aios_broker.contract.tools import ToolCard
from aios_workers.modules.tool.sessions.session_calls import Calls

MOST_FILES = 2_000  # of one call
MOST_BYTES = 32 * 1024 * 1024  # of all of them together
MOST_LAID_BYTES = 2 * MOST_BYTES  # as they lie on a file system, each in whole pages
AT_ONCE = 8  # reads
CHUNK_BYTES = 2 * 1024 * 1024  # of one read: in base64 it is a third more
PAGE = 1_000
_PLACE = re.compile(r"\{([^{}]*)\}")


class StoredFiles:
    """Reads the files that tools ask for."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def lay(
        self, syscall: Syscall, card: ToolCard, arguments: Mapping[str, Any]
    ) -> Callable[[Path], Awaitable[None]] | None:
        """Return what lays the files of a call into a folder; None: it asks for none."""
        wanted = list(wanted_files(card, arguments))
        return partial(self._lay, syscall, wanted) if wanted else None

    async def _lay(self, syscall: Syscall, wanted: Sequence[tuple[str, str]], folder: Path) -> None:
        files: dict[str, Entry] = {}
        for argument, path in wanted:
            try:
                files |= {entry.path: entry async for entry in self._found(syscall, path)}
                _check_room(files.values())
            except KernelError as error:
                field = f"body.arguments.{argument}" if argument else "files"
                raise type(error)(error.message, field=field, remedy=error.remedy) from error
        entries = list(files.values())
        for at in range(0, len(entries), AT_ONCE):
            some = entries[at : at + AT_ONCE]
            await asyncio.gather(*(self._copy(syscall, one, folder) for one in some))

    async def _found(self, syscall: Syscall, path: str) -> AsyncIterator[Entry]:
        """Yield the files at a path: itself, or all below it."""
        try:
            entry = await self._calls.call(syscall, StorageStat(path), "files")
        except NotFound:
            if not path.strip("/"):
                return  # the agent has no file yet
            raise
        assert isinstance(entry, Entry)
        if entry.kind == "file":
            yield entry
            return
        after: str | None = None
        for _ in range(2 * MOST_FILES // PAGE + 1):  # directories stand among them
            asked = StorageList(path, recursive=True, limit=PAGE, after=after)
            page = await self._calls.call(syscall, asked, "files")
            assert isinstance(page, Entries)
            for each in page.entries:
                if each.kind == "file":
                    yield each
            if not page.more or not page.entries:
                return
            after = page.entries[-1].path
        raise _too_many()

    async def _copy(self, syscall: Syscall, entry: Entry, folder: Path) -> None:
        place = folder.joinpath(*_parts(entry.path))
        data = bytearray()
        version = entry.version or None  # what is mounted has none
        while True:
            asked = StorageRead(entry.path, version, offset=len(data), max_bytes=CHUNK_BYTES)
            part = await self._calls.call(syscall, asked, "files")
            assert isinstance(part, Content)
            data += part.data
            if part.end or not part.data:
                break
            if len(data) > MOST_BYTES:  # a mounted one that grows
                raise _too_large(len(data))
        await asyncio.to_thread(_write, place, bytes(data))


def wanted_files(card: ToolCard, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the paths that a call asks for, each with the argument that names it, if one does."""
    known = card.parameters.get("properties", {})

    def value(name: str) -> object:
        return arguments.get(name, known.get(name, {}).get("default"))

    for template in card.files:
        whole = _PLACE.fullmatch(template)
        if whole is not None:  # the argument may be a list
            given = value(whole[1])
            paths = given if isinstance(given, list) else [given]
            yield from ((whole[1], path) for path in paths if isinstance(path, str) and path)
            continue
        names = _PLACE.findall(template)
        values = {name: value(name) for name in names}
        if all(isinstance(each, str) and each for each in values.values()):
            path = _PLACE.sub(lambda found: str(values[found[1]]), template)  # noqa: B023
            yield (names[0] if names else "", path)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ToolFailed(f"storage names {path!r}", remedy="this is a fault of the kernel")
    return parts


def _write(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def _check_room(files: Iterable[Entry]) -> None:
    entries = list(files)
    if len(entries) > MOST_FILES:
        raise _too_many()
    size = sum(entry.size_bytes for entry in entries)
    if size > MOST_BYTES:
        raise _too_large(size)


def _too_many() -> ToolLimit:
    return ToolLimit(
        f"there are more than {MOST_FILES} files: a call reads so many at most",
        remedy="name a directory with fewer, or a file",
    )


def _too_large(size: int) -> ToolLimit:
    return ToolLimit(
        f"the files have {size} bytes: a call reads {MOST_BYTES} at most",
        remedy="name a directory with less, or a file",
    )
