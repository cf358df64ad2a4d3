"""Directories: made, listed."""

from __future__ import annotations

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.files import Entries, Entry
from aios_broker.contract.paths import ROOT, below, normal_path, parent_of, prefixes_of
from aios_broker.contract.storage import StorageList, StorageMkdir
from aios_workers.modules.storage.mounts import list_mounted, make_mounted_directory
from aios_workers.modules.storage.namespace import (
    DIRECTORY,
    FILE,
    MOUNT,
    Node,
    ResolvedPath,
    check_free_way,
    entry_of,
    node_of,
    not_found,
    permitted_path,
    taken,
)
from aios_workers.modules.storage.work import AnyWork, FileWork

# Two statements: row-level security looks at the way down, which a new row ends with its own id.
_INSERT = """
    INSERT INTO directory (tenant_id, owner_id, path, ancestors)
    VALUES (%(tenant)s, %(owner)s, %(path)s, %(ancestors)s) RETURNING id
"""
_COMPLETE = f"""
    UPDATE directory AS d SET ancestors = ancestors || id WHERE id = %(id)s RETURNING {DIRECTORY}
"""
_LIST = f"""
    SELECT * FROM (
        SELECT {DIRECTORY} FROM directory d
         WHERE d.owner_id = %(owner)s AND starts_with(d.path, %(below)s) AND d.path <> '/'
           AND (%(recursive)s OR cardinality(d.ancestors) = %(depth)s + 1)
        UNION ALL
        SELECT {FILE} FROM file f
         WHERE f.owner_id = %(owner)s AND (NOT %(recursive)s AND f.directory_id = %(directory)s
                                           OR %(recursive)s AND starts_with(f.path, %(below)s))
        UNION ALL
        SELECT {MOUNT} FROM mount m
         WHERE m.owner_id = %(owner)s AND starts_with(m.path, %(below)s)
           AND (%(recursive)s OR strpos(substr(m.path, length(%(below)s) + 1), '/') = 0)
    ) AS entry
     WHERE %(after)s::text IS NULL OR path COLLATE "C" > %(after)s
     ORDER BY path COLLATE "C" LIMIT %(limit)s
"""


async def made_directory(work: AnyWork, nearest: Node | None, path: str) -> Node:
    """Return the directory at `path`; it and those between it and the nearest one are made."""
    directory = nearest
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
        directory = node_of(row)
    assert directory is not None
    return directory


async def directory_for(work: AnyWork, resolved: ResolvedPath) -> Node:
    """Return the directory in which something at a free path will lie; it is made if needed."""
    return await made_directory(work, resolved.nearest, parent_of(resolved.path))


async def make_directory(work: FileWork[StorageMkdir]) -> Entry:
    """Make a directory and those above it."""
    body = work.body
    resolved = await permitted_path(work, body.path, "write")
    if resolved.path != ROOT:
        check_free_way(resolved)
    if resolved.file is not None:
        raise taken(resolved)
    if resolved.mount is not None:
        return await make_mounted_directory(work, resolved)
    directory = resolved.directory or await made_directory(work, resolved.nearest, resolved.path)
    return entry_of(directory, work.owner)


async def list_directory(work: FileWork[StorageList]) -> Entries:
    """List what is in a directory, by path."""
    body = work.body
    resolved = await permitted_path(work, body.path, "read")
    if resolved.mount is not None:
        return await list_mounted(work, resolved, body)
    if resolved.file is not None:
        raise InvalidPath(
            f"{resolved.path} is a file",
            field="body.path",
            remedy="name a directory, or ask for storage.stat",
        )
    if resolved.directory is None:
        if resolved.path == ROOT and work.is_own:
            return Entries(())  # nothing was ever put there
        raise not_found(resolved)
    rows = await work.rows(
        _LIST,
        {
            "owner": work.owner.id,
            "below": below(resolved.path),
            "directory": resolved.directory.id,
            "depth": len(resolved.directory.ancestors),
            "recursive": body.recursive,
            "after": None if body.after is None else normal_path(body.after, "body.after"),
            "limit": body.limit + 1,
        },
    )
    entries = tuple(entry_of(node_of(row), work.owner) for row in rows[: body.limit])
    return Entries(entries, more=len(rows) > body.limit)
