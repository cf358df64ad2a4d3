"""Mounted directories: they are what the host has at that moment; no versions, locks or shares.

What lies in searchable ones is read again and again. Each scan walks a mounted directory and
compares sizes and times with those of the last reading. Of a file that changes while it is read the
older time is kept: the next scan reads it again. A directory that is not there (another host's, a
share that is away) keeps what was read of it.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aios_broker.contract.access import Acknowledged, size_words
from aios_broker.contract.errors import InvalidPath, NotFound
from aios_broker.contract.paths import ROOT, below, normal_path
from aios_broker.contract.storage import (
    MAX_FILE_BYTES as LARGEST_FILE_BYTES,
)
from aios_broker.contract.storage import (
    Content,
    Entries,
    Entry,
    StorageList,
    StorageMount,
    StorageRead,
    StorageUnmount,
)
from aios_broker.postgres.store import Cursor, Store, only_row
from aios_workers.approvals.irreversible import Irreversible, Seen
from aios_workers.modules.storage.contents import (
    Part,
    check_size,
    digest_of,
    parts_of,
    shown,
    text_of,
)
from aios_workers.modules.storage.host import (
    MAX_ENTRIES,
    AllowedDirectories,
    HostDirectory,
    HostEntry,
    MountSetting,
)
from aios_workers.modules.storage.namespace import (
    AnyWork,
    FileWork,
    ResolvedPath,
    check_free_way,
    look_up,
    taken,
    unversioned,
)

logger = logging.getLogger(__name__)

PAUSE_S = 2.0  # between scans of all mounts, at least
PAUSE_FACTOR = 20  # a scan that takes long is followed by so much longer a pause
FILES_AT_ONCE = 50  # of one mount that one scan reads
MAX_FILE_BYTES = 1024 * 1024  # a larger one is not searched
MAX_MOUNT_BYTES = 64 * 1024 * 1024  # of one mount, by path; what comes after is not searched

_MOUNTS = """
    SELECT m.id, m.owner_id, m.source, a.name AS agent, t.name AS tenant FROM mount m
      JOIN agent a ON a.id = m.owner_id JOIN tenant t ON t.id = a.tenant_id
     WHERE m.searchable ORDER BY m.id
"""
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
_INSERT = """
    INSERT INTO mount (owner_id, path, source, writable, searchable)
    VALUES (%(owner)s, %(path)s, %(source)s, %(writable)s, %(searchable)s) RETURNING id
"""
_UNMOUNT = "DELETE FROM mount WHERE owner_id = %(owner)s AND path = %(path)s RETURNING id"


async def mount(work: FileWork[StorageMount]) -> Entry:
    """Show a real directory at a free path of the agent's namespace.

    A person is asked for one that may be changed: what is there has no versions.
    """
    body, allowed = work.body, allowed_directories(work)
    source = await asyncio.to_thread(allowed.where, body.source)
    resolved = await look_up(work, body.path)
    check_free_way(resolved)
    if not resolved.is_free:
        raise taken(resolved)
    if body.writable:
        what = f"mount {source} of the host at {resolved.path}, to be changed there"
        seen = Seen("mount", f"{source} at {resolved.path}")
        await work.take(Irreversible("privilege", what, (seen,)))
    await work.rows(
        _INSERT,
        {
            "owner": work.owner.id,
            "path": resolved.path,
            "source": source,
            "writable": body.writable,
            "searchable": body.searchable,
        },
    )
    entry = await asyncio.to_thread(HostDirectory(allowed, source).entry, "")
    return _shown_entry(work, resolved.path, entry)


async def unmount(work: FileWork[StorageUnmount]) -> Acknowledged:
    """Take a mounted directory out of the namespace."""
    path = normal_path(work.body.path)
    rows = await work.rows(_UNMOUNT, {"owner": work.owner.id, "path": path})
    if not rows:
        raise NotFound(
            f"nothing is mounted at {path}",
            field="body.path",
            remedy="name the path that it was mounted at",
        )
    return Acknowledged()


async def read_mounted(work: AnyWork, resolved: ResolvedPath, body: StorageRead) -> Content:
    """Return a file's content, or a part of it."""
    if body.version is not None:
        raise unversioned(resolved)
    part, size_bytes = await asyncio.to_thread(
        host_directory(work, resolved).read, resolved.inner, body.offset, body.max_bytes
    )
    is_end = body.offset + len(part) >= size_bytes
    text, encoding, used_bytes = shown(part, is_end=is_end)
    return Content(
        resolved.path,
        0,
        text,
        encoding,
        size_bytes,
        body.offset,
        end=is_end and used_bytes == len(part),
    )


