"""A scheduler that dies, hangs or is replaced: no job is lost, the order stays or comes back."""

from __future__ import annotations

import time
from pathlib import Path

from tests.queue_user import QueueUser
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async

TAKE_OVER_S = 10.0  # on a machine that others use; the promise is measured by a benchmark


def scheduler(user: QueueUser, log_path: Path) -> SchedulerProcess:
    return SchedulerProcess(user.url, log_path, aios_policy="priority")


async def until_it_leads(process: SchedulerProcess, *, epoch: int) -> None:
    await wait_until_async(lambda: f"leads, epoch {epoch}" in process.log)


async def until_waiting(user: QueueUser, ids: list[str]) -> None:
    async def stands() -> bool:
        return await user.waiting() == ids

    await wait_until_async(stands)


async def epoch(user: QueueUser) -> int:
    return int(await user.redis.execute("HGET", user.keys.own("scheduler"), "epoch"))


async def test_workers_go_on_in_the_last_order_then_first_in_first_out(
    user: QueueUser, tmp_path: Path
) -> None:
    with scheduler(user, tmp_path / "log") as process:
        await until_it_leads(process, epoch=1)
        nice, plain, urgent = await user.submit(10, 0, -10)
        await until_waiting(user, [urgent, plain, nice])

        # Given a scheduler that is gone, and jobs that come after it
        process.kill()
        late = await user.submit(0, -20)

        # When a worker goes on, then it takes them in the last order, then as they came
        leases = [lease for _ in range(5) for lease in await user.claim()]
        assert [lease.job_id for lease in leases] == [urgent, plain, nice, *late]
        assert all(await user.finish(*leases))


async def test_started_again_it_goes_on(user: QueueUser, tmp_path: Path) -> None:
    with scheduler(user, tmp_path / "log") as process:
        await until_it_leads(process, epoch=1)
        process.kill()
        nice, plain, urgent = await user.submit(10, 0, -10)
        process.start()
        await until_it_leads(process, epoch=2)
        await until_waiting(user, [urgent, plain, nice])


async def test_killed_at_any_moment_it_loses_and_doubles_no_job(
    user: QueueUser, tmp_path: Path
) -> None:
    submitted: list[str] = []
    with scheduler(user, tmp_path / "log") as process:
        for life in range(1, 4):
            await until_it_leads(process, epoch=life)
            for batch in range(10):
                submitted += await user.submit(*[(batch * 7 + k) % 40 - 20 for k in range(50)])
            process.kill()
            assert sorted(await user.waiting()) == sorted(submitted)
            process.start()


async def test_only_one_of_two_leads_and_the_other_takes_over(
    user: QueueUser, tmp_path: Path
) -> None:
    with scheduler(user, tmp_path / "first") as first:
        await until_it_leads(first, epoch=1)
        with scheduler(user, tmp_path / "second") as second:
            # Given a standby that is there, and does not lead
            async def both_are_there() -> bool:
                clients = await user.redis.execute("CLIENT", "LIST")
                return bool(clients.count(b"name=aios-scheduler") == 2)

            await wait_until_async(both_are_there)
            nice, plain = await user.submit(10, 0)
            await until_waiting(user, [plain, nice])
            assert await epoch(user) == 1
            assert "leads" not in second.log

            # When the leader dies, then the standby leads in time, and keeps the order
            started_s = time.monotonic()
            first.kill()
            await until_it_leads(second, epoch=2)
            assert time.monotonic() - started_s < TAKE_OVER_S
            [urgent] = await user.submit(-10)
            await until_waiting(user, [urgent, plain, nice])


async def test_one_that_hung_and_wakes_up_as_a_stranger_changes_nothing(
    user: QueueUser, tmp_path: Path
) -> None:
    with scheduler(user, tmp_path / "first") as first:
        await until_it_leads(first, epoch=1)
        with scheduler(user, tmp_path / "second") as second:
            first.pause()
            await until_it_leads(second, epoch=2)
            second.pause()  # nobody but the one that woke up could change the order now
            waiting = await user.submit(10, 0, -10)
            first.go_on()
            await wait_until_async(lambda: "does not lead any more" in first.log)
            second_leads = await epoch(user) == 2
            if second_leads:  # else the lease of the one that hangs has run out meanwhile
                assert await user.waiting() == waiting
            second.go_on()
            await until_waiting(user, waiting[::-1])
