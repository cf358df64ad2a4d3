"""Who is in which privilege group, and who was granted what: as people look at it.

What a cursor may see of it, row-level security says: an agent the groups of its tenant, and grants
that concern it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from aios_broker.contract.access import GroupRole, ObjectKind
from aios_broker.postgres.store import Cursor

_GROUPS = """
    SELECT t.name AS tenant, p.name,
           coalesce(json_object_agg(a.name, m.role ORDER BY a.name)
                        FILTER (WHERE a.name IS NOT NULL), '{}') AS members
      FROM privilege_group p JOIN tenant t ON t.id = p.tenant_id
      LEFT JOIN membership m ON m.group_id = p.id LEFT JOIN agent a ON a.id = m.agent_id
     WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s)
       AND (%(agent)s::text IS NULL OR EXISTS (
           SELECT FROM membership n JOIN agent b ON b.id = n.agent_id
            WHERE n.group_id = p.id AND b.name = %(agent)s))
       AND (%(after)s::text[] IS NULL OR ARRAY[t.name, p.name] > %(after)s::text[])
     GROUP BY 1, 2 ORDER BY 1, 2 LIMIT %(limit)s
"""
_GRANTS = """
    SELECT g.id, t.name AS tenant, g.object_kind AS kind, g.object_id, o.name AS owner,
           coalesce('agent:' || a.name, 'group:' || p.name) AS "to", g.verbs,
           b.name AS granted_by, extract(epoch FROM g.expires_at)::float8 AS expires_at
      FROM access_grant g JOIN tenant t ON t.id = g.tenant_id JOIN agent o ON o.id = g.owner_id
      JOIN agent b ON b.id = g.granted_by LEFT JOIN agent a ON a.id = g.agent_id
      LEFT JOIN privilege_group p ON p.id = g.group_id
     WHERE (g.expires_at IS NULL OR g.expires_at > now())
       AND (%(tenant)s::text IS NULL OR t.name = %(tenant)s)
       AND (%(agent)s::text IS NULL OR %(agent)s IN (o.name, b.name, a.name) OR EXISTS (
           SELECT FROM membership m JOIN agent x ON x.id = m.agent_id
            WHERE m.group_id = g.group_id AND x.name = %(agent)s))
       AND (%(before)s::bigint IS NULL OR g.id < %(before)s)
     ORDER BY g.id DESC LIMIT %(limit)s
"""
_NAMES = """
    SELECT 'note' AS kind, id AS key, id AS name FROM note WHERE id = ANY(%(note)s)
    UNION ALL SELECT 'file', id::text, path FROM file WHERE id::text = ANY(%(file)s)
    UNION ALL SELECT 'directory', id::text, path FROM directory WHERE id::text = ANY(%(directory)s)
"""
ObjectId = tuple[ObjectKind, str]  # a note's id; the number of a file, a directory or an owner


class KnownGroup(Struct, frozen=True):
    """A privilege group, and each member's role."""

    tenant: str
    name: str
    members: dict[str, GroupRole]


class KnownGrant(Struct, frozen=True):
    """What somebody may do with an object of another agent."""

    id: int
    tenant: str
    kind: ObjectKind
    name: str  # a note's id or a path; of a block empty, as of what the asker may not read
    owner: str
    to: str  # `agent:<name>` or `group:<name>`
    verbs: tuple[str, ...]
    granted_by: str
    expires_at: float | None = None  # Unix time, s


async def known_groups(
    cursor: Cursor,
    tenant: str | None,
    agent: str | None = None,
    *,
    limit: int | None = None,
    after: tuple[str, str] | None = None,
) -> Sequence[KnownGroup]:
    """Return groups by name: of a tenant or of all; with `agent` those that it is in.

    `after`: tenant and name of the last one of the page before.
    """
    place = None if after is None else list(after)
    values = {"tenant": tenant, "agent": agent, "limit": limit, "after": place}
    await cursor.execute(_GROUPS, values)
    return [msgspec.convert(row._asdict(), KnownGroup) for row in await cursor.fetchall()]


async def known_grants(
    cursor: Cursor,
    tenant: str | None,
    agent: str | None = None,
    *,
    limit: int,
    before: int | None = None,
) -> Sequence[KnownGrant]:
    """Return grants that hold, newest first: of a tenant or of all; with `agent` what concerns it.

    An agent is concerned by what it owns, gave, or has, itself or by a group. `before`: the id of
    the last one of the page before.
    """
    values = {"tenant": tenant, "agent": agent, "limit": limit, "before": before}
    await cursor.execute(_GRANTS, values)
    rows = await cursor.fetchall()
    names = await object_names(cursor, [(row.kind, row.object_id) for row in rows])
    return [_known_grant(row, names.get((row.kind, row.object_id), "")) for row in rows]


def _known_grant(row: Any, name: str) -> KnownGrant:  # noqa: ANN401  a row of psycopg's
    return msgspec.convert({**row._asdict(), "name": name}, KnownGrant)


async def object_names(cursor: Cursor, objects: Sequence[ObjectId]) -> Mapping[ObjectId, str]:
    """Return the names of objects as far as the cursor may read them; a block has none."""
    ids: dict[str, list[str]] = {"note": [], "file": [], "directory": [], "block": []}
    for kind, key in objects:
        ids[kind].append(key)
    await cursor.execute(_NAMES, ids)
    return {(row.kind, row.key): row.name for row in await cursor.fetchall()}
