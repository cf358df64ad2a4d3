"""Reach Postgres: one way to read its URL, and its failures as errors of ours."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict

from aios_broker.contract.errors import DatabaseUnavailable, InvalidConfig
from aios_broker.contract.limits import limit_met
from aios_broker.contract.urls import without_password

CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 30
TRANSACTION_TIMEOUT_S = 60.0  # also where the network swallows everything without a word
# Of the short ones that a service makes over and over: a Postgres that hangs is noticed sooner.
SERVICE_TIMEOUT_S = 10.0
SESSION_LIMITS = (
    f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'; SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'"
)
_DRIVER = "+psycopg"
LIMIT_MET = "AI001"  # raised by migrations/schema/limits.sql


def check_database_url(url: str) -> str:
    """Return the URL as libpq reads it, `postgresql://...`.

    Takes SQLAlchemy's form (`postgresql+psycopg://`) and the short one (`postgres://`) as well.

    Raises:
        InvalidConfig: It is not the URL of a Postgres.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.removesuffix(_DRIVER) not in ("postgresql", "postgres"):
        raise _bad_url(url, f"the scheme {scheme!r} is not known" if separator else "no scheme")
    plain = f"postgresql://{rest}"
    try:
        told = conninfo_to_dict(plain)
    except psycopg.ProgrammingError:  # whose text may have the password
        raise _bad_url(url, "libpq cannot read it") from None
    if "@" in str(told.get("host", "")):
        raise _bad_url(url, "write @ in a password as %40")
    return plain


def sqlalchemy_url(url: str) -> str:
    """Return the URL as SQLAlchemy reads it, with our driver named."""
    return check_database_url(url).replace("postgresql://", f"postgresql{_DRIVER}://", 1)


class Database:
    """One connection to Postgres, opened when first used and opened again when it broke.

    One that broke while nobody used it, as Postgres was started again, is no user's error: the
    next transaction begins on a new one. For one event loop; transactions take their turns.
    """

    def __init__(
        self, url: str, *, name: str = "aios", limit_s: float = TRANSACTION_TIMEOUT_S
    ) -> None:
        self.url = url
        self._limit_s = limit_s  # of a whole transaction
        self._conninfo = check_database_url(url)
        self._name = name
        self._turn = asyncio.Lock()
        self._connection: psycopg.AsyncConnection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[psycopg.AsyncCursor]:
        """Yield a cursor in a transaction: committed at the end of the block, or nothing of it.

        Raises:
            DatabaseUnavailable: no connection, a broken one, or no end in time. Whether a commit
                that was under way took effect is then not known.
        """
        async with self._turn:
            try:
                with database_errors(self.url):
                    async with asyncio.timeout(self._limit_s), AsyncExitStack() as begun:
                        connection = await self._begin(begun)
                        yield await begun.enter_async_context(connection.cursor())
            except (DatabaseUnavailable, asyncio.CancelledError):
                await self.aclose()
                raise

    async def _begin(self, begun: AsyncExitStack) -> psycopg.AsyncConnection:
        if self._connection is not None:
            try:
                await begun.enter_async_context(self._connection.transaction())
            except psycopg.OperationalError:  # it broke while it lay idle: nothing was asked yet
                await self.aclose()
            else:
                return self._connection
        self._connection = connection = await psycopg.AsyncConnection.connect(
            self._conninfo,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=self._name,
        )
        await connection.execute(SESSION_LIMITS)
        await begun.enter_async_context(connection.transaction())
        return connection

    async def aclose(self) -> None:
        """Close; safe to call twice. The next transaction opens a new connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Turn psycopg's "cannot connect" and "connection lost" into DatabaseUnavailable.

    A query that Postgres refuses, other than for a table or a column that is not there, passes:
    that is a defect of ours, not a condition.
    """
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise DatabaseUnavailable(
            f"the database has no tables of this release: {_first_line(error)}",
            remedy="run `aios migrate`",
        ) from error
    except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError) as error:
        raise DatabaseUnavailable(
            f"no answer from Postgres at {without_password(url)}: {_first_line(error)}",
            field="AIOS_DATABASE_URL",
            remedy="start it, or correct the URL",
            retry_after_s=1.0,
        ) from error
    except psycopg.DatabaseError as error:
        if error.sqlstate != LIMIT_MET:
            raise
        kind, _, most = (error.diag.message_primary or "").partition(" ")
        raise limit_met(kind, error.diag.message_detail or "", int(most)) from error


def _bad_url(url: str, why: str) -> InvalidConfig:
    return InvalidConfig(
        f"{without_password(url)!r} is not the URL of a Postgres: {why}",
        field="AIOS_DATABASE_URL",
        remedy="write postgresql://user:password@host:port/database",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
