"""Which programs and syscalls there were lately, from the ledger: at a cost that has a bound."""

from datetime import datetime

from msgspec import Struct

from aios_broker.contract.names import Module, tree_of
from aios_broker.postgres.database import Database

LOOKED_AT = 4_000  # the syscalls that were submitted last, whoever's they are: some 5 ms

_READ = b"""
    SELECT tenant, agent, program, max(submitted_at) AS last_at, min(submitted_at) AS first_at,
           count(*) FILTER (WHERE ended_at IS NULL) AS alive,
           count(*) FILTER (WHERE state = 'failed') AS failed,
           count(*) FILTER (WHERE state = 'finished') AS finished,
           count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
           (array_agg(error_code ORDER BY ended_at DESC)
             FILTER (WHERE state = 'failed'))[1] AS error
      FROM (SELECT tenant, agent, program, submitted_at, ended_at, state, error_code
              FROM syscall ORDER BY submitted_at DESC LIMIT %(looked_at)s) AS newest
     WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
       AND (%(agent)s::text IS NULL OR agent = %(agent)s)
     GROUP BY tenant, agent, program
"""
_FAILED = b"""
    SELECT job_id, module, tenant, agent, program
      FROM (SELECT job_id, module, tenant, agent, program, state, submitted_at
              FROM syscall ORDER BY submitted_at DESC LIMIT %s) AS newest
     WHERE state = 'failed'
     ORDER BY submitted_at
"""
_RECENT = b"""
    SELECT job_id, program, submitted_at, state, error_code
      FROM (SELECT job_id, tenant, agent, program, submitted_at, state, error_code
              FROM syscall ORDER BY submitted_at DESC LIMIT %s) AS newest
     WHERE tenant = %s AND agent = %s
     ORDER BY submitted_at DESC LIMIT %s
"""
_BEYOND = b"SELECT submitted_at FROM syscall ORDER BY submitted_at DESC OFFSET %s LIMIT 1"


class RecentProgram(Struct, frozen=True):
    """What the newest syscalls of one program came to."""

    tenant: str
    agent: str
    program: str
    last_at: datetime  # submitted
    first_at: datetime  # of those that were looked at
    alive: int
    failed: int
    finished: int
    cancelled: int
    error: str | None  # the code of its last failure


async def recent_programs(
    database: Database, tenant: str | None = None, agent: str | None = None
) -> list[RecentProgram]:
    """Return the programs of the newest syscalls, in no order.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    asked = {"tenant": tenant, "agent": agent, "looked_at": LOOKED_AT}
    async with database.transaction() as cursor:
        await cursor.execute(_READ, asked)
        return [RecentProgram(*row) for row in await cursor.fetchall()]


class RecentSyscall(Struct, frozen=True):
    """One of the newest syscalls."""

    job_id: str
    program: str
    submitted_at: datetime
    state: str  # of the contract, as the ledger has it: it may be a moment behind
    error: str | None  # its code


async def recent_syscalls(
    database: Database, tenant: str, agent: str, limit: int
) -> list[RecentSyscall]:
    """Return an agent's syscalls among the newest of all, newest first.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    async with database.transaction() as cursor:
        await cursor.execute(_RECENT, (LOOKED_AT, tenant, agent, limit))
        return [RecentSyscall(*row) for row in await cursor.fetchall()]


class FailedSyscall(Struct, frozen=True):
    """One of the newest syscalls that has failed."""

    job_id: str
    module: Module
    tenant: str
    agent: str
    program: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Its tenant, its agent, and the tree that it is of."""
        return self.tenant, self.agent, tree_of(self.program)


class FailedSyscalls(Struct, frozen=True):
    """Those of the newest syscalls that have failed, oldest first."""

    found: list[FailedSyscall]
    looked_back_to: (
        datetime | None
    )  # what was submitted before was not looked at; None: nothing was


async def failed_syscalls(database: Database) -> FailedSyscalls:
    """Return those of the newest syscalls that have failed.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    async with database.transaction() as cursor:
        await cursor.execute(_FAILED, (LOOKED_AT,))
        found = [FailedSyscall(*row) for row in await cursor.fetchall()]
        await cursor.execute(_BEYOND, (LOOKED_AT,))
        beyond = await cursor.fetchone()
    return FailedSyscalls(found, None if beyond is None else beyond[0])
