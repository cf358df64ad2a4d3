"""Share a file or a directory: a grant to an agent or a group, or a link that reads one file."""

import hashlib
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aios_broker.contract.errors import InvalidSyscall, NotFound
from aios_broker.contract.paths import ROOT
from aios_broker.contract.storage import (
    Content,
    Entry,
    ShareLink,
    StorageOpen,
    StorageRead,
    StorageShare,
    StorageUnshare,
)
from aios_workers.modules.access.grants import ObjectId, share_object, unshare_object
from aios_workers.modules.storage.files import shown_file
from aios_workers.modules.storage.namespace import (
    FILE,
    Node,
    ResolvedPath,
    entry_of,
    file_at,
    look_up,
    node_of,
    not_found,
)
from aios_workers.modules.storage.work import AnyWork, FileWork

LINK_TTL_S = 86_400.0
LINK_BYTES = 32

_PUT_LINK = """
    INSERT INTO share_link (digest, owner_id, file_id, expires_at)
    VALUES (%(digest)s, %(owner)s, %(file)s, %(expires)s)
"""
_DROP_LINKS = "DELETE FROM share_link WHERE file_id = %(file)s AND owner_id = %(owner)s"
_OPEN = f"""
    SELECT {FILE}, f.owner_id, a.name AS owner_name
      FROM share_link l JOIN file f ON f.id = l.file_id JOIN agent a ON a.id = f.owner_id
     WHERE l.digest = %(digest)s AND l.expires_at > now()
"""


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
    await share_object(work, _object(node), shown=f"{node.kind} {node.path}")
    return entry_of(node, work.owner)


async def unshare(work: FileWork[StorageUnshare]) -> Entry:
    """Take grants back; links too, when it is not about one agent or group."""
    body = work.body
    node = _shareable(await look_up(work, body.path))
    scratch = work.is_scratch(node.path)
    await unshare_object(work, _object(node), node.path, scratch=scratch)
    if body.agent is None and body.group is None and node.kind == "file":
        await work.cursor.execute(_DROP_LINKS, {"file": node.id, "owner": work.owner.id})
    return entry_of(node, work.owner)


async def open_link(work: FileWork[StorageOpen]) -> Content:
    """Read the file that a link points to; the link is all that the asker needs."""
    rows = await work.kernel_rows(_OPEN, {"digest": _digest(work.body.link)})
    if not rows:
        raise NotFound(
            "no such link, or it has expired",
            field="body.link",
            remedy="ask for a new one (storage.share with link)",
        )
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
            "digest": _digest(link),
            "owner": work.owner.id,
            "file": file.id,
            "expires": expires_at,
        },
    )
    return ShareLink(file.path, link, expires_at.timestamp())


def _object(node: Node) -> ObjectId:
    return ("file" if node.kind == "file" else "directory"), str(node.id)


def _digest(link: str) -> str:
    return hashlib.blake2b(link.encode(errors="surrogatepass"), digest_size=32).hexdigest()


def _shareable(resolved: ResolvedPath) -> Node:
    if resolved.directory is not None and resolved.mount is None:
        return resolved.directory
    if resolved.path == ROOT:
        raise not_found(resolved)
    return file_at(resolved)
