"""Mounted directories: they are what the host has at that moment; no versions, locks or shares."""

from __future__ import annotations

import asyncio

from aios_broker.contract.access import Acknowledged
from aios_broker.contract.errors import InvalidPath, NotFound
from aios_broker.contract.files import Content, Entries, Entry
from aios_broker.contract.paths import ROOT, below, normal_path
from aios_broker.contract.storage import (
    StorageList,
    StorageMount,
    StorageRead,
    StorageUnmount,
)
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.contents import shown
from aios_workers.modules.storage.host import HostDirectory, HostEntry
from aios_workers.modules.storage.namespace import Spot, check_free_way, look_up, taken

_INSERT = """
    INSERT INTO mount (owner_id, path, source, writable, searchable)
    VALUES (%(owner)s, %(path)s, %(source)s, %(writable)s, %(searchable)s)
"""
_DELETE = "DELETE FROM mount WHERE owner_id = %(owner)s AND path = %(path)s RETURNING id"


async def mount(work: FileWork[StorageMount]) -> Entry:
    """Show a real directory at a free path of the agent's namespace."""
    body = work.body
    source = await asyncio.to_thread(work.limits.allowed.resolved, body.source)
    spot = await look_up(work, body.path)
    check_free_way(spot)
    if not spot.is_free:
        raise taken(spot)
    await work.rows(
        _INSERT + " RETURNING id",
        {
            "owner": work.owner.id,
            "path": spot.path,
            "source": source,
            "writable": body.writable,
            "searchable": body.searchable,
        },
    )
    entry = await asyncio.to_thread(HostDirectory(work.limits.allowed, source).entry, "")
    return _shown_entry(work, spot.path, entry)


async def unmount(work: FileWork[StorageUnmount]) -> Acknowledged:
    """Take a mounted directory out of the namespace."""
    body = work.body
    path = normal_path(body.path)
    rows = await work.rows(_DELETE, {"owner": work.owner.id, "path": path})
    if not rows:
        raise NotFound(
            f"nothing is mounted at {path}",
            field="body.path",
            remedy="name the path that it was mounted at",
        )
    return Acknowledged()


async def read_mounted(work: AnyWork, spot: Spot, body: StorageRead) -> Content:
    """Return a file's content, or a part of it."""
    if body.version is not None:
        raise unversioned(spot)
    part, size_bytes = await asyncio.to_thread(
        _host(work, spot).read, spot.inner, body.offset, body.max_bytes
    )
    is_end = body.offset + len(part) >= size_bytes
    text, encoding, used_bytes = shown(part, is_end=is_end)
    return Content(
        spot.path,
        0,
        text,
        encoding,
        size_bytes,
        body.offset,
        end=is_end and used_bytes == len(part),
    )


async def list_mounted(work: AnyWork, spot: Spot, body: StorageList) -> Entries:
    """List what a mounted directory, or one below it, holds."""
    found = await asyncio.to_thread(_host(work, spot).entries, spot.inner, recursive=body.recursive)
    entries = sorted(
        (_shown_entry(work, _path(spot, one.inner), one) for one in found),
        key=lambda entry: entry.path,
    )
    after = "" if body.after is None else normal_path(body.after, "body.after")
    rest = [entry for entry in entries if entry.path > after]
    return Entries(tuple(rest[: body.limit]), more=len(rest) > body.limit)


async def stat_mounted(work: AnyWork, spot: Spot) -> Entry:
    """Return what is known of a file or a directory."""
    entry = await asyncio.to_thread(_host(work, spot).entry, spot.inner)
    return _shown_entry(work, spot.path, entry)


async def write_mounted(work: AnyWork, spot: Spot, content: bytes, *, is_new: bool) -> Entry:
    """Put a file in place; a person decides where one is there, since no version is kept."""
    check_writable(work, spot)
    host = _host(work, spot)
    before = await entry_or_none(work, spot)
    if before is not None and before.is_directory:
        raise taken(spot)
    if before is not None and not is_new:
        what = (
            f"overwrite {spot.path} on the host ({before.size_bytes} bytes, no version kept) "
            f"with {len(content)} bytes"
        )
        await work.confirm_on("overwrite", what, [spot.path], lossy=before.size_bytes > 0)
    await asyncio.to_thread(host.write, spot.inner, content, is_new=is_new)
    return await stat_mounted(work, spot)


async def append_mounted(work: AnyWork, spot: Spot, added: bytes, max_bytes: int) -> Entry:
    """Add to the end of a file. A worker that dies between this and its answer may add it twice."""
    check_writable(work, spot)
    host = _host(work, spot)
    before = b""
    if await entry_or_none(work, spot) is not None:
        before, _ = await asyncio.to_thread(host.read, spot.inner, 0, max_bytes)
    await asyncio.to_thread(host.write, spot.inner, before + added, is_new=False)
    return await stat_mounted(work, spot)


async def make_mounted_directory(work: AnyWork, spot: Spot) -> Entry:
    """Make a directory and those above it."""
    if spot.inner:
        check_writable(work, spot)
        await asyncio.to_thread(_host(work, spot).make_directory, spot.inner)
    return await stat_mounted(work, spot)


async def delete_mounted(work: AnyWork, spot: Spot) -> Entry:
    """Delete a file, or an empty directory, of the host."""
    if not spot.inner:
        raise InvalidPath(
            f"{spot.path} is a mounted directory",
            field="body.path",
            remedy="take it out of the namespace with storage.unmount",
        )
    check_writable(work, spot)
    entry = await stat_mounted(work, spot)
    await work.confirm_on(
        "delete", f"delete {spot.path} on the host ({entry.size_bytes} bytes)", [spot.path]
    )
    await asyncio.to_thread(_host(work, spot).delete, spot.inner)
    return entry


async def entry_or_none(work: AnyWork, spot: Spot) -> HostEntry | None:
    """Return what is at a path of the host; None: nothing."""
    try:
        return await asyncio.to_thread(_host(work, spot).entry, spot.inner)
    except NotFound:
        return None


def check_writable(work: AnyWork, spot: Spot) -> None:
    """Refuse to change what was mounted to be read.

    Raises:
        InvalidPath: It was; or a plan would change it, which the host cannot take back.
    """
    assert spot.mount is not None
    if work.allowed:
        raise InvalidPath(
            f"{spot.path} is on the host: no plan changes what is there",
            field="body.path",
            remedy="change it by another syscall",
        )
    if not spot.mount.writable:
        raise InvalidPath(
            f"{spot.mount.path} is mounted read-only",
            field="body.path",
            remedy="mount it with writable",
        )


def unversioned(spot: Spot) -> InvalidPath:
    """Return the error of what only files of the namespace itself have."""
    assert spot.mount is not None
    return InvalidPath(
        f"{spot.path} is on the host, mounted at {spot.mount.path}: it has no versions, moves, "
        "locks or shares here",
        field="body.path",
        remedy="copy it into the namespace first",
    )


def _host(work: AnyWork, spot: Spot) -> HostDirectory:
    assert spot.mount is not None
    return HostDirectory(work.limits.allowed, spot.mount.source)


def _path(spot: Spot, inner: str) -> str:
    assert spot.mount is not None
    return below(spot.mount.path) + inner if inner else spot.mount.path


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
