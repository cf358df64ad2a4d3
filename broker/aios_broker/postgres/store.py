"""Transactions on the store, each as somebody: row-level security holds for all of them.

    store = Store(url, name="aios-memory")
    async with store.as_agent(agent) as cursor: ...     # sees what that agent may see
    async with store.as_steward() as cursor: ...        # the kernel's own work, over all agents

Cursors return rows as named tuples. A block is committed at its end, or nothing of it is.

Connections are given in turns, by tenant and then by agent (`places.py`): who writes much, or waits
for locks of its own, waits for itself. What the kernel does itself has connections beside those.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.rows import namedtuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from aios_broker.contract.errors import AccessDenied, DatabaseUnavailable, UnknownAgent
from aios_broker.places import Holder, Places, Shares
from aios_broker.postgres.database import (
    CONNECT_TIMEOUT_S,
    SERVICE_TIMEOUT_S,
    SESSION_LIMITS,
    TRANSACTION_TIMEOUT_S,
    check_database_url,
    database_errors,
)

# Connections of one process: those of agents' transactions, and what is left for the kernel's own.
SHARES = Shares(places=8, of_tenant=6, of_agent=4)
POOL_SIZE = 12
Cursor = psycopg.AsyncCursor[Any]  # named tuples, of whatever was selected

_AS_AGENT = """
    SELECT set_config('role', 'aios_agent', true) AS role,
           set_config('aios.agent_id', %s, true) AS agent,
           set_config('aios.tenant_id', %s, true) AS tenant,
           (SELECT count(pg_advisory_xact_lock(hashtextextended(name, 0)))
              FROM unnest(%s::text[]) AS name) AS locks
"""
_AS_STEWARD = "SET LOCAL ROLE aios_steward"
_FIND = """
    SELECT a.id, a.tenant_id, a.administrator FROM agent a
      JOIN tenant t ON t.id = a.tenant_id WHERE t.name = %s AND a.name = %s
"""


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent as the store knows it."""

    id: int
    tenant_id: int
    name: str
    tenant: str
    administrator: bool

    @property
    def holder(self) -> Holder:
        """In whose name it holds places."""
        return Holder(self.tenant, self.name)


class KernelConnection(psycopg.AsyncConnection[Any]):
    """A connection of a store; with what the audit log's lines are hashed with."""

    audit_key: bytes | None = None


