"""Privilege groups: the truth in Postgres, and a hash map of it in Redis for who looks there.

The map has the names of the groups of each `<tenant>/<agent>`. It is written after each change and
compared with Postgres from time to time; a crash between the two leaves it behind for that long.
Nothing is permitted because of it alone.
"""

from itertools import accumulate
from typing import Any

import msgspec

from aios_broker.access.grants import known_groups
from aios_broker.contract.access import (
    AccessGroupAdd,
    AccessGroupCreate,
    AccessGroupDelete,
    AccessGroupRemove,
    AccessGroups,
    Acknowledged,
    Group,
    Groups,
)
from aios_broker.contract.errors import AlreadyExists, NotFound
from aios_workers.approvals.irreversible import Irreversible, Seen
from aios_workers.modules.access.identity import denied, is_administrator
from aios_workers.modules.access.passed_on import end_unfounded
from aios_workers.modules.operation import Work
from aios_workers.modules.services import Services

MOST_MEMBERS = 10_000  # of the groups of one page; the first comes in any case
OneGroup = Work[AccessGroupDelete | AccessGroupAdd | AccessGroupRemove]

_FIND = """
    SELECT p.id, m.role FROM privilege_group p
      LEFT JOIN membership m ON m.group_id = p.id AND m.agent_id = %s
     WHERE p.tenant_id = %s AND p.name = %s
"""
_CREATE = """
    INSERT INTO privilege_group (tenant_id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING
    RETURNING id
"""
_JOIN = """
    INSERT INTO membership (group_id, agent_id, role) VALUES (%s, %s, %s)
    ON CONFLICT (group_id, agent_id) DO UPDATE SET role = excluded.role
"""
_MEMBERS_OF = "SELECT agent_id FROM membership WHERE group_id = %s"
_LEAVE = "DELETE FROM membership WHERE group_id = %s AND agent_id = %s RETURNING role"
_ROLE = "SELECT role FROM membership WHERE group_id = %s AND agent_id = %s FOR UPDATE"
_HOLD = "SELECT FROM privilege_group WHERE id = %s FOR UPDATE"  # nobody joins it meanwhile
_WITH_IT = """
    SELECT members.count AS members, grants.count AS grants,
           encode(sha256(convert_to(concat_ws('|', members.list, grants.list), 'UTF8')), 'hex')
               AS digest
      FROM (SELECT count(*), string_agg(agent_id || ' ' || role, ',' ORDER BY agent_id) AS list
              FROM membership WHERE group_id = %(group)s) members,
           (SELECT count(*), string_agg(id::text, ',' ORDER BY id) AS list
              FROM access_grant WHERE group_id = %(group)s) grants
"""
_DELETE = "DELETE FROM privilege_group WHERE id = %s"
_ALL = """
    SELECT t.name || '/' || a.name AS agent, array_agg(p.name ORDER BY p.name) AS groups
      FROM membership m JOIN agent a ON a.id = m.agent_id JOIN tenant t ON t.id = a.tenant_id
      JOIN privilege_group p ON p.id = m.group_id GROUP BY 1
"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('aios.groups', 0))"


async def groups(work: Work[AccessGroups]) -> Groups:
    """List the groups of the tenant with their members."""
    body, tenant = work.body, work.agent.tenant
    after = None if body.after is None else (tenant, body.after)
    found = await known_groups(work.cursor, tenant, limit=body.limit + 1, after=after)
    totals = accumulate(len(one.members) for one in found)
    fitting = sum(total <= MOST_MEMBERS for total in totals)
    page = found[: min(body.limit, max(1, fitting))]
    return Groups(tuple(Group(one.name, one.members) for one in page), len(page) < len(found))


async def create(work: Work[AccessGroupCreate]) -> Acknowledged:
    """Make a group; who makes it is its first administrator."""
    name = work.body.group
    made = await work.rows(_CREATE, (work.agent.tenant_id, name))
    if not made:
        raise AlreadyExists(
            f"there is a group {name!r} already",
            field="group",
            remedy="choose another name, or have its administrator add you",
        )
    await work.cursor.execute(_JOIN, (made[0].id, work.agent.id, "admin"))
    await work.enter(f"group {name}", msgspec.to_builtins(work.body))
    return Acknowledged()


async def delete(work: Work[AccessGroupDelete]) -> Acknowledged:
    """Delete a group, and all grants to it with it."""
    group = await _administered(work)
    await work.kernel_rows(_HOLD, (group.id,))
    [inside] = await work.kernel_rows(_WITH_IT, {"group": group.id})
    what = (
        f"delete group {work.body.group} with {inside.members} members, and all {inside.grants} "
        "grants to it"
    )
    count = inside.members + inside.grants
    called = f"group {work.body.group}"
    seen = Seen("group", str(group.id), count=count, digest=inside.digest, name=called)
    await work.take(Irreversible("privilege", what, (seen,)))
    members = [row.agent_id for row in await work.kernel_rows(_MEMBERS_OF, (group.id,))]
    await work.cursor.execute(_DELETE, (group.id,))
    await end_unfounded(work, givers=members)
    return Acknowledged()


async def add(work: Work[AccessGroupAdd]) -> Acknowledged:
    """Put an agent into a group, or change its role there."""
    body = work.body
    member = await work.agent_named(body.agent)
    group = await _administered(work)
    role = await _role(work, group.id, member.id)
    what = f"make agent {body.agent} {body.role} of group {body.group}"
    seen = _seen_member(body, group.id, member.id, role)
    await work.take(Irreversible("privilege", what, (seen,)))
    await work.cursor.execute(_JOIN, (group.id, member.id, body.role))
    return Acknowledged()


async def remove(work: Work[AccessGroupRemove]) -> Acknowledged:
    """Take an agent out of a group; oneself without asking anybody."""
    body = work.body
    member = await work.agent_named(body.agent)
    if member.id == work.agent.id:
        group = await _found(work)
        await work.enter(f"left group {body.group}", msgspec.to_builtins(body))
    else:
        group = await _administered(work)
    rows = await work.rows(_LEAVE, (group.id, member.id))
    await end_unfounded(work, givers=[member.id])
    if rows and member.id != work.agent.id:
        what = f"take agent {body.agent} out of group {body.group}"
        seen = _seen_member(body, group.id, member.id, rows[0].role)
        await work.take(Irreversible("privilege", what, (seen,)))
    return Acknowledged(changed=bool(rows))


async def _role(work: OneGroup, group: int, member: int) -> str:
    """Return an agent's role in a group, which nobody else changes now; none: empty."""
    rows = await work.kernel_rows(_ROLE, (group, member))
    return str(rows[0].role) if rows else ""


