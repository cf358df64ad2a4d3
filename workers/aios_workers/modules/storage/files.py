"""Files: made, read, written, locked, shared; what they were, and back to it."""

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec

from aios_broker.access.grants import ObjectId
from aios_broker.access.links import LINKED, link_digest, no_link
from aios_broker.comparing import BOUNDS, MAX_COMPARED_BYTES, Pair
from aios_broker.contract.access import size_words
from aios_broker.contract.errors import InvalidSyscall, NotFound, VersionConflict
from aios_broker.contract.paths import ROOT
from aios_broker.contract.storage import (
    MAX_FILE_BYTES,
    Content,
    Diff,
    Entry,
    FileVersion,
    FileVersions,
    ShareLink,
    StorageAppend,
    StorageCreate,
    StorageDiff,
    StorageLock,
    StorageOpen,
    StorageRead,
    StorageRollback,
    StorageShare,
    StorageStat,
    StorageUnlock,
    StorageUnshare,
    StorageVersions,
    StorageWrite,
)
from aios_workers.approvals.irreversible import Seen, digest_of_parts
from aios_workers.modules.access.grants import share_object, unshare_object
from aios_workers.modules.operation import Asked
from aios_workers.modules.storage.contents import (
    VersionOperation,
    add_version,
    check_size,
    content_bytes,
    content_of,
    digest_of,
    insert_file,
    no_version,
    part_of,
    shown,
    text_of,
)
from aios_workers.modules.storage.mounts import (
    append_mounted,
    read_mounted,
    stat_mounted,
    write_mounted,
)
from aios_workers.modules.storage.namespace import (
    FILE,
    AnyWork,
    FileWork,
    Node,
    ResolvedPath,
    changeable_path,
    check_unlocked,
    directory_for,
    entry_of,
    file_at,
    look_up,
    node_of,
    not_found,
    on_namespace,
    permitted_path,
    seen_file,
    seen_version,
    taken,
    unversioned,
)
from aios_workers.search.corpora import ChunkQuery
from aios_workers.search.ranking import count_unembedded

_READ_BOTH = "read both versions and compare them yourself"
_VERSIONS = """
    SELECT v.version, extract(epoch FROM v.at)::float8 AS at, v.operation, v.size_bytes, v.sha256,
           v.syscall_id,
           coalesce((SELECT a.name FROM agent a WHERE a.id = v.by_agent_id), 'another agent') AS by
      FROM file_version v WHERE v.file_id = %(file)s ORDER BY v.version DESC LIMIT %(limit)s
"""
_VERSION_AT = """
    SELECT max(version) AS version FROM file_version
     WHERE file_id = %(file)s AND at <= to_timestamp(%(at)s)
"""
_NEWER = """
    SELECT (SELECT sha256 FROM file_version WHERE file_id = %(file)s AND version = %(version)s)
               AS sha256,
           EXISTS (SELECT FROM file_version n
                    WHERE n.file_id = %(file)s AND n.version > %(version)s
                      AND n.sha256 <> (SELECT sha256 FROM file_version
                                        WHERE file_id = %(file)s AND version = %(version)s)
           ) AS has_other
"""
_SET_LOCK = f"""
    UPDATE file AS f SET locked_by = %(by)s, locked_until = now() + make_interval(secs => %(ttl)s)
     WHERE id = %(file)s RETURNING {FILE}
"""
_FREE = f"""
    UPDATE file AS f SET locked_by = NULL, locked_until = NULL WHERE id = %(file)s RETURNING {FILE}
"""


async def create(work: FileWork[StorageCreate]) -> Entry:
    """Make a new file."""
    body = work.body
    content = content_bytes(body.content, body.encoding)
    resolved = await changeable_path(work, body.path)
    if resolved.mount is not None:
        return await write_mounted(work, resolved, content, is_new=True)
    if not resolved.is_free:
        raise taken(resolved)
    return await _make(work, resolved, content, "create")


