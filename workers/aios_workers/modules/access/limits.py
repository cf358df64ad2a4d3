"""What the operator says of agents and tenants: how much they may have."""

from dataclasses import dataclass

from aios_broker.contract.limits import DEFAULT_LIMITS, OBJECT_KINDS, ObjectKind
from aios_broker.postgres.store import Cursor, Store

_SET_LIMIT = """
    INSERT INTO object_limit (tenant_id, agent_id, kind, most)
    VALUES (%(tenant)s, %(agent)s, %(kind)s, %(most)s)
    ON CONFLICT (tenant_id, agent_id, kind) DO UPDATE SET most = excluded.most
"""
_UNSET_LIMIT = """
    DELETE FROM object_limit WHERE tenant_id IS NOT DISTINCT FROM %(tenant)s
       AND agent_id IS NOT DISTINCT FROM %(agent)s AND kind = %(kind)s
"""
_LIMITS = """
    SELECT coalesce(t.name, '') AS tenant, coalesce(a.name, '') AS agent, l.kind, l.most
      FROM object_limit l LEFT JOIN tenant t ON t.id = l.tenant_id
      LEFT JOIN agent a ON a.id = l.agent_id
     ORDER BY t.name NULLS FIRST, a.name NULLS FIRST, l.kind
"""
_TENANT = """
    INSERT INTO tenant (name) VALUES (%s) ON CONFLICT (name) DO UPDATE SET name = excluded.name
    RETURNING id
"""


@dataclass(frozen=True, slots=True)
class LimitRow:
    """How much of a kind an agent, each agent of a tenant, a tenant, or everybody may have."""

    tenant: str  # empty: everybody
    agent: str  # empty: of the whole tenant
    kind: ObjectKind
    most: int


async def limits(cursor: Cursor) -> list[LimitRow]:
    """Return all limits, the general ones first."""
    await cursor.execute(_LIMITS)
    kinds = {kind: kind for kind in OBJECT_KINDS}
    return [
        LimitRow(row.tenant, row.agent, kinds[row.kind], row.most)
        for row in await cursor.fetchall()
    ]


async def set_limit(store: Store, row: LimitRow) -> None:
    """Say how much there may be from the next insert on; what is there already stays."""
    values = await _values(store, row)
    async with store.as_steward() as cursor:
        await cursor.execute(_SET_LIMIT, values | {"most": row.most})


async def unset_limit(store: Store, row: LimitRow) -> None:
    """Let the wider limit hold again: the tenant's, everybody's, or the one that is built in."""
    built_in = DEFAULT_LIMITS[row.kind].most
    if not row.tenant and built_in is not None:
        await set_limit(store, LimitRow("", "", row.kind, built_in))
        return
    values = await _values(store, row)
    async with store.as_steward() as cursor:
        await cursor.execute(_UNSET_LIMIT, values)


async def _values(store: Store, row: LimitRow) -> dict[str, object]:
    """Return whose limit it is as the table names it; who is not known yet becomes known."""
    tenant_id = agent_id = None
    if row.agent:
        known = await store.vouched(row.agent, row.tenant)
        tenant_id, agent_id = known.tenant_id, known.id
    elif row.tenant:
        async with store.as_steward() as cursor:
            await cursor.execute(_TENANT, (row.tenant,))
            tenant_id = (await cursor.fetchall())[0].id
    return {"tenant": tenant_id, "agent": agent_id, "kind": row.kind}
