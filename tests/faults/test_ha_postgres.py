"""Postgres is away, or hangs: syscalls go on, the journal waits, and ends up there exactly once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import pytest

from aios_broker.client.session import Session
from aios_broker.contract.errors import DatabaseUnavailable
from aios_broker.ledger.history import Archive
from aios_broker.ledger.journal import Position
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_workers.runtime.registry import tool_module
from tests.caller import running_worker
from tests.conftest import RunningPostgres
from tests.integration.test_sdk_faults import echo, session_of
from tests.processes import frozen_family
from tests.queue_user import QueueUser, queue_user
from tests.scheduler_scene import scheduler
from tests.session_user import sent
from tests.waiting import wait_until_async

BEFORE, DURING = 20, 60
HEARD_S = 20.0
CAUGHT_UP_S = 30.0
HANG_UP_S = 15.0  # the driver tries for 10 s to cancel what it gives up


@contextmanager
def stopped(postgres: RunningPostgres) -> Iterator[None]:
    """Stop the server for the length of a block."""
    postgres.process.stop()
    try:
        yield
    finally:
        postgres.process.start()


def frozen(postgres: RunningPostgres) -> AbstractContextManager[None]:
    """Freeze the server and all that serve its connections: it accepts, and says nothing."""
    return frozen_family(postgres.process.pid)


@asynccontextmanager
async def kernel(redis_url: str, database_url: str) -> AsyncIterator[Session]:
    async with (
        scheduler(redis_url, aios_database_url=database_url),
        running_worker(redis_url, "tool", await tool_module(8)),
        session_of(redis_url) as session,
    ):
        yield session


async def heard(session: Session, count: int) -> set[str]:
    calls = [sent(session, echo("x")) for _ in range(count)]
    async with asyncio.timeout(HEARD_S):
        await asyncio.gather(*(call.ended for call in calls))
    assert all(call.reply and call.reply.error is None for call in calls)
    return {call.id for call in calls}


async def entered_once(user: QueueUser, database_url: str, ids: set[str]) -> None:
    """Wait until the journal is empty; check that each syscall stands there, once per event."""

    async def drained() -> bool:
        return not await user.redis.execute("XLEN", user.keys.journal)

    await wait_until_async(drained, CAUGHT_UP_S)
    database = Database(database_url)
    archive = Archive(database, user.keys.prefix)
    changes, are_all = await archive.after(Position())
    while not are_all:
        more, are_all = await archive.after(changes[-1].position)
        changes += more
    async with database.transaction() as cursor:
        await cursor.execute("SELECT job_id FROM syscall WHERE state = 'finished'")
        finished = {row[0] for row in await cursor.fetchall()}
    await database.aclose()
    assert Counter((change.job_id, change.event) for change in changes) == {
        (job_id, event): 1 for job_id in ids for event in ("submit", "claim", "finish")
    }
    assert finished == ids


@pytest.mark.parametrize("way", [stopped, frozen])
async def test_syscalls_go_on_and_the_journal_catches_up(
    redis_url: str, postgres_server: RunningPostgres, database_url: str, way: type
) -> None:
    async with queue_user(redis_url, "tool") as user, kernel(redis_url, database_url) as session:
        ids = await heard(session, BEFORE)
        with way(postgres_server):
            ids |= await heard(session, DURING)
            assert await user.redis.execute("XLEN", user.keys.journal) > 0
            ids |= await heard(session, DURING)
        await entered_once(user, database_url, ids)


@pytest.mark.slow  # ten seconds of waiting
async def test_a_postgres_that_hangs_is_given_up_within_the_limit(
    redis_url: str, postgres_server: RunningPostgres, database_url: str
) -> None:
    database = Database(database_url, limit_s=0.5)
    async with queue_user(redis_url) as user:
        ledger = Ledger(database)
        await user.submit(0)
        await ledger.drain(user.redis)
        [job_id] = await user.submit(0)
        with frozen(postgres_server):
            began_s = time.monotonic()
            with pytest.raises(DatabaseUnavailable):
                await ledger.drain(user.redis)
            assert time.monotonic() - began_s < HANG_UP_S
        assert await user.redis.execute("XLEN", user.keys.journal) == 1
        assert (await ledger.drain(user.redis)).transitions == 1
        assert job_id in {row.job_id for row in await ledger.recent()}
    await database.aclose()


async def test_snapshots_over_the_budget_stay_in_redis_until_it_is_back(
    redis_url: str, postgres_server: RunningPostgres, database_url: str
) -> None:
    settings = {"aios_database_url": database_url, "aios_snapshot_budget_bytes": 0}
    async with queue_user(redis_url) as user:
        with stopped(postgres_server):
            async with scheduler(redis_url, **settings):
                await wait_until_async(lambda: user.redis.execute("EXISTS", "rq:aios:policy:llm"))
                [job_id] = await user.submit(0)
                [lease] = await user.claim()
                await user.suspend(lease, b"snapshot")
                epoch = await user.redis.execute("HGET", user.keys.own("scheduler"), "epoch")
                await user.order.expire(int(epoch))
                assert await user.queue.snapshot(job_id) == b"snapshot"

        async def moved() -> bool:
            return await user.queue.snapshot(job_id) is None

        async with scheduler(redis_url, **settings):
            await wait_until_async(moved, CAUGHT_UP_S)
        [lease] = await user.claim()
        assert lease.has_snapshot


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_minute_without_postgres(
    redis_url: str, postgres_server: RunningPostgres, database_url: str
) -> None:
    ids: set[str] = set()
    async with queue_user(redis_url, "tool") as user, kernel(redis_url, database_url) as session:
        for way in (stopped, frozen):
            with way(postgres_server):
                until_s = time.monotonic() + 60.0
                while time.monotonic() < until_s:
                    ids |= await heard(session, 10)
            await entered_once(user, database_url, ids)
