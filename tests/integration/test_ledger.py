"""The journal ends up in Postgres exactly once, whatever stands in it and whoever is away."""

from __future__ import annotations

import pytest
from psycopg import AsyncCursor

from aios_broker.contract.errors import Cancelled, DatabaseUnavailable, InvalidConfig
from aios_broker.ledger.history import Archive
from aios_broker.ledger.journal import Position, Transition
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database, check_database_url
from aios_broker.queues.keys import Keys
from tests.queue_user import QueueUser

METADATA = '{"agent":"ada","kind":"llm.chat"}'


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


async def write(user: QueueUser, *lines: str) -> None:
    await user.redis.execute("XADD", user.keys.journal, "*", "q", "llm", "t", "\n".join(lines))


async def told(database: Database) -> list[Transition]:
    changes, are_all = await Archive(database, Keys().prefix).after(Position())
    assert are_all
    return changes


async def test_a_syscall_is_found_with_its_history(user: QueueUser, ledger: Ledger) -> None:
    [job_id] = await user.submit(0)
    [lease] = await user.claim()
    await user.suspend(lease, b"snapshot", tokens=64)
    [lease] = await user.claim()
    await user.finish(lease, tokens=16)

    drained = await ledger.drain(user.redis)

    assert (drained.transitions, drained.anomalies, drained.behind) == (5, 0, 0)
    [row] = await ledger.recent()
    assert (row.job_id, row.state, row.agent, row.module) == (job_id, "finished", "ada", "llm")
    assert (row.attempts, row.slices, row.suspensions) == (2, 2, 1)
    assert (row.tokens, row.ran_ms, row.worker) == (80, 750, "worker")
    assert row.ended_at is not None
    assert row.started_at is not None
    assert row.submitted_at <= row.started_at <= row.ended_at
    history = await ledger.history(job_id)
    events = [transition.event for transition in history]
    assert events == ["submit", "claim", "suspend", "claim", "finish"]


async def test_how_jobs_fail_is_told(user: QueueUser, ledger: Ledger) -> None:
    [late, unwanted] = await user.submit(0, 0, deadline_s=600.0)
    await user.control.cancel([unwanted], Cancelled("away with it"), module="llm")
    [dead] = await user.submit(0, deadline_s=0.001)
    epoch = await user.lead()
    while not await user.order.expire(epoch):
        pass
    await ledger.drain(user.redis)
    rows = {row.job_id: row for row in await ledger.recent()}
    assert (rows[late].state, rows[late].error_code) == ("queued", None)
    assert (rows[unwanted].state, rows[unwanted].error_code) == ("cancelled", "cancelled")
    assert (rows[dead].state, rows[dead].error_code) == ("failed", "deadline-exceeded")


async def test_the_journal_is_drained_in_batches_and_trimmed(
    user: QueueUser, ledger: Ledger
) -> None:
    for _ in range(5):
        await user.submit(0)
    first = await ledger.drain(user.redis, limit=2)
    assert (first.entries, first.behind) == (2, 3)
    assert await user.redis.execute("XLEN", user.keys.journal) == 3
    assert (await ledger.drain(user.redis, limit=10)).entries == 3
    assert await user.redis.execute("XLEN", user.keys.journal) == 0
    assert len(await ledger.recent()) == 5
    assert (await ledger.drain(user.redis)).entries == 0


async def test_what_was_entered_and_not_trimmed_is_not_entered_twice(
    user: QueueUser, ledger: Ledger, database: Database
) -> None:
    await user.submit(0)
    [entry] = await user.redis.execute("XRANGE", user.keys.journal, "-", "+")
    await ledger.drain(user.redis)
    # Given a drain that died between its commit and the trimming
    await user.redis.execute("DEL", user.keys.journal)
    await user.redis.execute("XADD", user.keys.journal, entry[0], *entry[1])
    [job_id] = await user.submit(0)
    assert (await ledger.drain(user.redis)).entries == 1
    assert [each.event for each in await told(database)] == ["submit", "submit"]
    assert job_id in {row.job_id for row in await ledger.recent()}


