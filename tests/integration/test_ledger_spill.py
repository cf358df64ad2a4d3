"""Snapshots over the budget move to Postgres, are found there, and are never lost or left."""

from __future__ import annotations

import pytest

from aios_broker.contract.errors import Cancelled, DatabaseUnavailable
from aios_broker.ledger.ledger import Ledger
from aios_broker.ledger.spill import Spill, load_spilled
from aios_broker.postgres.database import Database
from aios_broker.queues.records import Lease
from tests.queue_user import QueueUser

SIZE_BYTES = 1_000


@pytest.fixture
def spill(user: QueueUser, database: Database) -> Spill:
    return Spill(user.redis, database, user.order)


def content(number: int) -> bytes:
    return bytes([number]) * SIZE_BYTES


async def suspended(user: QueueUser, count: int) -> list[str]:
    """Suspend `count` jobs, one after the other; return their ids, the oldest snapshot first."""
    ids = []
    for number in range(count):
        [job_id] = await user.submit(0)
        leases: list[Lease] = await user.claim(count)
        for lease in leases:
            assert lease.job_id == job_id
            await user.suspend(lease, content(number))
        await user.control.hold([job_id], module="llm")
        ids.append(job_id)
        await user.redis.execute("ZADD", user.keys.own("snapshots"), number, job_id)
    return ids


async def books(user: QueueUser) -> tuple[int, int]:
    """Return the total that is kept, and what the snapshots in Redis really hold."""
    total = int(await user.redis.execute("GET", user.keys.own("snapshot_total")) or 0)
    ids = await user.redis.execute("ZRANGE", user.keys.own("snapshots"), 0, -1)
    held = [await user.queue.snapshot(job_id.decode()) for job_id in ids]
    return total, sum(len(data or b"") for data in held)


async def test_the_oldest_go_until_the_budget_holds(
    user: QueueUser, spill: Spill, database_url: str
) -> None:
    ids = await suspended(user, 5)
    spilled = await spill.run(await user.lead(), 2 * SIZE_BYTES)
    assert (spilled.snapshots, spilled.moved_bytes) == (3, 3 * SIZE_BYTES)
    assert spilled.over_bytes == 0
    assert await books(user) == (2 * SIZE_BYTES, 2 * SIZE_BYTES)
    for number, job_id in enumerate(ids):
        in_redis = await user.queue.snapshot(job_id)
        in_postgres = await load_spilled(database_url, job_id)
        assert (in_redis, in_postgres) == (
            (None, content(number)) if number < 3 else (content(number), None)
        )


async def test_a_job_whose_snapshot_was_moved_still_has_one(user: QueueUser, spill: Spill) -> None:
    [job_id] = await suspended(user, 1)
    await spill.run(await user.lead(), 0)
    await user.control.release([job_id], module="llm")
    [lease] = await user.claim()
    assert lease.has_snapshot
    await user.suspend(lease, content(9))  # a new one goes to Redis again, and is counted
    assert await user.queue.snapshot(job_id) == content(9)
    assert await books(user) == (SIZE_BYTES, SIZE_BYTES)
    await user.finish(*(await user.claim()))
    assert await books(user) == (0, 0)
    assert await user.redis.execute("HLEN", user.keys.own("snapshot_bytes")) == 0


async def test_under_the_budget_nothing_moves(user: QueueUser, spill: Spill) -> None:
    await suspended(user, 2)
    assert (await spill.run(await user.lead(), 2 * SIZE_BYTES)).snapshots == 0


async def test_a_snapshot_that_changes_meanwhile_stays(
    user: QueueUser, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill = Spill(user.redis, database, user.order)
    changed, ended, quiet = await suspended(user, 3)
    store = spill._store

    async def store_while_they_live_on(snapshots: list[tuple[str, bytes]]) -> None:
        await store(snapshots)
        await user.redis.execute("SET", user.keys.snapshot(changed), content(8))
        await user.control.cancel([ended], Cancelled("enough"), module="llm")

    monkeypatch.setattr(spill, "_store", store_while_they_live_on)
    spilled = await spill.run(await user.lead(), 0)
    assert spilled.snapshots == 1
    assert await user.queue.snapshot(changed) == content(8)
    assert await load_spilled(database_url, changed) is None
    assert await load_spilled(database_url, ended) is None
    assert await load_spilled(database_url, quiet) == content(2)
    assert await books(user) == (SIZE_BYTES, SIZE_BYTES)


async def test_an_epoch_that_is_over_drops_nothing(user: QueueUser, spill: Spill) -> None:
    [job_id] = await suspended(user, 1)
    epoch = await user.lead()
    spilled = await spill.run(epoch - 1, 0)
    assert (spilled.snapshots, spilled.over_bytes) == (0, SIZE_BYTES)
    assert await user.queue.snapshot(job_id) == content(0)


async def test_one_that_is_replaced_leaves_what_its_successor_moved(
    user: QueueUser, spill: Spill, database_url: str
) -> None:
    [job_id] = await suspended(user, 1)
    epoch = await user.lead()
    snapshots = await spill._oldest(SIZE_BYTES)
    await spill.run(epoch, 0)

    await spill._store(snapshots)  # as one that has found the same snapshot before
    await spill._forget([job_id])

    assert await load_spilled(database_url, job_id) == content(0)


async def test_a_snapshot_of_an_ended_job_leaves_postgres_with_the_journal(
    user: QueueUser, spill: Spill, database: Database, database_url: str
) -> None:
    [job_id] = await suspended(user, 1)
    await spill.run(await user.lead(), 0)
    await user.control.cancel([job_id], Cancelled("enough"), module="llm")
    await Ledger(database).drain(user.redis)
    assert await load_spilled(database_url, job_id) is None


async def test_copies_that_a_dead_scheduler_left_are_swept(
    user: QueueUser, database: Database, database_url: str
) -> None:
    [ended, alive] = await user.submit(0, 0)
    await user.control.cancel([ended], Cancelled("enough"), module="llm")
    ledger = Ledger(database)
    await ledger.drain(user.redis)
    async with database.transaction() as cursor:
        await cursor.execute(
            "INSERT INTO snapshot SELECT unnest(%s::text[]), 'x', now()", [[ended, alive]]
        )
    await ledger.forget_snapshots()
    assert await load_spilled(database_url, ended) is None
    assert await load_spilled(database_url, alive) == b"x"


async def test_without_postgres_redis_keeps_them(user: QueueUser, tmp_path: object) -> None:
    [job_id] = await suspended(user, 1)
    nowhere = Database(f"postgresql:///db?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable):
        await Spill(user.redis, nowhere, user.order).run(await user.lead(), 0)
    assert await user.queue.snapshot(job_id) == content(0)
