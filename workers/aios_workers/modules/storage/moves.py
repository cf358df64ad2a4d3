"""Files and whole directories: moved, copied, deleted."""

from __future__ import annotations

from typing import Any

from aios_broker.contract.errors import InvalidPath, InvalidSyscall, ObjectLocked
from aios_broker.contract.files import Entry
from aios_broker.contract.paths import is_within
from aios_broker.contract.storage import StorageDelete, StorageMove
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.directories import directory_for
from aios_workers.modules.storage.mounts import delete_mounted, unversioned
from aios_workers.modules.storage.namespace import (
    DirectoryRow,
    FileRow,
    ResolvedPath,
    below_of,
    check_free_way,
    check_unlocked,
    directory_entry,
    file_entry,
    file_row,
    locked_error,
    look_up,
    not_found,
    require,
    taken,
)
from aios_workers.modules.storage.versions import settle

MAX_LISTED = 50  # paths of a directory that a person is shown before it is deleted

_MOVE_FILE = """
    UPDATE file SET path = %(to)s, directory_id = %(directory)s WHERE id = %(file)s
    RETURNING *, (SELECT a.name FROM agent a WHERE a.id = locked_by) AS locker
"""
_MOVE_DIRECTORY = """
    WITH files AS (
        UPDATE file SET path = %(to)s || substr(path, length(%(path)s) + 1)
         WHERE owner_id = %(owner)s AND starts_with(path, %(below)s)
    ), mounts AS (
        UPDATE mount SET path = %(to)s || substr(path, length(%(path)s) + 1)
         WHERE owner_id = %(owner)s AND starts_with(path, %(below)s)
    )
    UPDATE directory SET path = %(to)s || substr(path, length(%(path)s) + 1),
           ancestors = %(above)s::bigint[] || ancestors[%(depth)s:]
     WHERE owner_id = %(owner)s AND (path = %(path)s OR starts_with(path, %(below)s))
    RETURNING id, path, ancestors, created_at
"""
_LOCKED_BELOW = """
    SELECT f.path, f.locked_until, (SELECT a.name FROM agent a WHERE a.id = f.locked_by) AS locker
      FROM file f WHERE f.owner_id = %(owner)s AND starts_with(f.path, %(below)s)
       AND f.locked_until > now() AND f.locked_by <> %(by)s LIMIT 1
"""
_BELOW = """
    SELECT (SELECT count(*) FROM file f
             WHERE f.owner_id = %(owner)s AND starts_with(f.path, %(below)s)) AS files,
           (SELECT count(*) FROM directory d
             WHERE d.owner_id = %(owner)s AND starts_with(d.path, %(below)s)) AS directories,
           (SELECT count(*) FROM mount m
             WHERE m.owner_id = %(owner)s AND starts_with(m.path, %(below)s)) AS mounts,
           ARRAY(SELECT f.path FROM file f
                  WHERE f.owner_id = %(owner)s AND starts_with(f.path, %(below)s)
                  ORDER BY f.path LIMIT %(limit)s) AS paths
"""
_SHA_OF_FILE = "SELECT DISTINCT sha256 FROM file_version WHERE file_id = %(file)s"
_SHA_BELOW = """
    SELECT DISTINCT v.sha256 FROM file_version v JOIN file f ON f.id = v.file_id
     WHERE f.owner_id = %(owner)s AND starts_with(f.path, %(below)s)
"""
_DELETE_FILE = """
    WITH grants AS (
        DELETE FROM access_grant WHERE owner_id = %(owner)s AND object_kind = 'file'
           AND object_id = %(object)s
    ) DELETE FROM file WHERE id = %(file)s
"""
_DELETE_BELOW = """
    WITH grants AS (
        DELETE FROM access_grant WHERE owner_id = %(owner)s AND (
            object_kind = 'file' AND object_id IN (
                SELECT id::text FROM file
                 WHERE owner_id = %(owner)s AND starts_with(path, %(below)s))
            OR object_kind = 'directory' AND object_id IN (
                SELECT id::text FROM directory WHERE owner_id = %(owner)s
                   AND (path = %(path)s OR starts_with(path, %(below)s))))
    ), mounts AS (
        DELETE FROM mount WHERE owner_id = %(owner)s AND starts_with(path, %(below)s)
    )
    DELETE FROM directory
     WHERE owner_id = %(owner)s AND (path = %(path)s OR starts_with(path, %(below)s))
"""


async def move(work: FileWork[StorageMove]) -> Entry:
    """Move or rename a file or a directory."""
    body = work.body
    where, target = await _source(work, body.path), await look_up(work, body.to, "body.to")
    await require(work, target, "write")
    check_free_way(target, "body.to")
    for each in (where, target):
        if each.mount is not None:
            raise unversioned(each)
    if where.path == target.path:
        return _entry(where)
    if where.directory is not None:
        return await _move_directory(work, where, where.directory, target)
    assert where.file is not None
    check_unlocked(work, where.file)
    await _clear_target(work, target, f"move {where.path} over", overwrite=body.overwrite)
    directory = await directory_for(work, target)
    [row] = await work.rows(
        _MOVE_FILE, {"file": where.file.id, "to": target.path, "directory": directory.id}
    )
    return file_entry(file_row(row), work.owner)