async def list_mounted(work: AnyWork, resolved: ResolvedPath, body: StorageList) -> Entries:
    """List what a mounted directory, or one below it, holds."""
    found = await asyncio.to_thread(
        host_directory(work, resolved).entries, resolved.inner, recursive=body.recursive
    )
    entries = sorted(
        (_shown_entry(work, _path(resolved, one.inner), one) for one in found),
        key=lambda entry: entry.path,
    )
    after = "" if body.after is None else normal_path(body.after, "body.after")
    rest = [entry for entry in entries if entry.path > after]
    return Entries(tuple(rest[: body.limit]), more=len(rest) > body.limit)


async def stat_mounted(work: AnyWork, resolved: ResolvedPath) -> Entry:
    """Return what is known of a file or a directory."""
    entry = await asyncio.to_thread(host_directory(work, resolved).entry, resolved.inner)
    return _shown_entry(work, resolved.path, entry)


async def write_mounted(
    work: AnyWork, resolved: ResolvedPath, content: bytes, *, is_new: bool
) -> Entry:
    """Put a file in place; a person decides where one is there, since no version is kept."""
    check_writable(work, resolved)
    host = host_directory(work, resolved)
    before = await entry_or_none(work, resolved)
    if before is not None and before.is_directory:
        raise taken(resolved)
    if before is not None and not is_new:
        what = (
            f"overwrite {resolved.path} on the host ({before.size_bytes} bytes, no version kept) "
            f"with {len(content)} bytes"
        )
        seen = await _seen(work, resolved, before)
        lossy = before.size_bytes > 0 and seen.digest != digest_of(content)
        await work.take(Irreversible("overwrite", what, (seen,), lossy=lossy))
        await work.ask()
    await asyncio.to_thread(host.write, resolved.inner, content, is_new=is_new)
    return await stat_mounted(work, resolved)


async def append_mounted(
    work: AnyWork, resolved: ResolvedPath, added: bytes, max_bytes: int
) -> Entry:
    """Add to the end of a file. A worker that dies between this and its answer may add it twice."""
    check_writable(work, resolved)
    host = host_directory(work, resolved)
    before = b""
    if await entry_or_none(work, resolved) is not None:
        before, size_bytes = await asyncio.to_thread(host.read, resolved.inner, 0, max_bytes)
        check_size(size_bytes + len(added))  # else what was not read would be gone
    await asyncio.to_thread(host.write, resolved.inner, before + added, is_new=False)
    return await stat_mounted(work, resolved)


async def make_mounted_directory(work: AnyWork, resolved: ResolvedPath) -> Entry:
    """Make a directory and those above it."""
    if resolved.inner:
        check_writable(work, resolved)
        await asyncio.to_thread(host_directory(work, resolved).make_directory, resolved.inner)
    return await stat_mounted(work, resolved)


async def delete_mounted(work: AnyWork, resolved: ResolvedPath) -> Entry:
    """Delete a file, or an empty directory, of the host."""
    if not resolved.inner:
        raise InvalidPath(
            f"{resolved.path} is a mounted directory",
            field="body.path",
            remedy="take it out of the namespace with storage.unmount",
        )
    check_writable(work, resolved)
    entry = await stat_mounted(work, resolved)
    found = await entry_or_none(work, resolved)
    assert found is not None
    what = f"delete {resolved.path} on the host ({size_words(entry.size_bytes)})"
    seen = await _seen(work, resolved, found)
    await work.take(Irreversible("delete", what, (seen,)))
    await work.ask()
    await asyncio.to_thread(host_directory(work, resolved).delete, resolved.inner)
    return entry


