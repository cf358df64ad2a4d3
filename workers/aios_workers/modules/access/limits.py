"""What the operator says of agents and tenants: how much they may have, and who is suspended.

The truth is in Postgres; who is suspended is in Redis, too, where syscalls come in.
"""

from dataclasses import dataclass

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.limits import DEFAULT_LIMITS, OBJECT_KINDS, ObjectKind
from aios_broker.postgres.store import Cursor, Store
from aios_broker.queues.control import Control
from aios_broker.queues.quota import Subject

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
_SUSPEND = """
    INSERT INTO suspension (tenant, agent, by) VALUES (%s, %s, %s)
    ON CONFLICT (tenant, agent) DO UPDATE SET by = excluded.by, at = now()
"""
_GO_ON = "DELETE FROM suspension WHERE tenant = %s AND agent = %s"
_SUSPENDED = "SELECT tenant, agent, by FROM suspension"


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


async def suspend(store: Store, control: Control, subject: Subject, *, who: str) -> int:
    """Refuse what an agent or a tenant asks from now on, and end what is alive; return how much.

    Raises:
        InvalidConfig: It is suspended, and the audit log cannot be written.
    """
    async with store.as_steward() as cursor:
        await cursor.execute(_SUSPEND, (subject.tenant, subject.agent, who))
    ended = await control.stop(subject, who=who)
    try:  # afterwards: whoever can spoil the log must not thereby go on
        async with store.as_steward() as cursor:
            await append_line(cursor, _line_of("access.suspend", subject, who, {"ended": ended}))
    except InvalidConfig as error:
        raise InvalidConfig(
            f"{subject.words} is suspended, and {ended} of its syscalls were ended, but the audit "
            f"log has no line on it: {error.message}",
            field=error.field,
            remedy=error.remedy,
        ) from error
    return ended


async def go_on(store: Store, control: Control, subject: Subject, *, who: str) -> bool:
    """Let an agent or a tenant go on; return whether it was suspended."""
    async with store.as_steward() as cursor:
        await cursor.execute(_GO_ON, (subject.tenant, subject.agent))
        was_known = cursor.rowcount > 0
        if was_known:
            await append_line(cursor, _line_of("access.resume", subject, who, {}))
    return await control.go_on(subject) or was_known


def _line_of(action: str, subject: Subject, who: str, detail: dict[str, int]) -> AuditLine:
    """Return the line on what the operator, `who` on its machine, did to an agent or a tenant."""
    what = f"agent {subject.agent}" if subject.agent else f"tenant {subject.tenant}"
    return AuditLine(subject.tenant, f"operator:{who}", action, what, "done", detail=detail)


async def tidy_suspensions(store: Store, control: Control) -> None:
    """Tell Redis who is suspended where it has lost that, and who is so no more."""
    told = await control.stopped()  # first: whoever changes both changes the table first
    async with store.as_steward() as cursor:
        await cursor.execute(_SUSPENDED, None)
        wanted = {
            Subject("agent" if row.agent else "tenant", row.tenant, row.agent): row.by
            for row in await cursor.fetchall()
        }
    for subject in wanted.keys() - told.keys():
        await control.stop(subject, who=wanted[subject])
    for subject in told.keys() - wanted.keys():
        await control.go_on(subject)