async def write(work: FileWork[StorageWrite]) -> Entry:
    """Replace the content of a file, or make the file."""
    body = work.body
    content = content_bytes(body.content, body.encoding)
    resolved = await changeable_path(work, body.path)
    if resolved.mount is not None:
        if body.if_version is not None:
            raise unversioned(resolved)
        return await write_mounted(work, resolved, content, is_new=False)
    if resolved.directory is not None:
        raise taken(resolved)
    check_version(resolved.path, resolved.file.version if resolved.file else 0, body.if_version)
    if resolved.file is None:
        return await _make(work, resolved, content, "write")
    check_unlocked(work, resolved.file)
    await take_content(work, resolved.file, content)
    return entry_of(await add_version(work, resolved.file, content, "write"), work.owner)


async def append(work: FileWork[StorageAppend]) -> Entry:
    """Add to the end of a file, or make the file."""
    body = work.body
    added = content_bytes(body.content, body.encoding)
    resolved = await changeable_path(work, body.path)
    if resolved.mount is not None:
        if body.if_version is not None:
            raise unversioned(resolved)
        return await append_mounted(work, resolved, added, MAX_FILE_BYTES)
    if resolved.directory is not None:
        raise taken(resolved)
    check_version(resolved.path, resolved.file.version if resolved.file else 0, body.if_version)
    if resolved.file is None:
        return await _make(work, resolved, added, "append")
    check_unlocked(work, resolved.file)
    check_size(resolved.file.size_bytes + len(added))
    before = await content_of(work, resolved.file)
    changed = await add_version(work, resolved.file, before + added, "append")
    return entry_of(changed, work.owner)


async def read(work: FileWork[StorageRead]) -> Content:
    """Return a file's content, or a part of it."""
    body = work.body
    resolved = await permitted_path(work, body.path, "read")
    if resolved.mount is not None:
        return await read_mounted(work, resolved, body)
    return await shown_file(work, file_at(resolved), body)


async def shown_file(work: AnyWork, file: Node, body: StorageRead) -> Content:
    """Return the part of a file that a body asks for."""
    content, size_bytes = await part_of(
        work, file, body.version, offset=body.offset, max_bytes=body.max_bytes
    )
    is_end = body.offset + len(content) >= size_bytes
    text, encoding, used_bytes = shown(content, is_end=is_end)
    return Content(
        path=file.path,
        version=body.version or file.version,
        content=text,
        encoding=encoding,
        size_bytes=size_bytes,
        offset=body.offset,
        end=is_end and used_bytes == len(content),
    )


async def stat(work: FileWork[StorageStat]) -> Entry:
    """Return what is known of a file or a directory."""
    body = work.body
    resolved = await permitted_path(work, body.path, "read")
    if resolved.mount is not None:
        return await stat_mounted(work, resolved)
    node = resolved.directory or resolved.file
    if node is None:
        raise not_found(resolved)
    query = ChunkQuery("", owner=work.owner.id, path=node.path)
    unindexed = await count_unembedded(work.cursor, query)
    return msgspec.structs.replace(entry_of(node, work.owner), unindexed_parts=unindexed)


def check_version(path: str, version: int, asked: int | None) -> None:
    """Refuse a change that was meant for another version; 0 is that of a file that is not there.

    Raises:
        VersionConflict: It names both.
    """
    if asked is not None and asked != version:
        raise VersionConflict(
            f"{path} is at version {version}, not {asked}",
            field="body.if_version",
            remedy="read it again, and decide anew",
        )


async def take_content(work: AnyWork, file: Node, content: bytes, *sources: Seen) -> None:
    """Note that other content takes the place of what is there.

    `sources`: what it comes from, where that is not in the arguments.
    """
    is_other = file.size_bytes > 0 and file.sha256 != digest_of(content)
    lossy = is_other and not work.is_scratch(file.path)  # there, it is rolled back as freely
    what = (
        f"overwrite {file.path} of {work.owner.name} (version {file.version}, "
        f"{size_words(file.size_bytes)}) with {size_words(len(content))}"
    )

    async def diff() -> Pair | str:
        if not is_other:
            return ""
        return texts_of(await content_of(work, file), content, file.path, file.path) or ""

    seen = (seen_file(file), *sources)
    await work.take_at("overwrite", what, file.path, seen, lossy=lossy, diff=diff)


