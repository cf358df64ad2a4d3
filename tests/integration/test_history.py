"""What happened is read whole and once, while the scheduler moves it from Redis to Postgres."""

from __future__ import annotations

import asyncio

import pytest

from aios_broker.ledger.history import Filter, History, HistoryEvent
from aios_broker.ledger.journal import Position
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from tests.queue_user import QueueUser


@pytest.fixture
def history(user: QueueUser, database: Database) -> History:
    return History(user.redis, user.keys, database)


async def life(user: QueueUser) -> str:
    """Let a syscall be submitted, run twice and end: five changes."""
    [job_id] = await user.submit(0)
    [lease] = await user.claim()
    await user.suspend(lease, b"snapshot", tokens=64)
    [lease] = await user.claim()
    await user.finish(lease, tokens=16)
    return job_id


def events(happenings: list[HistoryEvent]) -> list[str]:
    return [each.transition.event for each in happenings]


LIFE = ["submit", "claim", "suspend", "claim", "finish"]


@pytest.mark.parametrize("drained", [0, 2, 100])
async def test_it_does_not_matter_how_much_was_drained(
    user: QueueUser, database: Database, history: History, drained: int
) -> None:
    job_id = await life(user)
    if drained:
        await Ledger(database).drain(user.redis, limit=drained)
    seen = await history.after(Position())

    assert events(seen) == LIFE
    assert {each.transition.job_id for each in seen} == {job_id}
    assert {each.metadata.agent for each in seen} == {"ada"}
    assert await history.after(seen[-1].transition.position) == []
    assert await history.end() == seen[-1].transition.position


async def test_without_a_ledger_the_journal_alone_is_read(user: QueueUser) -> None:
    await life(user)
    alone = History(user.redis, user.keys)

    assert events(await alone.last(Filter(), 3)) == LIFE[-3:]


async def test_the_facts_of_an_older_syscall_are_found(
    user: QueueUser, database: Database, history: History
) -> None:
    await user.submit(0)
    await Ledger(database).drain(user.redis)
    [lease] = await user.claim()
    [seen] = await history.after(await Ledgered(database).end())
    assert (seen.transition.event, seen.metadata.agent) == ("claim", "ada")

    await user.redis.execute("DEL", user.keys.job(lease.job_id))
    fresh = History(user.redis, user.keys, database)
    assert (await fresh.last(Filter(), 1))[0].metadata.agent == "ada"


class Ledgered:
    """Reads where the ledger ends, whatever the journal holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def end(self) -> Position:
        async with self._database.transaction() as cursor:
            await cursor.execute("SELECT stream_ms, stream_seq FROM journal_position")
            row = await cursor.fetchone()
            assert row is not None
            return Position(*row)


async def test_what_is_wanted_is_found_in_both_places(
    user: QueueUser, database: Database, history: History
) -> None:
    first = await life(user)
    await Ledger(database).drain(user.redis)
    second = await life(user)

    for job_id in (first, second):
        assert events(await history.last(Filter(job_id[:12]), 100)) == LIFE
    assert events(await history.last(Filter(event="suspend"), 100)) == ["suspend", "suspend"]
    assert len(await history.last(Filter(agent="ada", program="main", module="llm"), 100)) == 10
    for nobody in (Filter(agent="bob"), Filter(tenant="other"), Filter(module="tool")):
        assert await history.last(nobody, 100) == []
    assert events(await history.last(Filter(), 7)) == [*LIFE[-2:], *LIFE]


async def test_whoever_follows_misses_nothing_while_it_is_drained(
    user: QueueUser, database: Database, history: History, database_url: str
) -> None:
    lives, draining = 30, Database(database_url)

    async def drain() -> None:
        ledger = Ledger(draining)
        while True:
            await ledger.drain(user.redis, limit=3)

    async def work() -> list[str]:
        return [await life(user) for _ in range(lives)]

    background = asyncio.create_task(drain())
    working = asyncio.create_task(work())
    seen: list[HistoryEvent] = []
    async with asyncio.timeout(30):
        while len(seen) < lives * len(LIFE):
            seen += await history.after(seen[-1].transition.position if seen else Position())
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    await draining.aclose()

    by_job: dict[str, list[str]] = {}
    for each in seen:
        by_job.setdefault(each.transition.job_id, []).append(each.transition.event)
    assert list(by_job) == await working
    assert all(told == LIFE for told in by_job.values())
