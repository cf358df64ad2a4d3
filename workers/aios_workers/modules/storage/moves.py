"""Directories, made and listed; they and files moved, copied, deleted."""

import asyncio
from dataclasses import replace
from typing import Any

from aios_broker.contract.access import size_words
from aios_broker.contract.errors import InvalidPath, InvalidSyscall
from aios_broker.contract.paths import ROOT, below, is_within, normal_path
from aios_broker.contract.storage import (
    MAX_FILE_BYTES,
    Entries,
    Entry,
    StorageCopy,
    StorageDelete,
    StorageList,
    StorageMkdir,
    StorageMove,
)
from aios_workers.approvals.irreversible import Seen
from aios_workers.modules.access.grants import seen_on_directories
from aios_workers.modules.storage.contents import (
    add_version,
    content_of,
    digest_of,
    insert_file,
    settle_account,
)
from aios_workers.modules.storage.files import take_content
from aios_workers.modules.storage.mounts import (
    delete_mounted,
    host_directory,
    list_mounted,
    make_mounted_directory,
)
from aios_workers.modules.storage.namespace import (
    DIRECTORY,
    FILE,
    MOUNT,
    SCRATCH,
    AnyWork,
    FileWork,
    Node,
    ResolvedPath,
    below_of,
    changeable_path,
    check_free_way,
    check_unlocked,
    directory_for,
    entry_of,
    locked_error,
    look_up,
    made_directory,
    node_of,
    not_found,
    permitted_path,
    seen_file,
    taken,
    unversioned,
)

MAX_LISTED = 50  # paths of a directory that a person is shown before it is deleted
MAX_COPIED = 1_000  # files and directories of one copy

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
_MOVE_FILE = f"""
    UPDATE file AS f SET path = %(to)s, directory_id = %(directory)s WHERE id = %(file)s
    RETURNING {FILE}
"""
_MOVE_DIRECTORY = f"""
    WITH files AS (
        UPDATE file SET path = %(to)s || substr(path, length(%(path)s) + 1)
         WHERE owner_id = %(owner)s AND starts_with(path, %(below)s)
    ), mounts AS (
        UPDATE mount SET path = %(to)s || substr(path, length(%(path)s) + 1)
         WHERE owner_id = %(owner)s AND starts_with(path, %(below)s)
    )
    UPDATE directory AS d SET path = %(to)s || substr(path, length(%(path)s) + 1),
           ancestors = %(above)s::bigint[] || ancestors[%(depth)s:]
     WHERE owner_id = %(owner)s AND (path = %(path)s OR starts_with(path, %(below)s))
    RETURNING {DIRECTORY}
"""
_LOCKED_BELOW = """
    SELECT f.path, f.locked_until, (SELECT a.name FROM agent a WHERE a.id = f.locked_by) AS locker
      FROM file f WHERE f.owner_id = %(owner)s AND starts_with(f.path, %(below)s)
       AND f.locked_until > now() AND f.locked_by <> %(by)s LIMIT 1
"""
# What is below a directory. What the transaction made itself has another number each time that it
# runs: it is in no digest, and counts as nothing that goes.
_BELOW = """
    WITH held AS (
        SELECT 'f' AS kind, 'f ' || f.id || ' ' || f.version || ' ' || f.path AS line, f.path,
               f.id = ANY (%(made_files)s::bigint[]) AS is_made
          FROM file f WHERE f.owner_id = %(owner)s AND starts_with(f.path, %(below)s)
        UNION ALL SELECT 'd', 'd ' || d.id || ' ' || d.path, d.path,
               d.id = ANY (%(made_directories)s::bigint[])
          FROM directory d WHERE d.owner_id = %(owner)s AND starts_with(d.path, %(below)s)
        UNION ALL SELECT 'm', 'm ' || m.id || ' ' || m.path, m.path, false
          FROM mount m WHERE m.owner_id = %(owner)s AND starts_with(m.path, %(below)s)
    )
    SELECT count(*) FILTER (WHERE kind = 'f') AS files,
           count(*) FILTER (WHERE kind = 'd') AS directories,
           count(*) FILTER (WHERE kind = 'm') AS mounts,
           count(*) FILTER (WHERE NOT is_made) AS going,
           count(*) FILTER (WHERE NOT is_made AND kind <> 'd') AS contents_going,
           encode(sha256(convert_to(coalesce(string_agg(line, ',' ORDER BY line)
                                                 FILTER (WHERE NOT is_made), ''),
                                    'UTF8')), 'hex') AS digest,
           ARRAY(SELECT path FROM held WHERE kind = 'f' AND NOT is_made
                  ORDER BY path LIMIT %(limit)s) AS paths
      FROM held
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
_DIRECTORIES_BELOW = """
    SELECT path FROM directory WHERE owner_id = %(owner)s AND starts_with(path, %(below)s)
     ORDER BY length(path) LIMIT %(limit)s
