"""Who is suspended: an agent, or a whole tenant.

The truth is in Postgres; it is in Redis, too, where syscalls come in.
"""

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.contract.errors import InvalidConfig
from aios_broker.postgres.store import Store
from aios_broker.queues.control import Control
from aios_broker.queues.quota import Subject

_SUSPEND = """
    INSERT INTO suspension (tenant, agent, by) VALUES (%s, %s, %s)
    ON CONFLICT (tenant, agent) DO UPDATE SET by = excluded.by, at = now()
"""
_GO_ON = "DELETE FROM suspension WHERE tenant = %s AND agent = %s"
_SUSPENDED = "SELECT tenant, agent, by FROM suspension"


async def suspend(store: Store | None, control: Control, subject: Subject, *, who: str) -> int:
    """Refuse what an agent or a tenant asks from now on, and end what is alive; return how much.

    `store`: None where the kernel keeps no database. `who`: the operator.

    Raises:
        InvalidConfig: It is suspended, and the audit log cannot be written.
    """
    if store is None:
        return await control.stop(subject, who=who)
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


async def go_on(store: Store | None, control: Control, subject: Subject, *, who: str) -> bool:
    """Let an agent or a tenant go on; return whether it was suspended."""
    if store is None:
        return await control.go_on(subject)
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
