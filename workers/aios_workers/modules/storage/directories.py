"""Directories: made, listed."""

from __future__ import annotations

from typing import Any

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.files import Entries, Entry
from aios_broker.contract.paths import ROOT, below, normal_path, parent_of, prefixes_of
from aios_broker.contract.storage import StorageList, StorageMkdir
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.mounts import list_mounted, make_mounted_directory
from aios_workers.modules.storage.namespace import (
    DirectoryRow,
    ResolvedPath,
    check_free_way,
    directory_entry,
    file_entry,
    file_row,
    look_up,
    not_found,
    require,
    taken,
)

# Two statements: row-level security looks at the way down, which a new row ends with its own id.
_INSERT = """
    INSERT INTO directory (tenant_id, owner_id, path, ancestors)
    VALUES (%(tenant)s, %(owner)s, %(path)s, %(ancestors)s) RETURNING id
"""
_COMPLETE = """
    UPDATE directory SET ancestors = ancestors || id WHERE id = %(id)s
    RETURNING id, path, ancestors, created_at
"""
_LIST = """
    SELECT * FROM (
        SELECT 'directory' AS kind, d.id, d.path, NULL::bigint AS directory_id, 0 AS version,
               0::bigint AS size_bytes, '' AS sha256, d.created_at, d.created_at AS updated_at,
               NULL::bigint AS locked_by, NULL::text AS locker, NULL::timestamptz AS locked_until
          FROM directory d
         WHERE d.owner_id = %(owner)s AND starts_with(d.path, %(below)s) AND d.path <> '/'
           AND (%(recursive)s OR cardinality(d.ancestors) = %(depth)s + 1)
        UNION ALL
        SELECT 'file', f.id, f.path, f.directory_id, f.version, f.size_bytes, f.sha256,
               f.created_at, f.updated_at, f.locked_by,
               (SELECT a.name FROM agent a WHERE a.id = f.locked_by), f.locked_until
          FROM file f
         WHERE f.owner_id = %(owner)s AND (NOT %(recursive)s AND f.directory_id = %(directory)s
                                           OR %(recursive)s AND starts_with(f.path, %(below)s))
        UNION ALL
        SELECT 'mount', m.id, m.path, NULL, 0, 0, '', m.created_at, m.created_at, NULL, NULL,
               NULL
          FROM mount m
         WHERE m.owner_id = %(owner)s AND starts_with(m.path, %(below)s)
           AND (%(recursive)s OR strpos(substr(m.path, length(%(below)s) + 1), '/') = 0)
    ) AS entry
     WHERE %(after)s::text IS NULL OR path COLLATE "C" > %(after)s
     ORDER BY path COLLATE "C" LIMIT %(limit)s
"""


async def made_directory(work: AnyWork, where: ResolvedPath, path: str) -> DirectoryRow:
    """Return the directory at `path`, on the way to a where; it and those above are made."""
    directory = where.nearest
    for each in prefixes_of(path):
        if directory is not None and len(each) <= len(directory.path):
            continue
        rows = await work.rows(
            _INSERT,
            {
                "tenant": work.owner.tenant_id,
                "owner": work.owner.id,
                "path": each,
                "ancestors": list(directory.ancestors) if directory is not None else [],
            },
        )
        [row] = await work.rows(_COMPLETE, {"id": rows[0].id})
        directory = DirectoryRow(row.id, row.path, tuple(row.ancestors), row.created_at)
    assert directory is not None
    return directory


async def directory_for(work: AnyWork, where: ResolvedPath) -> DirectoryRow:
    """Return the directory in which something at a free where will lie; it is made if needed."""
    return await made_directory(work, where, parent_of(where.path))


async def make_directory(work: FileWork[StorageMkdir]) -> Entry:
    """Make a directory and those above it."""
    body = work.body
    where = await look_up(work, body.path)
    await require(work, where, "write")
    if where.path != ROOT:
        check_free_way(where)
    if where.file is not None:
        raise taken(where)
    if where.mount is not None:
        return await make_mounted_directory(work, where)
    directory = where.directory or await made_directory(work, where, where.path)
    return directory_entry(directory, work.owner)


async def list_directory(work: FileWork[StorageList]) -> Entries:
    """List what is in a directory, by path."""
    body = work.body
    where = await look_up(work, body.path)
    await require(work, where, "read")
    if where.mount is not None:
        return await list_mounted(work, where, body)
    if where.file is not None:
        raise InvalidPath(
            f"{where.path} is a file",
            field="body.path",
            remedy="name a directory, or ask for storage.stat",
        )
    if where.directory is None:
        if where.path == ROOT and work.is_own:
            return Entries(())  # nothing was ever put there
        raise not_found(where)
    rows = await work.rows(
        _LIST,
        {
            "owner": work.owner.id,
            "below": below(where.path),
            "directory": where.directory.id,
            "depth": len(where.directory.ancestors),
            "recursive": body.recursive,
            "after": None if body.after is None else normal_path(body.after, "body.after"),
            "limit": body.limit + 1,
        },
    )
    entries = tuple(_entry(work, row) for row in rows[: body.limit])
    return Entries(entries, more=len(rows) > body.limit)


def _entry(work: AnyWork, row: Any) -> Entry:  # noqa: ANN401  a row of psycopg's
    if row.kind == "file":
        return file_entry(file_row(row), work.owner)
    at = row.created_at.timestamp()
    return Entry(
        row.path,
        "directory",
        work.owner.name,
        created_at=at,
        updated_at=at,
        mounted=row.kind == "mount",
    )
