"""Share a file or a directory: a grant to an agent or a group, or a link that reads one file."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aios_broker.contract.access import ObjectKind
from aios_broker.contract.errors import InvalidSyscall, NotFound
from aios_broker.contract.files import Content, Entry, ShareLink
from aios_broker.contract.paths import ROOT
from aios_broker.contract.storage import StorageOpen, StorageRead, StorageShare, StorageUnshare
from aios_workers.modules.access.grant_rows import Grantee, drop_grants, group_number, put_grant
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.files import shown_file
from aios_workers.modules.storage.namespace import (
    ResolvedPath,
    directory_entry,
    file_at,
    file_entry,
    file_row,
    look_up,
    not_found,
)

LINK_TTL_S = 86_400.0
LINK_BYTES = 32

_PUT_LINK = """
    INSERT INTO share_link (digest, owner_id, file_id, expires_at)
    VALUES (%(digest)s, %(owner)s, %(file)s, %(expires)s)
"""
_DROP_LINKS = "DELETE FROM share_link WHERE file_id = %(file)s AND owner_id = %(owner)s"
_OPEN = """
    SELECT f.*, NULL::text AS locker, a.name AS owner_name, a.administrator AS owner_admin
      FROM share_link l JOIN file f ON f.id = l.file_id JOIN agent a ON a.id = f.owner_id
     WHERE l.digest = %(digest)s AND l.expires_at > now()
"""


async def share(work: FileWork[StorageShare]) -> Entry | ShareLink:
    """Grant verbs, or make a link."""
    body = work.body
    if (body.group is not None) + (body.agent is not None) + body.link != 1:
        raise InvalidSyscall(
            "exactly one of group, agent and link is given",
            field="body.group",
            remedy="share with one at a time",
        )
    where = await look_up(work, body.path)
    if body.link:
        return await _make_link(work, where, body.ttl_s or LINK_TTL_S)
    kind, object_id = _object(where)
    to = await _grantee(work, body)
    await put_grant(
        work.cursor,
        work.agent,
        kind,
        object_id,
        to,
        verbs=body.verbs,
        expires_at=None if body.ttl_s is None else _after(body.ttl_s),
    )
    return _entry(where)


async def unshare(work: FileWork[StorageUnshare]) -> Entry:
    """Take grants back; links too, when it is not about one agent or group."""
    body = work.body
    if body.group is not None and body.agent is not None:
        raise InvalidSyscall(
            "at most one of group and agent is given",
            field="body.group",
            remedy="unshare with one at a time",
        )
    where = await look_up(work, body.path)
    kind, object_id = _object(where)
    to = await _grantee(work, body)
    whom = body.agent or body.group or "everybody"
    await work.confirm_on("unshare", f"no longer share {where.path} with {whom}", [where.path])
    await drop_grants(work.cursor, work.agent, kind, object_id, to)
    if to.is_everybody and where.file is not None:
        await work.cursor.execute(_DROP_LINKS, {"file": where.file.id, "owner": work.owner.id})
    return _entry(where)


async def open_link(work: FileWork[StorageOpen]) -> Content:
    """Read the file that a link points to; the link is all that the asker needs."""
    body = work.body
    rows = await work.kernel_rows(_OPEN, {"digest": _digest(body.link)})
    if not rows:
        raise NotFound(
            "no such link, or it has expired",
            field="body.link",
            remedy="ask for a new one (storage.share with link)",
        )
    row = rows[0]
    await work.cursor.execute("SET LOCAL ROLE aios_steward")  # only this file is read with it
    owner = replace(work.agent, id=row.owner_id, name=row.owner_name)
    return await shown_file(replace(work, owner=owner), file_row(row), StorageRead(row.path))


async def _make_link(work: AnyWork, where: ResolvedPath, ttl_s: float) -> ShareLink:
    file = file_at(where)
    link, expires_at = secrets.token_hex(LINK_BYTES), _after(ttl_s)  # none begins with a dash
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


def _digest(link: str) -> str:
    return hashlib.blake2b(link.encode(errors="surrogatepass"), digest_size=32).hexdigest()


def _after(ttl_s: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=ttl_s)


def _object(where: ResolvedPath) -> tuple[ObjectKind, str]:
    if where.directory is not None and where.mount is None:
        return "directory", str(where.directory.id)
    if where.path == ROOT:
        raise not_found(where)
    return "file", str(file_at(where).id)


async def _grantee(work: AnyWork, body: StorageShare | StorageUnshare) -> Grantee:
    """Return who is named.

    Raises:
        UnknownAgent: The tenant has none of that name.
    """
    if body.agent is not None:
        return Grantee(agent_id=(await work.agent_named(body.agent)).id)
    if body.group is None:
        return Grantee()
    return Grantee(group_id=await group_number(work.cursor, work.agent.tenant_id, body.group))


def _entry(where: ResolvedPath) -> Entry:
    if where.directory is not None:
        return directory_entry(where.directory, where.owner)
    return file_entry(file_at(where), where.owner)
