"""Grants on objects: who may do what with what is another's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from aios_broker.contract.access import ObjectKind
from aios_broker.contract.names import Verb
from aios_broker.store.session import AgentRow, Cursor

_ALLOWED = """
    SELECT EXISTS (
        SELECT FROM access_grant g
         WHERE g.tenant_id = %(tenant)s
           AND ((g.object_kind = %(kind)s AND g.object_id = %(object)s)
                OR (g.object_kind = 'directory' AND g.object_id = ANY(%(ancestors)s)))
           AND (g.expires_at IS NULL OR g.expires_at > now())
           AND g.verbs && ARRAY[%(verb)s, 'administer']
           AND (g.agent_id = %(agent)s OR g.group_id IN
                (SELECT group_id FROM membership WHERE agent_id = %(agent)s))
    ) AS is_allowed
"""
_PUT = """
    INSERT INTO access_grant (tenant_id, owner_id, object_kind, object_id, agent_id, group_id,
                              verbs, granted_by, expires_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_DROP = """
    DELETE FROM access_grant WHERE owner_id = %s AND object_kind = %s AND object_id = %s
       AND (%s::bigint IS NULL OR agent_id = %s) AND (%s::bigint IS NULL OR group_id = %s)
"""


async def allowed(
    cursor: Cursor, agent: AgentRow, kind: ObjectKind, object_id: str, verb: Verb, *,
    ancestors: Sequence[int] = (),
) -> bool:  # fmt: skip
    """Return whether a grant that holds now lets an agent do this with another's object."""
    await cursor.execute(_ALLOWED, {
        "tenant": agent.tenant_id, "kind": kind, "object": object_id, "verb": verb,
        "agent": agent.id, "ancestors": [str(each) for each in ancestors],
    })  # fmt: skip
    row = await cursor.fetchone()
    return bool(row and row.is_allowed)


async def put_grant(  # noqa: PLR0913  the columns of one row
    cursor: Cursor, agent: AgentRow, kind: ObjectKind, object_id: str, *,
    agent_id: int | None = None, group_id: int | None = None, verbs: Sequence[Verb],
    expires_at: datetime | None = None,
) -> None:  # fmt: skip
    """Grant verbs on an object of the agent's own."""
    await cursor.execute(_PUT, (
        agent.tenant_id, agent.id, kind, object_id, agent_id, group_id, list(verbs), agent.id,
        expires_at,
    ))  # fmt: skip


async def drop_grants(
    cursor: Cursor, agent: AgentRow, kind: ObjectKind, object_id: str, *,
    agent_id: int | None = None, group_id: int | None = None,
) -> int:  # fmt: skip
    """Take grants on an object of the agent's own back; return how many there were."""
    await cursor.execute(_DROP, (agent.id, kind, object_id, agent_id, agent_id, group_id, group_id))
    return cursor.rowcount
