"""Copies of files and of whole directories, from any namespace that one may read into one's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aios_broker.contract.errors import InvalidPath, InvalidSyscall
from aios_broker.contract.files import Entry
from aios_broker.contract.paths import ROOT, below, is_within
from aios_broker.contract.storage import MAX_FILE_BYTES, StorageCopy
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.directories import directory_for, made_directory
from aios_workers.modules.storage.files import check_overwrite
from aios_workers.modules.storage.host import HostDirectory
from aios_workers.modules.storage.mounts import unversioned
from aios_workers.modules.storage.moves import check_target, renamed
from aios_workers.modules.storage.namespace import (
    DirectoryRow,
    FileRow,
    ResolvedPath,
    check_free_way,
    check_unlocked,
    directory_entry,
    file_entry,
    file_row,
    look_up,
    not_found,
    require,
)
from aios_workers.modules.storage.versions import add_version, content_of, insert_file

MAX_COPIED = 1_000  # files and directories of one copy

_DIRECTORIES_BELOW = """
    SELECT path FROM directory WHERE owner_id = %(owner)s AND starts_with(path, %(below)s)
     ORDER BY length(path) LIMIT %(limit)s
"""
_FILES_BELOW = """
    SELECT *, NULL::text AS locker FROM file
     WHERE owner_id = %(owner)s AND starts_with(path, %(below)s) ORDER BY path LIMIT %(limit)s
"""


async def copy(work: FileWork[StorageCopy]) -> Entry:
    """Copy a file or a directory, as it is now, into the asker's namespace."""
    body = work.body
    source = replace(work, owner=await work.agent_named(body.owner))
    where = await look_up(source, body.path)
    await require(source, where, "read")
    target = await look_up(work, body.to, "body.to")
    check_free_way(target, "body.to")
    if target.mount is not None:
        raise unversioned(target)
    if where.mount is not None:
        content, _ = await asyncio.to_thread(
            HostDirectory(work.limits.allowed, where.mount.source).read,
            where.inner,
            0,
            MAX_FILE_BYTES,
        )
        check_target(target, overwrite=body.overwrite)
        return file_entry(await _put(work, target, content), work.owner)
    if where.directory is not None:
        return await _copy_directory(work, source, where, target)
    if where.file is None:
        raise not_found(where)
    if source.is_own and where.path == target.path:
        raise InvalidPath(
            "a file cannot be copied onto itself", field="body.to", remedy="choose another path"
        )
    content = (await content_of(source, where.file)).content
    check_target(target, overwrite=body.overwrite)
    return file_entry(await _put(work, target, content), work.owner)


async def _put(work: AnyWork, target: ResolvedPath, content: bytes) -> FileRow:
    if target.file is None:
        directory = await directory_for(work, target)
        return await insert_file(work, directory.id, target.path, content, "copy")
    check_unlocked(work, target.file)
    await check_overwrite(work, target.file, content)
    return await add_version(work, target.file, content, "copy")


async def _copy_directory(
    work: AnyWork, source: AnyWork, where: ResolvedPath, target: ResolvedPath
) -> Entry:
    check_target(target, overwrite=False)
    if source.is_own and is_within(target.path, where.path):
        raise InvalidPath(
            "a directory cannot be copied into itself",
            field="body.to",
            remedy="choose a path outside of it",
        )
    values = {"owner": source.owner.id, "below": below(where.path), "limit": MAX_COPIED + 1}
    inner = [row.path for row in await source.rows(_DIRECTORIES_BELOW, values) if row.path != ROOT]
    files = [file_row(row) for row in await source.rows(_FILES_BELOW, values)]
    if len(inner) + len(files) > MAX_COPIED:
        raise InvalidSyscall(
            f"{where.path} holds more than {MAX_COPIED} files and directories",
            field="body.path",
            remedy="copy its directories one by one",
        )
    base = "" if where.path == ROOT else where.path
    made = {where.path: await made_directory(work, target, target.path)}
    for path in inner:
        made[path] = await _made_below(work, made, renamed(path, base, target.path))
    for file in files:
        directory = made[file.path.rpartition("/")[0] or ROOT]
        content = (await content_of(source, file)).content
        at = renamed(file.path, base, target.path)
        await insert_file(work, directory.id, at, content, "copy")
    return directory_entry(made[where.path], work.owner)


async def _made_below(work: AnyWork, made: dict[str, DirectoryRow], path: str) -> DirectoryRow:
    """Make one directory whose parent was just made."""
    parent = path.rpartition("/")[0]
    above = next(each for each in made.values() if each.path == parent)
    where = ResolvedPath(path, work.owner, None, None, above, None, None)
    return await made_directory(work, where, path)