"""
_FILES_BELOW = f"""
    SELECT {FILE} FROM file f
     WHERE owner_id = %(owner)s AND starts_with(path, %(below)s) ORDER BY path LIMIT %(limit)s
"""


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


async def move(work: FileWork[StorageMove]) -> Entry:
    """Move or rename a file or a directory."""
    body = work.body
    source = await _source(work, body.path)
    target = await changeable_path(work, body.to, "body.to")
    for each in (source, target):
        if each.mount is not None:
            raise unversioned(each)
    node = source.directory or source.file
    assert node is not None
    if source.path == target.path:
        return entry_of(node, work.owner)
    if source.directory is not None:
        return await _move_directory(work, source.directory, target)
    check_unlocked(work, node)
    await _clear_target(work, target, node, overwrite=body.overwrite)
    if _enters_scratch(node, target):
        what = f"move {node.path} of {work.owner.name} ({node.version} versions) into scratch space"
        await work.take_at("delete", what, node.path, (seen_file(node),))
    directory = await directory_for(work, target)
    await _take_reach(work, node, source.nearest, directory)
    values = {"file": node.id, "to": target.path, "directory": directory.id}
    [row] = await work.rows(_MOVE_FILE, values)
    return entry_of(node_of(row), work.owner)


async def copy(work: FileWork[StorageCopy]) -> Entry:
    """Copy a file or a directory, as it is now, into the asker's namespace."""
    body = work.body
    reading = replace(work, owner=await work.agent_named(body.owner))
    source = await permitted_path(reading, body.path, "read")
    target = await look_up(work, body.to, "body.to")
    check_free_way(target, "body.to")
    if target.mount is not None:
        raise unversioned(target)
    if source.mount is not None:
        read = host_directory(work, source).read
        content, _ = await asyncio.to_thread(read, source.inner, 0, MAX_FILE_BYTES)
    elif source.directory is not None:
        return await _copy_directory(work, reading, source.directory, target)
    elif source.file is None:
        raise not_found(source)
    elif reading.is_own and source.path == target.path:
        raise InvalidPath(
            "a file cannot be copied onto itself", field="body.to", remedy="choose another path"
        )
    else:
        content = await content_of(reading, source.file)
    check_target(target, overwrite=body.overwrite)
    return entry_of(await _put(work, target, content), work.owner)


async def delete(work: FileWork[StorageDelete]) -> Entry:
    """Delete a file with its versions, or a directory with all that is below it."""
    body = work.body
    resolved = await _source(work, body.path)
    if resolved.mount is not None:
        return await delete_mounted(work, resolved)
    if resolved.directory is not None:
        return await _delete_directory(work, resolved.directory, recursive=body.recursive)
    file = resolved.file
    assert file is not None
    check_unlocked(work, file)
    size = size_words(file.size_bytes)
    what = f"delete {file.path} of {work.owner.name} (version {file.version}, {size})"
    await work.take_at("delete", what, file.path, (seen_file(file),))
    await delete_file(work, file)
    return entry_of(file, work.owner)


