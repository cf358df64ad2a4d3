"""Grants on notes and blocks, as the memory module asks for and gives them."""

from __future__ import annotations

from collections.abc import Sequence

from aios_broker.contract.access import ObjectKind
from aios_broker.contract.errors import UnknownAgent
from aios_broker.store.session import AgentRow, Cursor

ALL_VERBS = frozenset(("read", "write", "search", "share", "administer"))

_OF_AGENT = """
    (g.expires_at IS NULL OR g.expires_at > now()) AND g.tenant_id = %(tenant)s
    AND (g.agent_id = %(agent)s
         OR g.group_id IN (SELECT group_id FROM membership WHERE agent_id = %(agent)s))
"""
_VERBS = f"""
    SELECT DISTINCT unnest(g.verbs) AS verb FROM access_grant g
    WHERE g.owner_id = %(owner)s AND {_OF_AGENT}
      AND ((g.object_kind = 'block' AND g.object_id = %(owner)s::text)
           OR (g.object_kind = 'note' AND g.object_id = %(note)s))
"""
_HELD = f"""
    SELECT g.owner_id, g.object_kind, g.object_id, a.name FROM access_grant g
    JOIN agent a ON a.id = g.owner_id
    WHERE {_OF_AGENT} AND g.object_kind IN ('block', 'note')
      AND (%(verb)s = ANY(g.verbs) OR 'administer' = ANY(g.verbs))
"""


async def verbs_on_note(
    cursor: Cursor, agent: AgentRow, owner: AgentRow, note_id: str
) -> frozenset[str]:
    """Return what an agent may do with another's note; `administer` is all of it."""
    await cursor.execute(_VERBS, {"tenant": agent.tenant_id, "agent": agent.id,
                                  "owner": owner.id, "note": note_id})  # fmt: skip
    verbs = frozenset(row.verb for row in await cursor.fetchall())
    return ALL_VERBS if "administer" in verbs else verbs


class Reach:
    """What of others' memories an agent reaches with a verb: whole blocks, and single notes."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}  # of owners
        self.blocks: set[int] = set()
        self.notes: dict[int, set[str]] = {}


async def reach_of(cursor: Cursor, agent: AgentRow, verb: str) -> Reach:
    """Return what others granted this agent."""
    await cursor.execute(_HELD, {"tenant": agent.tenant_id, "agent": agent.id, "verb": verb})
    reach = Reach()
    for row in await cursor.fetchall():
        reach.names[row.owner_id] = row.name
        if row.object_kind == "block":
            reach.blocks.add(row.owner_id)
        else:
            reach.notes.setdefault(row.owner_id, set()).add(row.object_id)
    return reach


async def group_id(cursor: Cursor, tenant_id: int, name: str) -> int:
    """Return the number of a privilege group.

    Raises:
        UnknownAgent: the tenant has none of that name.
    """
    await cursor.execute(
        "SELECT id FROM privilege_group WHERE tenant_id = %s AND name = %s", (tenant_id, name)
    )
    row = await cursor.fetchone()
    if row is None:
        raise UnknownAgent(
            f"there is no privilege group {name!r}", field="group",
            remedy="correct the name, or make it (access.group_create)",
        )  # fmt: skip
    return int(row.id)


async def put_note_grant(
    cursor: Cursor, owner: AgentRow, kind: ObjectKind, object_id: str, *, agent_id: int | None,
    in_group: int | None, verbs: Sequence[str], ttl_s: float | None,
) -> None:  # fmt: skip
    """Grant verbs on the owner's own object, in place of an earlier grant to the same grantee."""
    await drop_note_grants(cursor, owner, kind, object_id, agent_id=agent_id, in_group=in_group)
    await cursor.execute(
        "INSERT INTO access_grant (tenant_id, owner_id, object_kind, object_id, agent_id, "
        "group_id, verbs, granted_by, expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, "
        "now() + %s * interval '1 second')",
        (owner.tenant_id, owner.id, kind, object_id, agent_id, in_group, list(verbs), owner.id,
         ttl_s),
    )  # fmt: skip


async def drop_note_grants(
    cursor: Cursor, owner: AgentRow, kind: ObjectKind, object_id: str, *,
    agent_id: int | None, in_group: int | None,
) -> int:  # fmt: skip
    """Take grants back; neither agent nor group: all on this object. Returns how many."""
    await cursor.execute(
        "DELETE FROM access_grant WHERE owner_id = %(owner)s AND object_kind = %(kind)s "
        "AND object_id = %(id)s AND (%(all)s OR agent_id = %(agent)s OR group_id = %(group)s)",
        {"owner": owner.id, "kind": kind, "id": object_id, "agent": agent_id, "group": in_group,
         "all": agent_id is None and in_group is None},
    )  # fmt: skip
    return cursor.rowcount