async def delete(work: FileWork[StorageDelete]) -> Entry:
    """Delete a file with its versions, or a directory with all that is below it."""
    body = work.body
    where = await _source(work, body.path)
    if where.mount is not None:
        return await delete_mounted(work, where)
    if where.directory is not None:
        return await _delete_directory(work, where, where.directory, recursive=body.recursive)
    assert where.file is not None
    check_unlocked(work, where.file)
    what = (
        f"delete {where.path} of {work.owner.name} "
        f"({where.file.version} versions, {where.file.size_bytes} bytes)"
    )
    await work.confirm_on("delete", what, [where.path])
    await delete_file(work, where.file)
    return file_entry(where.file, work.owner)


async def delete_file(work: AnyWork, file: FileRow) -> None:
    """Delete a file, its versions, and what only they had."""
    rows = await work.rows(_SHA_OF_FILE, {"file": file.id})
    await work.cursor.execute(
        _DELETE_FILE, {"file": file.id, "owner": work.owner.id, "object": str(file.id)}
    )
    await settle(work, gone=[row.sha256 for row in rows])


def check_target(where: ResolvedPath, *, overwrite: bool) -> None:
    """Refuse a target at which something is, unless it is a file and may be overwritten.

    Raises:
        AlreadyExists: It is not so.
    """
    if where.is_free or (overwrite and where.file is not None):
        return
    raise taken(where, "body.to")


async def _source(work: AnyWork, path: str) -> ResolvedPath:
    where = await look_up(work, path)
    await require(work, where, "write")
    check_free_way(where)
    if where.is_free:
        raise not_found(where)
    return where


async def _clear_target(work: AnyWork, target: ResolvedPath, what: str, *, overwrite: bool) -> None:
    check_target(target, overwrite=overwrite)
    if target.file is None:
        return
    check_unlocked(work, target.file)
    await work.confirm_on(
        "overwrite",
        f"{what} {target.path} ({target.file.version} versions)",
        [target.path],
        lossy=target.file.size_bytes > 0,
    )
    await delete_file(work, target.file)


async def _move_directory(
    work: AnyWork, where: ResolvedPath, directory: DirectoryRow, target: ResolvedPath
) -> Entry:
    if is_within(target.path, where.path):
        raise InvalidPath(
            "a directory cannot be moved into itself",
            field="body.to",
            remedy="choose a path outside of it",
        )
    check_target(target, overwrite=False)
    await _check_unlocked_below(work, where)
    above = await directory_for(work, target)
    rows = await work.rows(
        _MOVE_DIRECTORY,
        below_of(where.path)
        | {
            "owner": work.owner.id,
            "to": target.path,
            "above": list(above.ancestors),
            "depth": len(directory.ancestors),
        },
    )
    [row] = [row for row in rows if row.id == directory.id]
    moved = DirectoryRow(row.id, row.path, tuple(row.ancestors), row.created_at)
    return directory_entry(moved, work.owner)


async def _delete_directory(
    work: AnyWork, where: ResolvedPath, directory: DirectoryRow, *, recursive: bool
) -> Entry:
    values: dict[str, Any] = below_of(where.path) | {"owner": work.owner.id}
    [inside] = await work.rows(_BELOW, values | {"limit": MAX_LISTED})
    if inside.files + inside.directories + inside.mounts and not recursive:
        raise InvalidSyscall(
            f"{where.path} holds {inside.files} files and {inside.directories} directories",
            field="body.recursive",
            remedy="set recursive, or delete them first",
        )
    await _check_unlocked_below(work, where)
    what = (
        f"delete {where.path} of {work.owner.name} with {inside.files} files "
        f"and {inside.directories} directories"
    )
    await work.confirm_on(
        "delete", what, [where.path], lossy=inside.files > 0, diff="\n".join(inside.paths)
    )
    rows = await work.rows(_SHA_BELOW, values)
    await work.cursor.execute(_DELETE_BELOW, values)
    await settle(work, gone=[row.sha256 for row in rows])
    return directory_entry(directory, work.owner)


async def _check_unlocked_below(work: AnyWork, where: ResolvedPath) -> None:
    rows = await work.rows(
        _LOCKED_BELOW, below_of(where.path) | {"owner": work.owner.id, "by": work.agent.id}
    )
    error: ObjectLocked | None = None
    for row in rows:
        error = locked_error(row.path, row.locker, row.locked_until)
    if error is not None:
        raise error


def _entry(where: ResolvedPath) -> Entry:
    if where.file is not None:
        return file_entry(where.file, where.owner)
    assert where.directory is not None
    return directory_entry(where.directory, where.owner)


def renamed(path: str, source: str, target: str) -> str:
    """Return where a path at or below `source` lies once `source` is `target`."""
    return target + path[len(source) :]
