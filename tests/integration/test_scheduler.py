"""The scheduler service: settings, the published policy, its sweeps, and servers that go away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_broker.queues.records import Lease
from aios_broker.scheduler.config import SchedulerConfig
from tests.conftest import RunningPostgres, RunningRedis
from tests.queue_user import QueueUser
from tests.scheduler_process import SchedulerProcess
from tests.scheduler_scene import scheduler
from tests.waiting import AT_ONCE_S, wait_until, wait_until_async


async def policy_of(user: QueueUser) -> str:
    exists = await user.redis.execute("EXISTS", user.keys.own("policy:llm"))
    return (await user.control.policy("llm")).name if exists else ""


async def until_policy(user: QueueUser, name: str) -> None:
    async def published() -> bool:
        return await policy_of(user) == name

    await wait_until_async(published)


async def until_waiting(user: QueueUser, ids: list[str]) -> None:
    async def stands() -> bool:
        return await user.waiting() == ids

    await wait_until_async(stands)


async def test_the_configured_policy_is_published_with_its_limits(user: QueueUser) -> None:
    settings = {
        "aios_policy": "priority",
        "aios_quantum_s": 0.25,
        "aios_quantum_tokens": 8,
        "aios_max_waiting": 7,
        "aios_max_losses": 2,
    }
    async with scheduler(user.url, **settings):
        await until_policy(user, "priority")
        row = await user.control.policy("llm")

        async def stands_for_all() -> bool:
            return all([await user.control.policy(module) == row for module in MODULES])

        await wait_until_async(stands_for_all)
    assert (row.preempt, row.quantum_s, row.quantum_tokens) == ("score", 0.25, 8)
    assert (row.max_waiting, row.max_losses) == (7, 2)


async def test_what_was_changed_while_it_ran_outlives_a_restart(user: QueueUser) -> None:
    async with scheduler(user.url, aios_policy="rr"):
        await until_policy(user, "rr")
        await user.control.set_policy(
            "llm", replace(await user.control.policy("llm"), name="fifo", preempt="none")
        )
    async with scheduler(user.url, aios_policy="rr"):
        await until_leader(user)
        assert await policy_of(user) == "fifo"


async def test_a_changed_setting_is_published(user: QueueUser) -> None:
    async with scheduler(user.url, aios_policy="rr"):
        await until_policy(user, "rr")
    async with scheduler(user.url, aios_policy="fifo"):
        await until_policy(user, "fifo")


async def test_a_redis_that_lost_its_data_gets_the_policy_again(user: QueueUser) -> None:
    async with scheduler(user.url, aios_policy="priority"):
        await until_policy(user, "priority")
        await user.redis.execute("FLUSHALL")
        await until_policy(user, "priority")


async def until_leader(user: QueueUser) -> None:
    key = user.keys.own("scheduler")

    async def led() -> bool:
        seconds, micros = await user.redis.execute("TIME")
        until_ms = await user.redis.execute("HGET", key, "until")
        return int(until_ms or 0) > int(seconds) * 1000 + int(micros) // 1000

    await wait_until_async(led)


async def test_the_order_follows_the_policy_as_it_changes(user: QueueUser) -> None:
    async with scheduler(user.url, aios_policy="rr"):
        await until_policy(user, "rr")
        [nice] = await user.submit(10)
        await asyncio.sleep(0.002)  # another millisecond: another submission time
        [plain] = await user.submit(0)
        assert await user.waiting() == [nice, plain]
        await user.publish("priority")
        await until_waiting(user, [plain, nice])
        [urgent] = await user.submit(-10)
        await until_waiting(user, [urgent, plain, nice])
        await user.publish("fifo")
        await until_waiting(user, [nice, plain, urgent])


async def test_jobs_of_a_dead_worker_wait_again(user: QueueUser) -> None:
    async with scheduler(user.url):
        ids = await user.submit(0, 0)
        leases: list[Lease] = await user.claim(2, lease_s=0.05)
        assert len(leases) == 2

        async def both_wait() -> bool:
            return sorted(await user.waiting()) == sorted(ids)

        await wait_until_async(both_wait)


async def test_deadlines_end_jobs(user: QueueUser) -> None:
    async with scheduler(user.url):
        await user.submit(0, deadline_s=0.05)
        await until_waiting(user, [])
        assert (await user.control.queue("llm")).failed == 1


async def test_a_job_that_a_stock_tool_deleted_is_answered(user: QueueUser) -> None:
    async with scheduler(user.url):
        [job_id] = await user.submit(0)
        await user.redis.execute("LREM", user.keys.queue("llm"), 0, job_id)
        await user.redis.execute("DEL", user.keys.job(job_id))

        async def answered() -> bool:
            return bool(await user.redis.execute("LLEN", user.keys.reply("me")))

        await wait_until_async(answered)


async def test_the_ledger_is_kept(user: QueueUser, database_url: str) -> None:
    database = Database(database_url)
    ledger = Ledger(database)
    async with scheduler(user.url, aios_database_url=database_url):
        [job_id] = await user.submit(0)
        await user.finish(*(await user.claim()))

        async def entered() -> bool:
            return [row.state for row in await ledger.recent()] == ["finished"]

        await wait_until_async(entered)
    assert len(await ledger.history(job_id)) == 3
    await database.aclose()


async def test_snapshots_over_the_budget_are_moved(user: QueueUser, database_url: str) -> None:
    async with scheduler(user.url, aios_database_url=database_url, aios_snapshot_budget_bytes=100):
        [job_id] = await user.submit(0)
        [lease] = await user.claim()
        await user.suspend(lease, b"x" * 500)

        async def gone() -> bool:
            return await user.queue.snapshot(job_id) is None

        await wait_until_async(gone)
        assert (await user.claim())[0].has_snapshot


async def test_without_postgres_scheduling_goes_on_and_the_journal_waits(
    user: QueueUser, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scheduler(
        user.url, aios_policy="priority", aios_database_url=f"postgresql:///db?host={tmp_path}"
    ):
        await until_policy(user, "priority")
        nice, plain = await user.submit(10, 0)
        await until_waiting(user, [plain, nice])

        async def said() -> bool:
            return any("Postgres" in record.message for record in caplog.records)

        await wait_until_async(said)
        [urgent] = await user.submit(-10)
        await until_waiting(user, [urgent, plain, nice])
        await asyncio.sleep(0.5)  # several tries: they are not to be heard
    assert await user.redis.execute("XLEN", user.keys.journal) == 2
    assert sum("Postgres" in record.message for record in caplog.records) == 1


async def test_the_ledger_catches_up_when_postgres_comes_back(
    user: QueueUser, postgres_server: RunningPostgres, database_url: str
) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    database = Database(database_url)
    ledger = Ledger(database)
    postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    async with scheduler(user.url, aios_database_url=database_url):
        await until_leader(user)
        ids = await user.submit(*[0] * 5)
        await asyncio.sleep(0.3)
        assert await user.redis.execute("XLEN", user.keys.journal) == 1
        postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

        async def entered() -> bool:
            return {row.job_id for row in await ledger.recent()} == set(ids)

        await wait_until_async(entered)
    await database.aclose()


async def test_redis_may_go_away_and_come_back(
    redis_server: RunningRedis, user: QueueUser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with scheduler(user.url, aios_policy="priority"):
        await until_policy(user, "priority")
        await asyncio.to_thread(redis_server.process.stop)
        try:
            await wait_until_async(
                lambda: "redis-unavailable" in caplog.text or "Redis" in caplog.text
            )
            await asyncio.sleep(1.0)
        finally:
            redis_server.process.start()  # from this thread: the server ends with its starter's
        await wait_until_async(lambda: "over after" in caplog.text)
        nice, plain = await user.submit(10, 0)
        await until_waiting(user, [plain, nice])
    assert sum(record.levelname == "WARNING" for record in caplog.records) <= 6


def test_idle_it_uses_next_to_no_processor(redis_url: str, tmp_path: Path) -> None:
    with SchedulerProcess(redis_url, tmp_path / "log") as process:
        wait_until(lambda: "leads" in process.log)
        before_s = process.cpu_s()
        measured_s = 3.0
        with pytest.raises(TimeoutError):
            wait_until(lambda: process.process.poll() is not None, timeout_s=measured_s)
        assert (process.cpu_s() - before_s) / measured_s < 0.05


def test_sigterm_ends_it_well_and_gives_up_the_lead(redis_url: str, tmp_path: Path) -> None:
    with SchedulerProcess(redis_url, tmp_path / "log", aios_scheduler_lease_s=30) as first:
        wait_until(lambda: "leads" in first.log)
        with SchedulerProcess(redis_url, tmp_path / "other", aios_scheduler_lease_s=1) as second:
            assert first.stop() == 0
            wait_until(lambda: "leads, epoch 2" in second.log, timeout_s=AT_ONCE_S)


def test_a_wrong_setting_ends_it_at_once_by_name(redis_url: str, tmp_path: Path) -> None:
    with SchedulerProcess(redis_url, tmp_path / "log", aios_policy="lottery") as process:
        assert process.process.wait(10) == 2
        assert "AIOS_POLICY" in process.log
        assert "fifo, rr, priority" in process.log


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIOS_QUANTUM_S", "0"),
        ("AIOS_QUANTUM_S", "nan"),
        ("AIOS_QUANTUM_TOKENS", "many"),
        ("AIOS_MAX_WAITING", "-1"),
        ("AIOS_DATABASE_URL", "mysql://db"),
        ("AIOS_REDIS_URL", "http://redis"),
        ("AIOS_SCHEDULER_LEASE", "2"),
    ],
)
def test_settings_are_checked_by_name(variable: str, value: str) -> None:
    variables = {"AIOS_REDIS_URL": "redis://localhost", variable: value}
    with pytest.raises(InvalidConfig) as refused:
        SchedulerConfig.from_environment(variables)
    assert refused.value.field == variable
