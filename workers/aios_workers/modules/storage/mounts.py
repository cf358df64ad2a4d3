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
from aios_workers.modules.storage.namespace import ResolvedPath, check_free_way, look_up, taken

_INSERT = """
    INSERT INTO mount (owner_id, path, source, writable, searchable)
    VALUES (%(owner)s, %(path)s, %(source)s, %(writable)s, %(searchable)s)
"""
_DELETE = "DELETE FROM mount WHERE owner_id = %(owner)s AND path = %(path)s RETURNING id"


async def mount(work: FileWork[StorageMount]) -> Entry:
    """Show a real directory at a free path of the agent's namespace."""
    body = work.body
    source = await asyncio.to_thread(work.limits.allowed.where, body.source)
    where = await look_up(work, body.path)
    check_free_way(where)
    if not where.is_free:
        raise taken(where)
    await work.rows(
        _INSERT + " RETURNING id",
        {
            "owner": work.owner.id,
            "path": where.path,
            "source": source,
            "writable": body.writable,
            "searchable": body.searchable,
        },
    )
    entry = await asyncio.to_thread(HostDirectory(work.limits.allowed, source).entry, "")
    return _shown_entry(work, where.path, entry)


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


async def read_mounted(work: AnyWork, where: ResolvedPath, body: StorageRead) -> Content:
    """Return a file's content, or a part of it."""
    if body.version is not None:
        raise unversioned(where)
    part, size_bytes = await asyncio.to_thread(
        _host(work, where).read, where.inner, body.offset, body.max_bytes
    )
    is_end = body.offset + len(part) >= size_bytes
    text, encoding, used_bytes = shown(part, is_end=is_end)
    return Content(
        where.path,
        0,
        text,
        encoding,
        size_bytes,
        body.offset,
        end=is_end and used_bytes == len(part),
    )


async def list_mounted(work: AnyWork, where: ResolvedPath, body: StorageList) -> Entries:
    """List what a mounted directory, or one below it, holds."""
    found = await asyncio.to_thread(
        _host(work, where).entries, where.inner, recursive=body.recursive
    )
    entries = sorted(
        (_shown_entry(work, _path(where, one.inner), one) for one in found),
        key=lambda entry: entry.path,
    )
    after = "" if body.after is None else normal_path(body.after, "body.after")
    rest = [entry for entry in entries if entry.path > after]
    return Entries(tuple(rest[: body.limit]), more=len(rest) > body.limit)


async def stat_mounted(work: AnyWork, where: ResolvedPath) -> Entry:
    """Return what is known of a file or a directory."""
    entry = await asyncio.to_thread(_host(work, where).entry, where.inner)
    return _shown_entry(work, where.path, entry)


async def write_mounted(
    work: AnyWork, where: ResolvedPath, content: bytes, *, is_new: bool
) -> Entry:
    """Put a file in place; a person decides where one is there, since no version is kept."""
    check_writable(work, where)
    host = _host(work, where)
    before = await entry_or_none(work, where)
    if before is not None and before.is_directory:
        raise taken(where)
    if before is not None and not is_new:
        what = (
            f"overwrite {where.path} on the host ({before.size_bytes} bytes, no version kept) "
            f"with {len(content)} bytes"
        )
        await work.confirm_on("overwrite", what, [where.path], lossy=before.size_bytes > 0)
    await asyncio.to_thread(host.write, where.inner, content, is_new=is_new)
    return await stat_mounted(work, where)


async def append_mounted(work: AnyWork, where: ResolvedPath, added: bytes, max_bytes: int) -> Entry:
    """Add to the end of a file. A worker that dies between this and its answer may add it twice."""
    check_writable(work, where)
    host = _host(work, where)
    before = b""
    if await entry_or_none(work, where) is not None:
        before, _ = await asyncio.to_thread(host.read, where.inner, 0, max_bytes)
    await asyncio.to_thread(host.write, where.inner, before + added, is_new=False)
    return await stat_mounted(work, where)


async def make_mounted_directory(work: AnyWork, where: ResolvedPath) -> Entry:
    """Make a directory and those above it."""
    if where.inner:
        check_writable(work, where)
        await asyncio.to_thread(_host(work, where).make_directory, where.inner)
    return await stat_mounted(work, where)


async def delete_mounted(work: AnyWork, where: ResolvedPath) -> Entry:
    """Delete a file, or an empty directory, of the host."""
    if not where.inner:
        raise InvalidPath(
            f"{where.path} is a mounted directory",
            field="body.path",
            remedy="take it out of the namespace with storage.unmount",
        )
    check_writable(work, where)
    entry = await stat_mounted(work, where)
    await work.confirm_on(
        "delete", f"delete {where.path} on the host ({entry.size_bytes} bytes)", [where.path]
    )
    await asyncio.to_thread(_host(work, where).delete, where.inner)
    return entry


async def entry_or_none(work: AnyWork, where: ResolvedPath) -> HostEntry | None:
    """Return what is at a path of the host; None: nothing."""
    try:
        return await asyncio.to_thread(_host(work, where).entry, where.inner)
    except NotFound:
        return None


def check_writable(work: AnyWork, where: ResolvedPath) -> None:
    """Refuse to change what was mounted to be read.

    Raises:
        InvalidPath: It was; or a plan would change it, which the host cannot take back.
    """
    assert where.mount is not None
    if work.allowed:
        raise InvalidPath(
            f"{where.path} is on the host: no plan changes what is there",
            field="body.path",
            remedy="change it by another syscall",
        )
    if not where.mount.writable:
        raise InvalidPath(
            f"{where.mount.path} is mounted read-only",
            field="body.path",
            remedy="mount it with writable",
        )


def unversioned(where: ResolvedPath) -> InvalidPath:
    """Return the error of what only files of the namespace itself have."""
    assert where.mount is not None
    return InvalidPath(
        f"{where.path} is on the host, mounted at {where.mount.path}: it has no versions, moves, "
        "locks or shares here",
        field="body.path",
        remedy="copy it into the namespace first",
    )


def _host(work: AnyWork, where: ResolvedPath) -> HostDirectory:
    assert where.mount is not None
    return HostDirectory(work.limits.allowed, where.mount.source)


def _path(where: ResolvedPath, inner: str) -> str:
    assert where.mount is not None
    return below(where.mount.path) + inner if inner else where.mount.path


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