async def _seen(work: AnyWork, resolved: ResolvedPath, entry: HostEntry) -> Seen:
    """Return what lies on the host as an approval is bound to it; it is in nobody's scratch."""
    content = b""
    if not entry.is_directory:
        read = host_directory(work, resolved).read
        content, _ = await asyncio.to_thread(read, resolved.inner, 0, LARGEST_FILE_BYTES)
    return Seen(
        "mounted",
        resolved.path,
        count=entry.size_bytes,
        digest=digest_of(content),
        name=f"{'directory' if entry.is_directory else 'file'} {resolved.path} on the host",
        size_bytes=entry.size_bytes,
    )


async def entry_or_none(work: AnyWork, resolved: ResolvedPath) -> HostEntry | None:
    """Return what is at a path of the host; None: nothing."""
    try:
        return await asyncio.to_thread(host_directory(work, resolved).entry, resolved.inner)
    except NotFound:
        return None


def check_writable(work: AnyWork, resolved: ResolvedPath) -> None:
    """Refuse to change what was mounted to be read.

    Raises:
        InvalidPath: It was; or a plan would change it, which the host cannot take back.
    """
    assert resolved.mount is not None
    if work.in_plan:
        raise InvalidPath(
            f"{resolved.path} is on the host: no plan changes what is there",
            field="body.path",
            remedy="change it by another syscall",
        )
    if not resolved.mount.writable:
        raise InvalidPath(
            f"{resolved.mount.path} is mounted read-only",
            field="body.path",
            remedy="mount it with writable",
        )


def host_directory(work: AnyWork, resolved: ResolvedPath) -> HostDirectory:
    """Return the directory of the host that is mounted there."""
    assert resolved.mount is not None
    return HostDirectory(allowed_directories(work), resolved.mount.source)


def allowed_directories(work: AnyWork) -> AllowedDirectories:
    """Return the directories of the host that the namespace's owner may mount."""
    return work.services.limits.mountable.by(work.owner.tenant, work.owner.name)


def _path(resolved: ResolvedPath, inner: str) -> str:
    assert resolved.mount is not None
    return below(resolved.mount.path) + inner if inner else resolved.mount.path


def _shown_entry(work: AnyWork, path: str, entry: HostEntry) -> Entry:
    return Entry(
        path or ROOT,
        "directory" if entry.is_directory else "file",
        work.owner.name,
        size_bytes=entry.size_bytes,
        created_at=entry.changed_at,
        updated_at=entry.changed_at,
        mounted=True,
    )


Reading = tuple[HostEntry, Sequence[Part]]  # as the walk saw it; no parts of what is no text


class MountWatch:
    """Keeps what search knows of mounted directories as the host has it."""

    def __init__(self, store: Store, mountable: MountSetting) -> None:
        self._store = store
        self._mountable = mountable

    async def step(self, unembedded: asyncio.Event) -> float:
        """Scan once, have what is new indexed; return how long to wait before the next time."""
        began_s = time.monotonic()
        if await self.scan():
            unembedded.set()
            return 0.0
        return max(PAUSE_S, PAUSE_FACTOR * (time.monotonic() - began_s))

    async def scan(self) -> int:
        """Scan all searchable mounts once; return how many files were read or forgotten."""
        async with self._store.as_steward() as cursor:
            await cursor.execute(_MOUNTS)
            mounts = await cursor.fetchall()
        return sum([await self._scan(mount) for mount in mounts])

    async def _scan(self, mount: Any) -> int:  # noqa: ANN401  a row
        host = HostDirectory(self._mountable.by(mount.tenant, mount.agent), mount.source)
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
        return entry, ()
    text = text_of(content)
    return entry, parts_of(text) if text else ()


async def _put(cursor: Cursor, mount: Any, reading: Reading) -> None:  # noqa: ANN401  a row
    entry, parts = reading
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
            "starts": [part.start for part in parts],
            "texts": [part.text for part in parts],
        },
    )
