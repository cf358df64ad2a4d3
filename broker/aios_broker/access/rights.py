"""What the operator alone gives: to administer a tenant, and to decide for its other agents."""

from collections.abc import Sequence
from typing import Literal, LiteralString

import msgspec
from msgspec import Struct

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.postgres.store import AgentRow, Cursor

Right = Literal["administer", "decide"]
_SET: dict[Right, LiteralString] = {
    "administer": "UPDATE agent SET administrator = %s WHERE id = %s",
    "decide": "UPDATE agent SET decides = %s WHERE id = %s",
}
_ALL = """
    SELECT a.name, t.name AS tenant, a.administrator, a.decides, r.name AS registered_by
      FROM agent a JOIN tenant t ON t.id = a.tenant_id LEFT JOIN agent r ON r.id = a.registered_by
     WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s)
       AND (%(agent)s::text IS NULL OR a.name = %(agent)s)
       AND (%(after)s::text[] IS NULL OR ARRAY[t.name, a.name] > %(after)s::text[])
     ORDER BY t.name, a.name LIMIT %(limit)s
"""


class KnownAgent(Struct, frozen=True):
    """An agent, and what the operator lets it do."""

    name: str
    tenant: str
    administrator: bool
    decides: bool
    registered_by: str | None  # an agent; None: the operator, or its own first syscall


async def set_right(cursor: Cursor, agent: AgentRow, right: Right, by: str, *, given: bool) -> None:
    """Give an agent a right or take it away; `by` is who the audit log names."""
    await cursor.execute(_SET[right], (given, agent.id))
    action = "access.allow" if given else "access.forbid"
    what = f"agent {agent.name}: {right}"
    await append_line(cursor, AuditLine(agent.tenant, by, action, what, "done"))


async def known_agents(
    cursor: Cursor,
    tenant: str | None,
    agent: str | None = None,
    *,
    limit: int | None = None,
    after: tuple[str, str] | None = None,
) -> Sequence[KnownAgent]:
    """Return the agents of a tenant, or of all tenants, by name; or the one of that name.

    `after`: tenant and name of the last one of the page before.
    """
    values = {
        "tenant": tenant,
        "agent": agent,
        "limit": limit,
        "after": None if after is None else list(after),
    }
    await cursor.execute(_ALL, values)
    return [msgspec.convert(row._asdict(), KnownAgent) for row in await cursor.fetchall()]