async def delete_file(work: AnyWork, file: Node) -> None:
    """Delete a file, its versions, and what only they had."""
    rows = await work.rows(_SHA_OF_FILE, {"file": file.id})
    await work.cursor.execute(
        _DELETE_FILE, {"file": file.id, "owner": work.owner.id, "object": str(file.id)}
    )
    await settle_account(work, gone=[row.sha256 for row in rows])


def check_target(target: ResolvedPath, *, overwrite: bool) -> None:
    """Refuse a target at which something is, unless it is a file and may be overwritten.

    Raises:
        AlreadyExists: It is not so.
    """
    if target.is_free or (overwrite and target.file is not None):
        return
    raise taken(target, "body.to")


async def _source(work: AnyWork, path: str) -> ResolvedPath:
    source = await changeable_path(work, path)
    if source.is_free:
        raise not_found(source)
    return source


async def _clear_target(
    work: AnyWork, target: ResolvedPath, moved: Node, *, overwrite: bool
) -> None:
    """Delete the file that another is moved over: none of its versions is kept."""
    check_target(target, overwrite=overwrite)
    if target.file is None:
        return
    check_unlocked(work, target.file)
    what = f"move {moved.path} over {target.path} ({target.file.version} versions)"
    seen = (seen_file(target.file), _source_of(work, moved))
    await work.take_at("delete", what, target.path, seen)
    await delete_file(work, target.file)


def _source_of(work: AnyWork, file: Node) -> Seen:
    """Return a file as what takes another's place: it is not the one that goes."""
    number = "" if file.id in work.pending.made_files else str(file.id)
    return replace(seen_file(file), kind="source", id=number)


async def _take_reach(work: AnyWork, node: Node, out_of: Node | None, into: Node) -> None:
    """Note that a move takes a thing out of directories that are shared with others."""
    if node.kind == "file" and node.id in work.pending.made_files:
        return
    made = work.pending.made_directories
    above = (each for each in (out_of.ancestors if out_of else ()) if each not in {node.id, *made})
    if left := [each for each in above if each not in into.ancestors]:
        seen = await seen_on_directories(work, left)
        if seen is not None:
            what = f"move {node.path} out of the reach of {seen.count} grants on directories above"
            await work.take_at("unshare", what, node.path, (seen,))


def _enters_scratch(node: Node, target: ResolvedPath) -> bool:
    """Whether a move takes what was made elsewhere to where deleting asks nobody."""
    return is_within(target.path, SCRATCH) and not is_within(node.path, SCRATCH)


async def _move_directory(work: AnyWork, directory: Node, target: ResolvedPath) -> Entry:
    _check_outside(directory, target, "moved")
    check_target(target, overwrite=False)
    await _check_unlocked_below(work, directory)
    if _enters_scratch(directory, target):
        inside = await _inside(work, directory)
        await _take_tree(work, directory, inside, f"move {directory.path} into scratch space")
    above = await directory_for(work, target)
    await _take_reach(work, directory, directory, above)
    rows = await work.rows(
        _MOVE_DIRECTORY,
        below_of(directory.path)
        | {
            "owner": work.owner.id,
            "to": target.path,
            "above": list(above.ancestors),
            "depth": len(directory.ancestors),
        },
    )
    [moved] = [node_of(row) for row in rows if row.id == directory.id]
    return entry_of(moved, work.owner)


def _check_outside(directory: Node, target: ResolvedPath, what: str) -> None:
    if is_within(target.path, directory.path):
        raise InvalidPath(
            f"a directory cannot be {what} into itself",
            field="body.to",
            remedy="choose a path outside of it",
        )


