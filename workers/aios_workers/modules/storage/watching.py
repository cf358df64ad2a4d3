"""The duty that reads what lies in searchable mounts, and again what has changed.

Each look walks a mounted directory and compares sizes and times with those of the last reading.
Of a file that changes while it is read the older time is kept: the next look reads it again. A
directory that is not there (another host's, a share that is away) keeps what was read of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aios_broker.contract.errors import InvalidPath, NotFound
from aios_broker.periodic import periodic_task
from aios_broker.postgres.session import Cursor, Store, only_row
from aios_workers.modules.storage.contents import text_of
from aios_workers.modules.storage.cutting import Part, parts_of
from aios_workers.modules.storage.host import (
    MAX_ENTRIES,
    AllowedDirectories,
    HostDirectory,
    HostEntry,
)

logger = logging.getLogger(__name__)

PAUSE_S = 2.0  # between looks at all mounts, at least
PAUSE_FACTOR = 20  # a look that takes long is followed by so much longer a pause
FILES_AT_ONCE = 50  # of one mount that one look reads
MAX_FILE_BYTES = 1024 * 1024  # a larger one is not searched
MAX_MOUNT_BYTES = 64 * 1024 * 1024  # of one mount, by path; what comes after is not searched

_MOUNTS = "SELECT id, owner_id, source FROM mount WHERE searchable ORDER BY id"
_KNOWN = "SELECT id, inner_path, size_bytes, changed_at FROM mount_file WHERE mount_id = %s"
_LOCK = "SELECT id FROM mount WHERE id = %s FOR UPDATE"  # one writer; none once it is unmounted
_PUT_FILE = """
    INSERT INTO mount_file AS f (mount_id, owner_id, inner_path, size_bytes, changed_at)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (mount_id, inner_path) DO UPDATE
       SET size_bytes = excluded.size_bytes, changed_at = excluded.changed_at,
           version = f.version + 1
    RETURNING id, version
"""
_DROP_PARTS = "DELETE FROM mount_chunk WHERE file_id = %s"
_PUT_PARTS = """
    INSERT INTO mount_chunk (file_id, ordinal, owner_id, version, start, text, words)
    SELECT %(file)s, p.ordinal - 1, %(owner)s, %(version)s, p.start, p.text,
           to_tsvector('english', p.text)
      FROM unnest(%(starts)s::int[], %(texts)s::text[]) WITH ORDINALITY AS p(start, text, ordinal)
"""
_FORGET = "DELETE FROM mount_file WHERE id = ANY(%s)"


@dataclass(frozen=True, slots=True)
class Reading:
    """A file as the walk saw it, and the parts of its text; none of what is no text."""

    entry: HostEntry
    parts: Sequence[Part]


class MountWatch:
    """Keeps what search knows of mounted directories as the host has it."""

    def __init__(self, store: Store, allowed: AllowedDirectories) -> None:
        self._store = store
        self._allowed = allowed

    async def look(self) -> int:
        """Look at all searchable mounts once; return how many files were read or forgotten."""
        async with self._store.as_steward() as cursor:
            await cursor.execute(_MOUNTS)
            mounts = await cursor.fetchall()
        return sum([await self._look_at(mount) for mount in mounts])

    async def _look_at(self, mount: Any) -> int:  # noqa: ANN401  a row
        host = HostDirectory(self._allowed, mount.source)
        try:
            entries = await asyncio.to_thread(host.entries, "", recursive=True)
        except (NotFound, InvalidPath):
            return 0
        async with self._store.as_steward() as cursor:
            await cursor.execute(_KNOWN, (mount.id,))
            known = {row.inner_path: row for row in await cursor.fetchall()}
        wanted = searched(entries)
        is_whole = len(entries) < MAX_ENTRIES  # else what was not walked is not gone
        gone = [row.id for path, row in known.items() if is_whole and path not in wanted]
        changed = [entry for path, entry in wanted.items() if is_changed(known.get(path), entry)]
        readings = await asyncio.to_thread(
            lambda: [read_parts(host, entry) for entry in changed[:FILES_AT_ONCE]]
        )
        if readings or gone:
            await self._write(mount, readings, gone)
        return len(readings) + len(gone)

    async def _write(self, mount: Any, readings: Sequence[Reading], gone: list[int]) -> None:  # noqa: ANN401
        async with self._store.as_steward() as cursor:
            await cursor.execute(_LOCK, (mount.id,))
            if await cursor.fetchone() is None:
                return
            await cursor.execute(_FORGET, (gone,))
            for reading in readings:
                await _put(cursor, mount, reading)


def searched(entries: Sequence[HostEntry]) -> Mapping[str, HostEntry]:
    """Return which of the entries are searched, by their paths."""
    found: dict[str, HostEntry] = {}
    room = MAX_MOUNT_BYTES
    for entry in sorted(entries, key=lambda entry: entry.inner):
        if not entry.is_directory and entry.size_bytes <= min(MAX_FILE_BYTES, room):
            found[entry.inner] = entry
            room -= entry.size_bytes
    return found


def is_changed(known: Any, entry: HostEntry) -> bool:  # noqa: ANN401  a row, or None
    """Whether a file is to be read."""
    seen = (entry.size_bytes, entry.changed_at)
    return known is None or (known.size_bytes, known.changed_at) != seen


def read_parts(host: HostDirectory, entry: HostEntry) -> Reading:
    """Read a file; one that cannot be read now has no parts until it changes."""
    try:
        content, _ = host.read(entry.inner, 0, MAX_FILE_BYTES)
    except (NotFound, OSError) as error:
        logger.warning("a mounted file is not searched: %s: %s", entry.inner, error)
        return Reading(entry, ())
    text = text_of(content)
    return Reading(entry, parts_of(text) if text else ())


async def _put(cursor: Cursor, mount: Any, reading: Reading) -> None:  # noqa: ANN401  a row
    entry = reading.entry
    await cursor.execute(
        _PUT_FILE,
        (mount.id, mount.owner_id, entry.inner, entry.size_bytes, entry.changed_at),
    )
    file = await only_row(cursor)
    await cursor.execute(_DROP_PARTS, (file.id,))
    await cursor.execute(
        _PUT_PARTS,
        {
            "file": file.id,
            "owner": mount.owner_id,
            "version": file.version,
            "starts": [part.start for part in reading.parts],
            "texts": [part.text for part in reading.parts],
        },
    )


@asynccontextmanager
async def watching(watch: MountWatch, unembedded: asyncio.Event) -> AsyncIterator[None]:
    """Look again and again for as long as the context is open."""

    async def step() -> float:
        began_s = time.monotonic()
        if await watch.look():
            unembedded.set()
            return 0.0
        return max(PAUSE_S, PAUSE_FACTOR * (time.monotonic() - began_s))

    async with periodic_task("mounts", step, "mounted directories wait to be read"):
        yield
