"""The ledger forgets what is older than it is told to keep, and nothing else."""

from __future__ import annotations

import time

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_broker.ledger import ledger as ledger_file
from aios_broker.ledger.history import Archive
from aios_broker.ledger.journal import Position
from aios_broker.ledger.ledger import Forgotten, Ledger
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.scheduler.config import SchedulerConfig
from tests.queue_user import QueueUser
from tests.scheduler_scene import scheduler
from tests.waiting import wait_until_async

METADATA = '{"agent":"ada","kind":"llm.chat"}'
DAY_MS = 24 * 3600 * 1000
NOW_MS = int(time.time() * 1000)
CUTOFF_MS = NOW_MS - 30 * DAY_MS


async def write(user: QueueUser, days_ago: float, *lines: str) -> None:
    at_ms = NOW_MS - round(days_ago * DAY_MS)
    await user.redis.execute(
        "XADD", user.keys.journal, f"{at_ms}-*", "q", "llm", "t", "\n".join(lines)
    )


def life(job_id: str) -> tuple[str, str, str]:
    return (
        f"submit\t{job_id}\t\tc\t{METADATA}",
        f"claim\t{job_id}\t1\tw\t",
        f"finish\t{job_id}\t1\tw\t1,1",
    )


async def left(database: Database) -> list[tuple[str, str]]:
    changes, _ = await Archive(database, "rq").after(Position())
    return [(change.job_id, change.event) for change in changes]


async def test_old_history_goes_and_what_lives_stays(user: QueueUser, database: Database) -> None:
    ledger = Ledger(database)
    await write(user, 35, *life("old"), f"submit\tslow\t\tc\t{METADATA}")
    await write(user, 5, *life("young"), "claim\tslow\t1\tw\t")
    await ledger.drain(user.redis)

    assert await ledger.forget(CUTOFF_MS) == Forgotten(entries=1, syscalls=1)
    assert {row.job_id for row in await ledger.recent()} == {"young", "slow"}
    young = [("young", event) for event in ("submit", "claim", "finish")]
    assert await left(database) == [*young, ("slow", "claim")]
    assert [each.event for each in await ledger.history("slow")] == ["claim"]
    await write(user, 0, "finish\tslow\t1\tw\t1,1")
    assert (await ledger.drain(user.redis)).anomalies == 0


async def test_it_goes_in_small_batches(
    user: QueueUser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "FORGOTTEN_ENTRIES", 2)
    monkeypatch.setattr(ledger_file, "FORGOTTEN_SYSCALLS", 2)
    for number in range(5):
        await write(user, 40 - number, *life(f"j{number}"))
    ledger = Ledger(database)
    await ledger.drain(user.redis)
    assert await ledger.forget(CUTOFF_MS) == Forgotten(2, 2, more=True)
    assert {job_id for job_id, _ in await left(database)} == {"j2", "j3", "j4"}  # the oldest go
    assert await ledger.forget(CUTOFF_MS) == Forgotten(2, 2, more=True)
    assert await ledger.forget(CUTOFF_MS) == Forgotten(1, 1)
    assert await ledger.forget(CUTOFF_MS) == Forgotten()


async def test_another_deployments_entries_stay(user: QueueUser, database: Database) -> None:
    await write(user, 40, *life("j1"))
    await Ledger(database).drain(user.redis)
    assert (await Ledger(database, Keys("{b}:rq")).forget(CUTOFF_MS)).entries == 0
    assert len(await left(database)) == 3


@pytest.mark.parametrize(("keep_days", "kept"), [(1, False), (0, True)])
async def test_the_leading_scheduler_sees_to_it(
    user: QueueUser, database: Database, database_url: str, keep_days: int, *, kept: bool
) -> None:
    ledger = Ledger(database)
    await write(user, 2, *life("old"))
    await ledger.drain(user.redis)
    async with scheduler(user.url, aios_database_url=database_url, aios_ledger_keep_days=keep_days):
        for _ in range(2):  # entered twice: each of its duties had its turn
            [job_id] = await user.submit(0)

            async def entered(job_id: str = job_id) -> bool:
                return job_id in {row.job_id for row in await ledger.recent()}

            await wait_until_async(entered)

        async def forgotten() -> bool:
            return "old" not in {row.job_id for row in await ledger.recent()}

        if kept:
            assert not await forgotten()
        else:
            await wait_until_async(forgotten)


@pytest.mark.parametrize("value", ["-1", "x", "40000", "1.5"])
def test_a_wrong_number_of_days_is_refused(value: str) -> None:
    variables = {"AIOS_REDIS_URL": "redis://localhost", "AIOS_LEDGER_KEEP_DAYS": value}
    with pytest.raises(InvalidConfig) as caught:
        SchedulerConfig.from_environment(variables)
    assert caught.value.field == "AIOS_LEDGER_KEEP_DAYS"