class Store:
    """A pool of connections to Postgres, opened when first used."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "aios",
        limit_s: float = SERVICE_TIMEOUT_S,
        audit_key: bytes | None = None,
    ) -> None:
        """`audit_key`: None where no line of the audit log is to be written."""
        self.url = url
        self.places = Places(SHARES)
        self._limit_s = limit_s  # of a whole transaction, the wait for a connection included
        self._audit_key = audit_key
        self._pool = AsyncConnectionPool(
            check_database_url(url),
            connection_class=KernelConnection,
            min_size=0,
            max_size=POOL_SIZE,
            open=False,
            timeout=limit_s,
            configure=self._configure,
            check=AsyncConnectionPool.check_connection,
            kwargs={
                "autocommit": True,
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": name,
                "row_factory": namedtuple_row,
            },
        )
        self._known: dict[tuple[str, str], AgentRow] = {}
        self._is_open = False

    def limits_s(self) -> Iterator[float]:
        """Yield the limits of the transactions of one try after the other: each twice as long.

        Work that takes longer than one limit, such as many words on a loaded machine, would else
        begin anew for ever.
        """
        limit_s = self._limit_s
        while True:
            yield limit_s
            limit_s = min(2 * limit_s, TRANSACTION_TIMEOUT_S)

    @asynccontextmanager
    async def as_agent(
        self, agent: AgentRow, *locks: str, limit_s: float | None = None
    ) -> AsyncIterator[Cursor]:
        """Yield a cursor in a transaction that sees what the agent may see.

        `locks` are names: of those who name the same one, one at a time gets its cursor. They are
        taken in this order, and free again when the transaction ends. `limit_s`: of this one.

        Raises:
            DatabaseUnavailable: no connection, a broken one, or no end in time. Whether a commit
                that was under way took effect is then not known.
            AccessDenied: row-level security refused a row that was to be written.
        """
        values = (str(agent.id), str(agent.tenant_id), list(locks))
        async with (
            self.places.one(agent.holder),
            self._transaction(_AS_AGENT, values, limit_s=limit_s) as cursor,
        ):
            yield cursor

    @asynccontextmanager
    async def as_steward(self, *, limit_s: float | None = None) -> AsyncIterator[Cursor]:
        """Yield a cursor in a transaction of the kernel's own: it sees all agents' rows.

        `limit_s`: of this one, where it waits for something beside the database.
        """
        async with self._transaction(_AS_STEWARD, limit_s=limit_s) as cursor:
            yield cursor

    async def agent(self, name: str, tenant: str, cursor: Cursor) -> AgentRow:
        """Return an agent of a tenant that the cursor sees; it is remembered for this process.

        Raises:
            UnknownAgent: the tenant has none of that name.
        """
        row = self._known.get((tenant, name)) or await self._find(name, tenant, cursor)
        if row is None:
            raise UnknownAgent(
                f"tenant {tenant!r} has no agent {name!r}",
                field="agent",
                remedy="correct the name, or register the agent (access.register)",
            )
        return row

    async def vouched(self, name: str, tenant: str) -> AgentRow:
        """Return an agent that a trusted door or its token vouches for; make it known if new."""
        row = self._known.get((tenant, name))
        if row is not None:
            return row
        async with self.as_steward() as cursor:
            row = await self._find(name, tenant, cursor)
            if row is not None:
                return row
            await cursor.execute(
                "INSERT INTO tenant (name) VALUES (%s) ON CONFLICT DO NOTHING", (tenant,)
            )
            await cursor.execute(
                "INSERT INTO agent (tenant_id, name) SELECT id, %s FROM tenant WHERE name = %s "
                "ON CONFLICT DO NOTHING",
                (name, tenant),
            )
        async with self.as_steward() as cursor:  # remembered only now that it is committed
            row = await self._find(name, tenant, cursor)
        if row is None:
            raise UnknownAgent(
                f"agent {name!r} of tenant {tenant!r} was deleted just now",
                field="agent",
                remedy="send the syscall again",
            )
        return row

    def forget(self, name: str, tenant: str) -> None:
        """Read an agent anew at the next look: its row has changed."""
        self._known.pop((tenant, name), None)

    async def aclose(self) -> None:
        """Close all connections; safe to call twice."""
        if self._is_open:
            self._is_open = False
            await self._pool.close()

    async def _configure(self, connection: KernelConnection) -> None:
        connection.audit_key = self._audit_key
        await connection.execute(SESSION_LIMITS)

    async def _find(self, name: str, tenant: str, cursor: Cursor) -> AgentRow | None:
        await cursor.execute(_FIND, (tenant, name))
        found = await cursor.fetchone()
        if found is None:
            return None
        row = AgentRow(found.id, found.tenant_id, name, tenant, found.administrator)
        self._known[tenant, name] = row
        return row

    @asynccontextmanager
    async def _transaction(
        self,
        opening: LiteralString,
        values: Sequence[object] = (),
        *,
        limit_s: float | None = None,
    ) -> AsyncIterator[Cursor]:
        """Yield a cursor in a transaction that has begun with a statement: one round trip for both.

        The pool commits when the block ends, or takes all of it back.
        """
        if not self._is_open:
            self._is_open = True
            await self._pool.open()
        with database_errors(self.url):
            try:
                async with (
                    asyncio.timeout(limit_s or self._limit_s),
                    self._pool.connection() as connection,
                    connection.cursor() as cursor,
                ):
                    async with connection.pipeline():
                        await connection.execute("BEGIN", prepare=False)
                        await cursor.execute(opening, values or None)
                    yield cursor
            except PoolTimeout as error:
                raise DatabaseUnavailable(
                    f"no connection to Postgres within {self._limit_s:g} s",
                    field="AIOS_DATABASE_URL",
                    remedy="start it, or allow it more connections",
                    retry_after_s=1.0,
                ) from error
            except psycopg.errors.InsufficientPrivilege as error:
                raise AccessDenied(
                    "the row is another agent's, and no grant allows this",
                    field="owner",
                    remedy="ask its owner for a grant (access.grant)",
                ) from error


async def only_row(cursor: Cursor) -> Any:  # noqa: ANN401  a row of whatever was selected
    """Return the row of a query that always has one."""
    row = await cursor.fetchone()
    assert row is not None
    return row