async def test_rows_and_position_stand_or_fall_together(
    user: QueueUser, ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await user.submit(0, 0)

    async def dies(*_: object) -> None:
        raise ConnectionError("killed just before the commit")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_move", dies)
        with pytest.raises(ConnectionError):
            await ledger.drain(user.redis)
    assert await told(database) == []
    assert await ledger.recent() == []
    assert (await ledger.drain(user.redis)).transitions == 2


async def test_an_anomaly_is_kept_marked_and_said_and_stops_nothing(
    user: QueueUser, ledger: Ledger, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await write(
        user,
        f"submit\tj1\t\t\t{METADATA}",
        "finish\tj1\t1\tw\t1,1",  # never claimed
        "nonsense",
        "claim\tj\x002\tmany\tw\t",
        f"submit\tj3\t\t\t{METADATA}",
    )
    drained = await ledger.drain(user.redis)
    assert (drained.transitions, drained.anomalies) == (5, 3)
    marked = [each.anomaly for each in await told(database)]
    assert marked == [False, True, True, True, False]
    assert any("j1" in record.message for record in caplog.records)
    rows = {row.job_id: row.state for row in await ledger.recent()}
    assert rows["j1"] == "finished"
    assert rows["j3"] == "queued"


async def test_odd_characters_arrive_as_they_were_written(user: QueueUser, ledger: Ledger) -> None:
    detail = 'tab\tback\\slash \\N \r é 🙂 "quoted"'
    await write(user, f"cancel\tj\\1\t\t\t{detail}")
    await ledger.drain(user.redis)
    [transition] = await ledger.history("j\\1")
    assert (transition.detail, transition.attempt) == (detail, None)
    [row] = await ledger.recent()
    assert (row.job_id, row.error_code) == ("j\\1", detail)


async def test_entries_that_were_dropped_undrained_are_missed_aloud(
    user: QueueUser, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    await user.submit(0)
    await ledger.drain(user.redis)
    for _ in range(4):
        await user.submit(0)
    await user.redis.execute("XTRIM", user.keys.journal, "MAXLEN", 1)
    assert (await ledger.drain(user.redis)).entries == 1
    assert any("3 journal entries were dropped" in record.message for record in caplog.records)


async def test_two_that_drain_at_once_enter_everything_once(
    user: QueueUser, database_url: str, ledger: Ledger, database: Database
) -> None:
    other_database = Database(database_url)
    other = Ledger(other_database)
    for _ in range(20):
        await user.submit(0, 0)
    while (await ledger.drain(user.redis, limit=3)).behind:
        await other.drain(user.redis, limit=3)
    await ledger.drain(user.redis)
    await other_database.aclose()
    changes = await told(database)
    assert len({each.job_id for each in changes}) == len(changes) == 40


async def test_a_database_without_tables_says_what_to_do(
    user: QueueUser, database: Database, ledger: Ledger
) -> None:
    async with database.transaction() as cursor:
        await drop_all(cursor)
    await user.submit(0)
    with pytest.raises(DatabaseUnavailable, match="aios migrate"):
        await ledger.drain(user.redis)


async def test_a_database_of_the_release_before_says_what_to_do(
    database: Database, ledger: Ledger
) -> None:
    async with database.transaction() as cursor:
        await cursor.execute("ALTER TABLE syscall DROP COLUMN entries")
    with pytest.raises(DatabaseUnavailable, match="aios migrate"):
        await ledger.history("j1")


async def drop_all(cursor: AsyncCursor) -> None:
    await cursor.execute("DROP TABLE syscall, journal_entry, journal_position, snapshot")


async def test_no_postgres_is_a_typed_error_and_the_journal_stays(
    user: QueueUser, tmp_path: object
) -> None:
    await user.submit(0)
    nowhere = Database(f"postgresql://someone:secret@/db?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable) as caught:
        await Ledger(nowhere).drain(user.redis)
    assert caught.value.field == "AIOS_DATABASE_URL"
    assert "secret" not in str(caught.value)
    assert await user.redis.execute("XLEN", user.keys.journal) == 1


@pytest.mark.parametrize("url", ["mysql://db", "nothing", "postgresql://h/db?bogus=1", ""])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        check_database_url(url)
    assert caught.value.field == "AIOS_DATABASE_URL"


def test_a_position_is_where_the_journal_says() -> None:
    assert Position.parse("1700000000000-3").at.year == 2023