async def _delete_directory(work: AnyWork, directory: Node, *, recursive: bool) -> Entry:
    values: dict[str, object] = below_of(directory.path) | {"owner": work.owner.id}
    inside = await _inside(work, directory)
    if inside.files + inside.directories + inside.mounts and not recursive:
        raise InvalidSyscall(
            f"{directory.path} holds {inside.files} files and {inside.directories} directories",
            field="body.recursive",
            remedy="set recursive, or delete them first",
        )
    await _check_unlocked_below(work, directory)
    await _take_tree(work, directory, inside, f"delete {directory.path}")
    rows = await work.rows(_SHA_BELOW, values)
    await work.cursor.execute(_DELETE_BELOW, values)
    await settle_account(work, gone=[row.sha256 for row in rows])
    return entry_of(directory, work.owner)


async def _inside(work: AnyWork, directory: Node) -> Any:  # noqa: ANN401  a row of `_BELOW`
    values = below_of(directory.path) | {"owner": work.owner.id, "limit": MAX_LISTED}
    pending = work.pending
    made = {
        "made_files": list(pending.made_files),
        "made_directories": list(pending.made_directories),
    }
    [inside] = await work.rows(_BELOW, values | made)
    return inside


async def _take_tree(work: AnyWork, directory: Node, inside: Any, what: str) -> None:  # noqa: ANN401
    """Note that a directory goes with all that is in it: a row of `_BELOW`.

    One that a step of the same plan made is known by its path, and takes nothing where nothing of
    before was put into it.
    """
    is_made = directory.id in work.pending.made_directories
    if is_made and not inside.going:
        return
    held = f"{inside.files} files and {inside.directories} directories"
    if inside.mounts:
        held += f", and {inside.mounts} mounted"
    number = directory.path if is_made else str(directory.id)
    called = f"directory {directory.path}"
    seen = Seen("tree", number, count=inside.going, digest=inside.digest, name=called)
    await work.take_at(
        "delete",
        f"{what} of {work.owner.name} with {held}",
        directory.path,
        (seen,),
        lossy=inside.contents_going > 0,
        diff="\n".join(inside.paths),
    )


async def _check_unlocked_below(work: AnyWork, directory: Node) -> None:
    values = below_of(directory.path) | {"owner": work.owner.id, "by": work.agent.id}
    for row in await work.rows(_LOCKED_BELOW, values):
        raise locked_error(row.path, row.locker, row.locked_until)


async def _put(work: AnyWork, target: ResolvedPath, content: bytes) -> Node:
    if target.file is None:
        directory = await directory_for(work, target)
        return await insert_file(work, directory.id, target.path, content, "copy")
    check_unlocked(work, target.file)
    size = len(content)
    source = Seen("source", "", digest=digest_of(content), name="what is copied", size_bytes=size)
    await take_content(work, target.file, content, source)
    return await add_version(work, target.file, content, "copy")


async def _copy_directory(
    work: AnyWork, reading: AnyWork, source: Node, target: ResolvedPath
) -> Entry:
    check_target(target, overwrite=False)
    if reading.is_own:
        _check_outside(source, target, "copied")
    values = below_of(source.path) | {"owner": reading.owner.id, "limit": MAX_COPIED + 1}
    inner = [row.path for row in await reading.rows(_DIRECTORIES_BELOW, values) if row.path != ROOT]
    files = [node_of(row) for row in await reading.rows(_FILES_BELOW, values)]
    if len(inner) + len(files) > MAX_COPIED:
        raise InvalidSyscall(
            f"{source.path} holds more than {MAX_COPIED} files and directories",
            field="body.path",
            remedy="copy its directories one by one",
        )
    base = "" if source.path == ROOT else source.path
    top = await made_directory(work, target.nearest, target.path)
    made = {base: top}
    for path in inner:  # the shortest first: each one's parent is made
        above = made[path.rpartition("/")[0]]
        made[path] = await made_directory(work, above, target.path + path[len(base) :])
    for file in files:
        directory = made[file.path.rpartition("/")[0]]
        content = await content_of(reading, file)
        path = target.path + file.path[len(base) :]
        await insert_file(work, directory.id, path, content, "copy")
    return entry_of(top, work.owner)
