"""Grants on objects: who may do what with what is another's.

A grant on a directory reaches all that is below it, one on a block all notes of it; `administer`
includes the other verbs. One that has expired is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aios_broker.contract.access import Grant, ObjectKind, ObjectRef
from aios_broker.contract.errors import UnknownAgent
from aios_broker.contract.names import Verb
from aios_broker.postgres.session import AgentRow, Cursor, only_row
from aios_workers.modules.access.objects import names_of

ALL_VERBS = frozenset(("read", "write", "search", "share", "administer"))

# Of grants `g` that hold now for an agent, itself or by a group.
_HOLDS = """
    g.tenant_id = %(tenant)s AND (g.expires_at IS NULL OR g.expires_at > now())
    AND (g.agent_id = %(agent)s OR g.group_id IN
         (SELECT group_id FROM membership WHERE agent_id = %(agent)s))
"""
_VERBS = f"""
    SELECT DISTINCT unnest(g.verbs) AS verb FROM access_grant g
     WHERE (g.object_kind, g.object_id) IN
           (SELECT * FROM unnest(%(kinds)s::text[], %(ids)s::text[])) AND {_HOLDS}
"""
_REACH = f"""
    SELECT g.owner_id, g.object_kind, g.object_id, a.name FROM access_grant g
      JOIN agent a ON a.id = g.owner_id
     WHERE {_HOLDS} AND g.object_kind IN ('block', 'note')
       AND g.verbs && ARRAY[%(verb)s, 'administer']
"""
_PUT = """
    INSERT INTO access_grant (tenant_id, owner_id, object_kind, object_id, agent_id, group_id,
                              verbs, granted_by, expires_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id
"""
_DROP = """
    DELETE FROM access_grant WHERE owner_id = %s AND object_kind = %s AND object_id = %s
       AND (%s OR agent_id = %s OR group_id = %s) AND id <> %s
"""
_LIST = f"""
    SELECT g.object_kind, g.object_id, o.name AS owner, a.name AS to_agent, p.name AS to_group,
           g.verbs, b.name AS by_name, extract(epoch FROM g.expires_at)::float8 AS expires_at
      FROM access_grant g JOIN agent o ON o.id = g.owner_id JOIN agent b ON b.id = g.granted_by
      LEFT JOIN agent a ON a.id = g.agent_id LEFT JOIN privilege_group p ON p.id = g.group_id
     WHERE CASE WHEN %(held)s THEN {_HOLDS} ELSE g.owner_id = %(agent)s END
     ORDER BY g.id DESC
"""
_GROUP = "SELECT id FROM privilege_group WHERE tenant_id = %s AND name = %s"


@dataclass(frozen=True, slots=True)
class Grantee:
    """An agent or a group, by its number; neither: everybody, where grants are taken back."""

    agent_id: int | None = None
    group_id: int | None = None

    @property
    def is_everybody(self) -> bool:
        """Whether nobody is named."""
        return self.agent_id is None and self.group_id is None


class Reach:
    """What of others' memories an agent reaches with a verb: whole blocks, and single notes."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}  # of owners
        self.blocks: set[int] = set()
        self.notes: dict[int, set[str]] = {}


async def verbs_on(
    cursor: Cursor, agent: AgentRow, objects: Sequence[tuple[str, str]]
) -> frozenset[str]:
    """Return what grants let an agent do with another's object.

    `objects`: it and what it lies in, as kinds and ids.
    """
    await cursor.execute(
        _VERBS,
        {
            "tenant": agent.tenant_id,
            "agent": agent.id,
            "kinds": [kind for kind, _ in objects],
            "ids": [each for _, each in objects],
        },
    )
    verbs = frozenset(row.verb for row in await cursor.fetchall())
    return ALL_VERBS if "administer" in verbs else verbs


async def verbs_on_note(
    cursor: Cursor, agent: AgentRow, owner: AgentRow, note_id: str
) -> frozenset[str]:
    """Return what an agent may do with another's note."""
    return await verbs_on(cursor, agent, [("note", note_id), ("block", str(owner.id))])


async def reach_of(cursor: Cursor, agent: AgentRow, verb: Verb) -> Reach:
    """Return what of their memories others granted this agent."""
    await cursor.execute(_REACH, {"tenant": agent.tenant_id, "agent": agent.id, "verb": verb})
    reach = Reach()
    for row in await cursor.fetchall():
        reach.names[row.owner_id] = row.name
        if row.object_kind == "block":
            reach.blocks.add(row.owner_id)
        else:
            reach.notes.setdefault(row.owner_id, set()).add(row.object_id)
    return reach


async def group_number(cursor: Cursor, tenant_id: int, name: str) -> int:
    """Return the number of a privilege group.

    Raises:
        UnknownAgent: the tenant has none of that name.
    """
    await cursor.execute(_GROUP, (tenant_id, name))
    row = await cursor.fetchone()
    if row is None:
        raise UnknownAgent(
            f"there is no privilege group {name!r}",
            field="group",
            remedy="correct the name, or make it (access.group_create)",
        )
    return int(row.id)


async def put_grant(  # noqa: PLR0913  the columns of one row
    cursor: Cursor,
    agent: AgentRow,
    kind: ObjectKind,
    object_id: str,
    to: Grantee,
    *,
    verbs: Sequence[str],
    expires_at: datetime | None = None,
    owner: AgentRow | None = None,
) -> None:
    """Grant verbs on an object, in place of what it or, if it administers it, others granted there.

    `owner`: whose it is, if it is not the agent's own; row-level security asks whether it may.
    """
    whose = owner or agent
    await cursor.execute(
        _PUT,
        (
            agent.tenant_id,
            whose.id,
            kind,
            object_id,
            to.agent_id,
            to.group_id,
            list(verbs),
            agent.id,
            expires_at,
        ),
    )
    row = await only_row(cursor)  # first, since what it stands in for may be what allows it
    await drop_grants(cursor, whose, kind, object_id, to, but=row.id)


async def drop_grants(
    cursor: Cursor, owner: AgentRow, kind: ObjectKind, object_id: str, to: Grantee, *, but: int = 0
) -> int:
    """Take grants on an object back, all but one; return how many there were."""
    await cursor.execute(
        _DROP, (owner.id, kind, object_id, to.is_everybody, to.agent_id, to.group_id, but)
    )
    return cursor.rowcount


async def list_grants(cursor: Cursor, agent: AgentRow, *, held: bool) -> tuple[Grant, ...]:
    """Return the grants on an agent's objects, or those that it holds, newest first."""
    await cursor.execute(_LIST, {"tenant": agent.tenant_id, "agent": agent.id, "held": held})
    rows = await cursor.fetchall()
    names = await names_of(cursor, [(row.object_kind, row.object_id) for row in rows])
    return tuple(_as_grant(row, names) for row in rows)


def _as_grant(row: Any, names: dict[tuple[str, str], str]) -> Grant:  # noqa: ANN401  a row
    name = names.get((row.object_kind, row.object_id), "")
    to = f"agent:{row.to_agent}" if row.to_agent is not None else f"group:{row.to_group}"
    return Grant(
        ObjectRef(row.object_kind, name, row.owner),
        to,
        tuple(row.verbs),
        row.by_name,
        row.expires_at,
    )
