"""One connection to Postgres: what its user sees of one that breaks."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from aios_broker.contract.errors import DatabaseUnavailable
from aios_broker.postgres.database import Database
from tests.conftest import RunningPostgres

NAME = "aios-idle"
CUT = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{NAME}'"


@pytest_asyncio.fixture
async def database(postgres_server: RunningPostgres) -> AsyncIterator[Database]:
    """A connection that has been used once."""
    url = postgres_server.server.database_url("postgres")
    async with aclosing(Database(url, name=NAME)) as opened:
        assert await one(opened) == 1
        yield opened


async def one(database: Database) -> int:
    """Ask for the number one."""
    async with database.transaction() as cursor:
        await cursor.execute("SELECT 1")
        found = await cursor.fetchone()
    assert found is not None
    return int(found[0])


async def cut_in_use(database: Database, postgres: RunningPostgres) -> None:
    """End the connection in the middle of a transaction."""
    async with database.transaction() as cursor:
        postgres.execute(CUT)
        await cursor.execute("SELECT 1")


async def test_one_that_broke_while_idle_is_opened_again_unnoticed(
    database: Database, postgres_server: RunningPostgres
) -> None:
    postgres_server.execute(CUT)
    assert await one(database) == 1


async def test_one_that_broke_in_use_is_told_and_opened_again(
    database: Database, postgres_server: RunningPostgres
) -> None:
    with pytest.raises(DatabaseUnavailable, match="no answer from Postgres"):
        await cut_in_use(database, postgres_server)
    assert await one(database) == 1