def texts_of(a: bytes, b: bytes, name_a: str, name_b: str) -> Pair | None:
    """Return two contents to be compared; None: one is not text, or too long."""
    old, new = text_of(a), text_of(b)
    if old is None or new is None or max(len(a), len(b)) > MAX_COMPARED_BYTES:
        return None
    return Pair(old, new, name_a, name_b)


async def _make(
    work: AnyWork, resolved: ResolvedPath, content: bytes, operation: VersionOperation
) -> Entry:
    check_size(len(content))
    directory = await directory_for(work, resolved)
    file = await insert_file(work, directory.id, resolved.path, content, operation)
    return entry_of(file, work.owner)


async def versions(work: FileWork[StorageVersions]) -> FileVersions:
    """List the versions of a file, newest first."""
    body = work.body
    file = file_at(await permitted_path(work, body.path, "read"))
    rows = await work.rows(_VERSIONS, {"file": file.id, "limit": body.limit})
    found = [msgspec.convert(row._asdict(), FileVersion) for row in rows]
    return FileVersions(tuple(found))


async def diff(asked: Asked[StorageDiff]) -> Diff:
    """Return what changed between two versions of a text file; no connection waits for that."""
    body = asked.body
    async with asked.transaction() as plain:
        work = await on_namespace(plain)
        file = file_at(await permitted_path(work, body.path, "read"))
        b = file.version if body.b is None else body.b
        old, new = await content_of(work, file, body.a), await content_of(work, file, b)
    pair = texts_of(old, new, f"{file.path}@{body.a}", f"{file.path}@{b}")
    if pair is None:
        raise InvalidSyscall(
            f"{file.path} is not UTF-8 text of at most {MAX_COMPARED_BYTES} bytes in both versions",
            field="body.path",
            remedy=_READ_BOTH,
        )
    text = await asked.services.comparer.unified(asked.agent.holder, pair)
    if text is None:
        raise InvalidSyscall(
            f"versions {body.a} and {b} of {file.path} differ in too much to be compared "
            f"within {BOUNDS.cpu_s} s",
            field="body.path",
            remedy=_READ_BOTH,
        )
    return Diff(file.path, body.a, b, text)


async def rollback(work: FileWork[StorageRollback]) -> Entry:
    """Make an older version the newest one."""
    body = work.body
    if (body.version is None) == (body.at is None):
        raise InvalidSyscall(
            "exactly one of version and at is given",
            field="body.version",
            remedy="give the version, or the time",
        )
    file = await _unlocked(work, body.path)
    version = await _version_of(work, file, body)
    [row] = await work.rows(_NEWER, {"file": file.id, "version": version})
    if row.sha256 is None:
        raise no_version(file, version)
    old = await content_of(work, file, version)
    if row.has_other:
        what = (
            f"roll {file.path} of {work.owner.name} back from version {file.version} to {version}"
        )

        async def shown_to_person() -> Pair | str:
            now = await content_of(work, file)
            return texts_of(now, old, file.path, file.path) or ""

        seen = (seen_file(file), seen_version(file, version, row.sha256, len(old)))
        lossy = not work.is_scratch(file.path)
        await work.take_at("rollback", what, file.path, seen, lossy=lossy, diff=shown_to_person)
    return entry_of(await add_version(work, file, old, "rollback"), work.owner)


async def _version_of(work: AnyWork, file: Node, body: StorageRollback) -> int:
    if body.version is not None:
        return body.version
    [row] = await work.rows(_VERSION_AT, {"file": file.id, "at": body.at})
    if row.version is None:
        raise NotFound(
            f"{file.path} has no version of that time",
            field="body.at",
            remedy="look at what there is: storage.versions",
        )
    return int(row.version)


async def lock(work: FileWork[StorageLock]) -> Entry:
    """Keep others from changing a file for some time."""
    file = await _unlocked(work, work.body.path)
    values = {"file": file.id, "by": work.agent.id, "ttl": work.body.ttl_s}
    [row] = await work.rows(_SET_LOCK, values)
    return entry_of(node_of(row), work.owner)