def _seen_member(
    body: AccessGroupAdd | AccessGroupRemove, group: int, member: int, role: str
) -> Seen:
    had = role or "no member"
    called = f"what agent {body.agent} is in group {body.group}, so far {had}"
    return Seen("member", f"group {group} agent {member} {had}", name=called)


async def _found(work: OneGroup) -> Any:  # noqa: ANN401  a row
    name = work.body.group
    rows = await work.rows(_FIND, (work.agent.id, work.agent.tenant_id, name))
    if not rows:
        raise NotFound(
            f"there is no group {name!r}",
            field="group",
            remedy="see which there are: access.groups",
        )
    return rows[0]


async def _administered(work: OneGroup) -> Any:  # noqa: ANN401  a row
    row = await _found(work)
    if row.role != "admin" and not await is_administrator(work):
        raise denied(f"changing group {work.body.group!r}, whose administrator you are not,")
    return row


async def refresh(services: Services) -> int:
    """Make the map what Postgres says; return how many of its fields were not."""
    connection, key = services.functions.connection, services.keys.own("groups")
    async with services.store.as_steward() as cursor:
        await cursor.execute(_LOCK)  # an older view never overwrites a newer one
        await cursor.execute(_ALL)
        truth = {
            row.agent.encode(): msgspec.json.encode(row.groups) for row in await cursor.fetchall()
        }
        flat = await connection.execute("HGETALL", key)
        shown = dict(zip(flat[::2], flat[1::2], strict=True)) if isinstance(flat, list) else flat
        wrong = [pair for pair in truth.items() if shown.get(pair[0]) != pair[1]]
        gone = [agent for agent in shown if agent not in truth]
        if wrong:
            await connection.execute("HSET", key, *(part for pair in wrong for part in pair))
        if gone:
            await connection.execute("HDEL", key, *gone)
    return len(wrong) + len(gone)
