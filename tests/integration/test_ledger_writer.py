"""Syscalls are taken for new, or remembered: also where that is wrong the table is right."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aios_broker.ledger import writer
from aios_broker.ledger.fold import SyscallRow
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from tests.queue_user import QueueUser

METADATA = '{"agent":"ada","kind":"llm.chat"}'


@pytest_asyncio.fixture
async def other(database_url: str) -> AsyncIterator[Ledger]:
    """The ledger of another scheduler."""
    database = Database(database_url)
    yield Ledger(database)
    await database.aclose()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


async def write(user: QueueUser, *lines: str) -> None:
    await user.redis.execute("XADD", user.keys.journal, "*", "q", "llm", "t", "\n".join(lines))


async def rows_of(ledger: Ledger) -> dict[str, SyscallRow]:
    return {row.job_id: row for row in await ledger.recent()}


async def events_of(ledger: Ledger, job_id: str) -> list[str]:
    history = await ledger.history(job_id)
    assert not any(transition.anomaly for transition in history)
    return [transition.event for transition in history]


async def test_an_id_that_comes_again_goes_on_with_its_row(user: QueueUser, ledger: Ledger) -> None:
    """It is taken for new, which it is not; the rest of the batch is entered with it, once."""
    await write(user, f"submit\tj1\t\tc\t{METADATA}", "claim\tj1\t1\tw\t", "finish\tj1\t1\tw\t5,10")
    await ledger.drain(user.redis)
    await write(
        user,
        f"submit\tj2\t\tc\t{METADATA}",
        f"submit\tj1\t\tc\t{METADATA}",
        "claim\tj1\t1\tv\t",
    )
    await write(user, "claim\tj2\t1\tw\t")
    drained = await ledger.drain(user.redis)

    assert (drained.transitions, drained.anomalies) == (4, 0)
    rows = await rows_of(ledger)
    assert (rows["j1"].state, rows["j1"].tokens, rows["j1"].worker) == ("running", 0, "v")
    assert (rows["j2"].state, rows["j2"].agent) == ("running", "ada")
    assert await events_of(ledger, "j1") == ["submit", "claim", "finish", "submit", "claim"]
    assert await events_of(ledger, "j2") == ["submit", "claim"]
    assert len(rows["j1"].entries.split()) == 2


async def test_what_is_remembered_is_forgotten_when_another_has_drained(
    user: QueueUser, ledger: Ledger, other: Ledger
) -> None:
    [job_id] = await user.submit(0)
    await ledger.drain(user.redis)
    [lease] = await user.claim()
    await other.drain(user.redis)
    await user.suspend(lease, b"snapshot", tokens=64)
    assert (await ledger.drain(user.redis)).anomalies == 0
    [lease] = await user.claim()
    await other.drain(user.redis)
    await user.finish(lease, tokens=16)
    await ledger.drain(user.redis)

    row = (await rows_of(ledger))[job_id]
    assert (row.state, row.attempts, row.slices, row.suspensions) == ("finished", 2, 2, 1)
    assert await events_of(ledger, job_id) == ["submit", "claim", "suspend", "claim", "finish"]


async def test_what_is_remembered_is_forgotten_when_a_batch_fails(
    user: QueueUser, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job_id] = await user.submit(0)
    await ledger.drain(user.redis)
    [lease] = await user.claim()

    async def dies(*_: object) -> None:
        raise ConnectionError("killed just before the commit")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_move", dies)
        with pytest.raises(ConnectionError):
            await ledger.drain(user.redis)
    assert (await ledger.drain(user.redis)).anomalies == 0  # it was claimed once, not twice
    await user.finish(lease)
    assert (await ledger.drain(user.redis)).anomalies == 0
    assert await events_of(ledger, job_id) == ["submit", "claim", "finish"]


async def test_a_remembered_row_that_somebody_deleted_is_made_again(
    user: QueueUser, ledger: Ledger, database: Database
) -> None:
    [job_id, left] = await user.submit(0, 0)
    await ledger.drain(user.redis)
    async with database.transaction() as cursor:
        await cursor.execute("DELETE FROM syscall WHERE job_id = %s", [job_id])
    await user.finish(*(await user.claim(2)))
    drained = await ledger.drain(user.redis)

    assert (drained.transitions, drained.anomalies) == (4, 1)  # a claim of what is not known
    assert {row.state for row in (await rows_of(ledger)).values()} == {"finished"}
    assert await events_of(ledger, left) == ["submit", "claim", "finish"]


async def test_more_syscalls_than_are_remembered(
    user: QueueUser, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "REMEMBERED_ROWS", 3)
    monkeypatch.setattr(writer, "UPDATED_ROWS", 2)
    ids = await user.submit(*[0] * 10)
    await ledger.drain(user.redis)
    leases = await user.claim(10)
    await ledger.drain(user.redis)
    await user.finish(*leases)
    assert (await ledger.drain(user.redis)).anomalies == 0
    rows = await rows_of(ledger)
    assert {rows[job_id].state for job_id in ids} == {"finished"}
    for job_id in ids:
        assert await events_of(ledger, job_id) == ["submit", "claim", "finish"]


async def test_odd_ids_do_not_stop_the_ledger(user: QueueUser, ledger: Ledger) -> None:
    """An empty one, one that begins in one batch and goes on in the next, a number too large."""
    for _ in range(2):
        await write(user, "claim\t\t1\tw\t", "claim\ta b\t1\tw\t", "claim\tbig\t9999999999\tw\t")
        await ledger.drain(user.redis)
    rows = await rows_of(ledger)
    assert set(rows) == {"", "a b", "big"}
    assert (rows[""].attempts, rows["big"].attempts) == (1, 0)
    assert [each.anomaly for each in await ledger.history("")] == [True, True]


async def test_a_snapshot_that_was_spilled_goes_with_its_syscall(
    user: QueueUser, ledger: Ledger, database: Database
) -> None:
    [job_id, alive] = await user.submit(0, 0)
    async with database.transaction() as cursor:
        for each in (job_id, alive):
            await cursor.execute("INSERT INTO snapshot VALUES (%s, 'x', now())", [each])
    [lease] = await user.claim()
    await user.finish(lease)
    await ledger.drain(user.redis)
    async with database.transaction() as cursor:
        await cursor.execute("SELECT job_id FROM snapshot")
        assert [row[0] for row in await cursor.fetchall()] == [
            each for each in (job_id, alive) if each != lease.job_id
        ]