async def unlock(work: FileWork[StorageUnlock]) -> Entry:
    """Let others change it again; one that is free stays so. Its owner breaks anybody's lock."""
    file = file_at(await permitted_path(work, work.body.path, "write"))
    if not work.is_own:
        check_unlocked(work, file)
    [row] = await work.rows(_FREE, {"file": file.id})
    return entry_of(node_of(row), work.owner)


async def _unlocked(work: AnyWork, path: str) -> Node:
    """Return a file that the asker may write and nobody else has locked."""
    file = file_at(await permitted_path(work, path, "write"))
    check_unlocked(work, file)
    return file


LINK_TTL_S = 86_400.0
LINK_BYTES = 32

_PUT_LINK = """
    INSERT INTO share_link (digest, owner_id, file_id, expires_at)
    VALUES (%(digest)s, %(owner)s, %(file)s, %(expires)s)
"""
_DROP_LINKS = """
    DELETE FROM share_link WHERE file_id = %(file)s AND owner_id = %(owner)s
    RETURNING digest, expires_at > now() AS opens
"""
_OPEN = f"SELECT {FILE}, f.owner_id, a.name AS owner_name {LINKED}"


async def share(work: FileWork[StorageShare]) -> Entry | ShareLink:
    """Grant verbs, or make a link."""
    body = work.body
    if body.link and (body.group is not None or body.agent is not None):
        raise InvalidSyscall(
            "exactly one of group, agent and link is given",
            field="body.group",
            remedy="share with one at a time",
        )
    resolved = await look_up(work, body.path)
    if body.link:
        return await _make_link(work, file_at(resolved), body.ttl_s or LINK_TTL_S)
    node = _shareable(resolved)
    scratch = work.is_scratch(node.path)
    await share_object(work, _object(node), shown=f"{node.kind} {node.path}", scratch=scratch)
    return entry_of(node, work.owner)


async def unshare(work: FileWork[StorageUnshare]) -> Entry:
    """Take grants back; links too, when it is not about one agent or group."""
    body = work.body
    node = _shareable(await look_up(work, body.path))
    scratch = work.is_scratch(node.path)
    await unshare_object(work, _object(node), node.path, scratch=scratch)
    if body.agent is None and body.group is None and node.kind == "file":
        rows = await work.rows(_DROP_LINKS, {"file": node.id, "owner": work.owner.id})
        if links := sorted(row.digest for row in rows if row.opens):
            what = f"make {len(links)} links to {node.path} worthless"
            told, called = digest_of_parts(links), f"links to {node.path}"
            seen = Seen("links", str(node.id), count=len(links), digest=told, name=called)
            await work.take_at("unshare", what, node.path, (seen,))
    return entry_of(node, work.owner)


async def open_link(work: FileWork[StorageOpen]) -> Content:
    """Read the file that a link points to; the link is all that the asker needs."""
    rows = await work.kernel_rows(_OPEN, {"digest": link_digest(work.body.link)})
    if not rows:
        raise no_link()
    [row] = rows
    await work.cursor.execute("SET LOCAL ROLE aios_steward")  # only this file is read with it
    owner = replace(work.agent, id=row.owner_id, name=row.owner_name)
    return await shown_file(replace(work, owner=owner), node_of(row), StorageRead(row.path))


async def _make_link(work: AnyWork, file: Node, ttl_s: float) -> ShareLink:
    link = secrets.token_hex(LINK_BYTES)  # none begins with a dash
    expires_at = datetime.now(UTC) + timedelta(seconds=ttl_s)
    await work.cursor.execute(
        _PUT_LINK,
        {
            "digest": link_digest(link),
            "owner": work.owner.id,
            "file": file.id,
            "expires": expires_at,
        },
    )
    return ShareLink(file.path, link, expires_at.timestamp())


def _object(node: Node) -> ObjectId:
    return ("file" if node.kind == "file" else "directory"), str(node.id)


def _shareable(resolved: ResolvedPath) -> Node:
    if resolved.directory is not None and resolved.mount is None:
        return resolved.directory
    if resolved.path == ROOT:
        raise not_found(resolved)
    return file_at(resolved)
