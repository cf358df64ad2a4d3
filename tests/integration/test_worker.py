"""The worker: every job that is taken ends in exactly one ending, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial

import pytest
import redis
from msgspec.structs import replace

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import Cancelled, UnknownCore
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import Need, Syscall, ToolEcho
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.order import Order
from aios_broker.queues.records import Ending, JobMetadata, Submission, WorkerCard
from aios_workers.runtime.executor import Done
from aios_workers.runtime.loop import Limits
from aios_workers.runtime.registry import LoadedModule, tool_module
from aios_workers.runtime.runs import Run
from tests.caller import Caller, redis_away, running_worker
from tests.conftest import RunningRedis
from tests.queue_user import submitted
from tests.waiting import wait_until_async


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    yield caller
    await caller.aclose()


class Gate:
    """A handler whose jobs wait until they are let through, or do what the text says."""

    def __init__(self, capacity: int = 8) -> None:
        self.capacity = capacity
        self.cores: tuple[str, ...] = ()
        self.open = asyncio.Event()
        self.began: list[str] = []
        self.cancelled: list[str] = []

    async def run(self, run: Run, syscall: Syscall) -> Done:
        assert isinstance(syscall.body, ToolEcho)
        self.began.append(syscall.id)
        if syscall.body.text == "raise":
            raise ValueError("the handler is broken")
        if syscall.body.text == "time out":
            raise TimeoutError("a service did not answer")
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(syscall.id)
            raise
        return Done(EchoResult(f"{run.lease.attempt}:{syscall.body.text}"))

    async def close(self) -> None:
        """Nothing to free."""

    def loaded(self) -> LoadedModule:
        return LoadedModule(lambda _: self)


async def test_two_hundred_calls_at_once(caller: Caller) -> None:
    async with running_worker(caller.url, "tool", await tool_module(64)):
        ids = await caller.submit(*(ToolEcho(f"call {n}") for n in range(200)))
        replies = await caller.hear_all(ids)

    assert [reply.unwrap() for reply in replies] == [EchoResult(f"call {n}") for n in range(200)]
    assert all(reply.timings.attempts == 1 and reply.timings.slices == 1 for reply in replies)
    assert (await caller.control.queue("tool")).running == 0


async def test_under_load_a_call_costs_far_less_than_a_round_trip(caller: Caller) -> None:
    ids = await caller.submit(*(ToolEcho() for _ in range(2_000)))
    await caller.connection.execute("CONFIG", "RESETSTAT")
    async with running_worker(caller.url, "tool", await tool_module(64)):
        await caller.hear_all(ids)

    with redis.Redis.from_url(caller.url) as client:
        calls = client.info("commandstats")["cmdstat_fcall"]["calls"]
    assert calls < 2_000 / 10


async def test_calls_one_after_the_other_are_answered_without_waiting(caller: Caller) -> None:
    async with running_worker(caller.url, "tool", await tool_module(4)):
        for number in range(20):
            [syscall_id] = await caller.submit(ToolEcho(str(number)))
            assert (await caller.hear(syscall_id)).unwrap() == EchoResult(str(number))


async def test_no_more_than_its_slots_run_at_once(caller: Caller) -> None:
    gate = Gate(capacity=3)
    ids = await caller.submit(*(ToolEcho() for _ in range(10)))
    async with running_worker(caller.url, "tool", gate.loaded()):
        await wait_until_async(lambda: len(gate.began) == 3)
        assert (await caller.control.queue("tool")).waiting == 7
        gate.open.set()
        await caller.hear_all(ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise", "the module tool failed: ValueError"),
        ("time out", "the module tool failed: TimeoutError"),
    ],
)
async def test_a_handler_that_raises_is_answered(caller: Caller, text: str, message: str) -> None:
    async with running_worker(caller.url, "tool", Gate().loaded()):
        [syscall_id] = await caller.submit(ToolEcho(text))
        reply = await caller.hear(syscall_id)

    assert reply.error is not None
    assert (reply.error.code, reply.error.message) == ("module-error", message)


async def test_a_handler_that_outlives_the_deadline_is_cut_off(caller: Caller) -> None:
    gate = Gate()
    async with running_worker(caller.url, "tool", gate.loaded()):
        [syscall_id] = await caller.submit(ToolEcho(), deadline_s=0.2)
        reply = await caller.hear(syscall_id)

    assert reply.error is not None
    assert reply.error.code == "deadline-exceeded"
    assert gate.cancelled == [syscall_id]


async def test_a_cancelled_call_stops_on_its_worker(caller: Caller) -> None:
    gate = Gate()
    async with running_worker(caller.url, "tool", gate.loaded()):
        [syscall_id] = await caller.submit(ToolEcho())
        await wait_until_async(lambda: gate.began == [syscall_id])

        await caller.control.cancel([syscall_id], Cancelled("enough"), module="tool")

        await wait_until_async(lambda: gate.cancelled == [syscall_id])
        reply = await caller.hear(syscall_id)
    assert reply.error is not None
    assert reply.error.message == "enough"


@pytest.mark.parametrize("command", ["stop-job", "stop-execution", "kill-horse"])
async def test_rqs_commands_stop_a_call(caller: Caller, command: str) -> None:
    gate = Gate()
    async with running_worker(caller.url, "tool", gate.loaded()):
        [syscall_id] = await caller.submit(ToolEcho())
        await wait_until_async(lambda: gate.began == [syscall_id])

        await publish(caller, {"command": command, "job_id": syscall_id})

        reply = await caller.hear(syscall_id)
    assert reply.error is not None
    assert reply.error.code == "cancelled"


async def test_rqs_shutdown_command_drains_the_worker(caller: Caller) -> None:
    async with running_worker(caller.url, "tool", await tool_module(4)) as worker:
        await wait_until_async(lambda: caller.connection.execute("SCARD", "rq:workers"))
        await publish(caller, "no command", {"command": "dance"}, {"command": "shutdown"})
        await wait_until_async(lambda: worker.is_stopping)


async def test_a_drain_waits_for_what_runs_and_claims_nothing_more(caller: Caller) -> None:
    gate = Gate(capacity=1)
    async with running_worker(caller.url, "tool", gate.loaded()) as worker:
        first, second = await caller.submit(ToolEcho("1"), ToolEcho("2"))
        await wait_until_async(lambda: gate.began == [first])
        worker.stop()
        gate.open.set()

        assert (await caller.hear(first)).unwrap() == EchoResult("1:1")
    assert await caller.state(second) == "queued"
    assert await caller.connection.execute("SCARD", "rq:workers") == 0


async def test_what_does_not_end_within_the_drain_goes_back_to_the_queue(caller: Caller) -> None:
    gate = Gate()
    async with running_worker(caller.url, "tool", gate.loaded(), Limits(2.0, 0.1)):
        [syscall_id] = await caller.submit(ToolEcho("x"))
        await wait_until_async(lambda: gate.began == [syscall_id])
    assert await caller.state(syscall_id) in ("queued", "suspended")

    gate.open.set()
    async with running_worker(caller.url, "tool", gate.loaded()):
        assert (await caller.hear(syscall_id)).unwrap() == EchoResult("2:x")


async def test_a_lost_lease_ends_the_run_and_its_result_is_dropped(caller: Caller) -> None:
    gate = Gate()
    async with running_worker(caller.url, "tool", gate.loaded(), Limits(0.6, 1.0)):
        [syscall_id] = await caller.submit(ToolEcho())
        await wait_until_async(lambda: gate.began == [syscall_id])

        await caller.connection.execute("ZREM", "rq:aios:leases:tool", f"{syscall_id}:1")

        await wait_until_async(lambda: gate.cancelled == [syscall_id])
    assert syscall_id not in caller.replies
    assert await caller.connection.execute("EXISTS", f"rq:results:{syscall_id}") == 0


async def test_a_worker_that_is_lent_its_own_lost_job_ends_the_earlier_run(caller: Caller) -> None:
    gate, order = Gate(), Order(caller.functions, "tool")
    epoch = (await order.lead("scheduler", 60.0)).epoch
    never_renewed = Limits(lease_s=60.0, drain_s=1.0)
    async with running_worker(caller.url, "tool", gate.loaded(), never_renewed):
        [syscall_id] = await caller.submit(ToolEcho("x"))
        await wait_until_async(lambda: gate.began == [syscall_id])

        await caller.connection.execute("ZADD", "rq:aios:leases:tool", 1, f"{syscall_id}:1")
        assert await order.reclaim(epoch) == 1

        await wait_until_async(lambda: gate.began == [syscall_id] * 2)
        assert gate.cancelled == [syscall_id]  # before the second began
        gate.open.set()
        assert (await caller.hear(syscall_id)).unwrap() == EchoResult("2:x")


async def test_a_late_finish_changes_nothing(caller: Caller) -> None:
    queue = caller.queue("tool")
    [syscall_id] = await caller.submit(ToolEcho("late"))
    [lease] = await queue.claim("slow", ClaimRequest(1, 0.0))
    await caller.connection.execute("ZREM", "rq:aios:leases:tool", f"{syscall_id}:1")

    late = Ending(lease, "finished", b'{"kind":"reply","id":"x"}', 1.0)
    settled = await queue.finish("slow", [late], ClaimRequest(0, 1.0))

    assert settled.accepted == [False]
    assert await caller.connection.execute("EXISTS", f"rq:results:{syscall_id}") == 0


async def test_a_call_that_is_sent_again_needs_no_worker_of_its_core(caller: Caller) -> None:
    call = Submission(
        "0" * 32, b"[]", JobMetadata("ada", "llm.chat"), "", needs=(Need("core", "far-core"),)
    )
    far = WorkerCard("w", "llm", 1, "h", 1, (CoreCard(name="far-core", model="far"),))
    await caller.queue("llm").register(far)
    assert await submitted(caller.queue("llm"), [call]) == ["queued"]
    await caller.connection.execute("DEL", "rq:aios:core_cards")

    assert await submitted(caller.queue("llm"), [call]) == ["known"]
    with pytest.raises(UnknownCore):
        await submitted(caller.queue("llm"), [replace(call, job_id="1" * 32)])


async def test_a_job_for_another_core_does_not_make_an_idle_worker_spin(caller: Caller) -> None:
    async with running_worker(caller.url, "tool", await tool_module(4)):
        [syscall_id] = await caller.submit(ToolEcho())
        await caller.hear(syscall_id)
        # The job below can be taken by no worker of this queue, ever.
        await caller.connection.execute(
            "HSET", "rq:job:stuck", "data", "x", "status", "queued", "aios_needs", "core:far-core"
        )
        await caller.connection.execute("RPUSH", "rq:queue:tool", "stuck")
        before = await commands(caller)
        await asyncio.sleep(0.5)  # no condition to wait for: this is the time that is looked at
        assert await commands(caller) - before < 60
        [syscall_id] = await caller.submit(ToolEcho("behind it"))
        assert (await caller.hear(syscall_id)).unwrap() == EchoResult("behind it")


async def test_redis_restarted_under_a_running_worker(
    caller: Caller, redis_server: RunningRedis
) -> None:
    gate = Gate()
    async with running_worker(caller.url, "tool", gate.loaded(), Limits(30.0, 5.0)) as worker:
        ids = await caller.submit(*(ToolEcho(str(n)) for n in range(5)))
        await wait_until_async(lambda: len(gate.began) == 5)
        await caller.connection.execute("WAITAOF", 1, 0, 5_000)

        with redis_away(redis_server):
            gate.open.set()
            await wait_until_async(lambda: worker.running == 0)  # the results wait to be settled

        answers = [reply.unwrap() for reply in await caller.hear_all(ids)]
        assert answers == [EchoResult(f"1:{n}") for n in range(5)]
        [later] = await caller.submit(ToolEcho("later"))
        assert (await caller.hear(later)).unwrap() == EchoResult("1:later")


async def publish(caller: Caller, *commands: dict[str, str] | str) -> None:
    """Publish to every worker, as RQ's tools do."""
    workers = await caller.connection.execute("SMEMBERS", "rq:workers")
    for worker in workers:
        channel = worker.decode().replace("rq:worker:", "rq:pubsub:")

        await wait_until_async(partial(is_heard, caller, channel))
        for command in commands:
            await caller.connection.execute("PUBLISH", channel, json.dumps(command))


async def is_heard(caller: Caller, channel: str) -> bool:
    """Return whether somebody has subscribed."""
    [_, subscribers] = await caller.connection.execute("PUBSUB", "NUMSUB", channel)
    return bool(subscribers)


async def commands(caller: Caller) -> int:
    """Return how many commands Redis has run."""
    stats = (await caller.connection.execute("INFO", "stats")).decode()
    return int(stats.partition("total_commands_processed:")[2].split()[0])
