"""Workers die, leave and come back too late: answers stay what they would have been."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec
import pytest

from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import decode_reply
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.order import Order
from aios_broker.queues.records import Ending
from aios_workers.llm.core import GenerationRequest, Step
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.loop import Limits
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, WorkerProcess, chat, chat_result, redis_away, running_worker
from tests.conftest import RunningRedis
from tests.waiting import wait_until_async

CONFIG = SimulatedCoreConfig(slots=2, context_tokens=2048, end_probability=0.0)
PROCESS = {
    "aios_llm_slots": 2,
    "aios_simulated_core_end_probability": 0,
    "aios_simulated_core_decode_tokens_per_s": 40,  # 3 s: what is killed is at it
    "aios_worker_lease_s": 1.0,
}
HELD_TOKENS = 500
BODIES = [chat(f"Story {n}", max_tokens=120, temperature=0.7, seed=n) for n in range(2)]


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=10)
    yield caller
    await caller.aclose()


async def undisturbed(caller: Caller, bodies: Sequence[LlmChat] = BODIES) -> list[tuple[int, ...]]:
    """Return the ids of the answers as one worker generates them."""
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(CONFIG))):
        return [(await caller.chat(body)).output_ids for body in bodies]


async def all_have_snapshots(caller: Caller, ids: list[str]) -> bool:
    snapshots = [await caller.queue("llm").snapshot(each) for each in ids]
    return all(snapshots)


async def reclaim_all(caller: Caller, ids: list[str]) -> None:
    """Do what the scheduler does every tick, until the jobs of the dead worker wait again."""
    order = Order(caller.functions, "llm")
    leadership = await order.lead("test", 60.0)

    async def reclaimed() -> bool:
        await order.reclaim(leadership.epoch)
        states = [await caller.state(each) for each in ids]
        return "running" not in states

    await wait_until_async(reclaimed)


async def test_after_kill_9_another_worker_goes_on_from_the_last_slice(caller: Caller) -> None:
    expected = await undisturbed(caller)
    with WorkerProcess(caller.url, "llm", **PROCESS) as dying:
        ids = await caller.submit(*BODIES)
        await wait_until_async(lambda: all_have_snapshots(caller, ids))
        dying.send(signal.SIGKILL)
        await dying.left()
    await reclaim_all(caller, ids)

    core = Counting(CONFIG)
    async with running_worker(caller.url, "llm", await llm_module(core)):
        replies = await caller.hear_all(ids)

    assert [chat_result(reply).output_ids for reply in replies] == expected
    assert [reply.timings.attempts for reply in replies] == [2, 2]
    assert core.resumed_tokens >= 2 * 10, "they started again from the beginning"


async def test_sigterm_suspends_generations_and_another_worker_resumes_them(
    caller: Caller,
) -> None:
    expected = await undisturbed(caller)
    with WorkerProcess(caller.url, "llm", **PROCESS) as leaving:
        ids = await caller.submit(*BODIES)
        await wait_until_async(lambda: all_have_snapshots(caller, ids))
        leaving.send(signal.SIGTERM)
        assert await leaving.left() == 0
    assert [await caller.state(each) for each in ids] == ["suspended", "suspended"]
    assert await caller.connection.execute("SCARD", "rq:workers") == 0

    core = Counting(CONFIG)
    async with running_worker(caller.url, "llm", await llm_module(core)):
        replies = await caller.hear_all(ids)

    assert [chat_result(reply).output_ids for reply in replies] == expected
    assert [reply.timings.suspensions for reply in replies] == [1, 1]
    assert core.resumed_tokens >= 2 * 10


async def test_a_second_signal_ends_a_worker_at_once(caller: Caller) -> None:
    with WorkerProcess(caller.url, "llm", **PROCESS) as stubborn:
        await wait_until_async(lambda: caller.connection.execute("SCARD", "rq:workers"))
        stubborn.send(signal.SIGSTOP)  # so that it meets both before it can drain
        stubborn.send(signal.SIGTERM)
        stubborn.send(signal.SIGINT)
        stubborn.send(signal.SIGCONT)
        assert await stubborn.left() in (128 + signal.SIGTERM, 128 + signal.SIGINT)


async def test_the_answer_of_a_worker_thought_dead_is_dropped(caller: Caller) -> None:
    queue = caller.queue("llm")
    [syscall_id] = await caller.submit(BODIES[0])
    [lease] = await queue.claim("asleep", ClaimRequest(1, 0.0))  # its lease is over as it begins
    await reclaim_all(caller, [syscall_id])

    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(CONFIG))):
        answered = await caller.hear(syscall_id)
    late = Ending(lease, "finished", b'{"kind":"reply","id":"late"}', 1.0)
    settled = await queue.finish("asleep", [late], ClaimRequest(0, 1.0))

    assert settled.accepted == [False]
    stored = await caller.connection.execute("HGET", f"rq:job:{syscall_id}", "aios_reply")
    assert decode_reply(stored) == answered


async def test_a_generation_ends_while_redis_is_away_and_is_delivered_when_it_is_back(
    caller: Caller, redis_server: RunningRedis
) -> None:
    body = msgspec.structs.replace(BODIES[0], max_tokens=HELD_TOKENS + 100, stream=True)
    [expected] = await undisturbed(caller, [body])
    core = Held(replace(CONFIG, decode_tokens_per_s=200.0))  # time for a slice, and a snapshot
    async with running_worker(caller.url, "llm", await llm_module(core), Limits(30.0, 5.0)):
        [syscall_id] = await caller.submit(body)
        await wait_until_async(lambda: all_have_snapshots(caller, [syscall_id]))
        await caller.connection.execute("WAITAOF", 1, 0, 5_000)

        with redis_away(redis_server):
            assert core.resident_tokens > 0
            core.go_on.set()
            await wait_until_async(lambda: core.resident_tokens == 0)

        reply = await caller.hear(syscall_id)
    assert chat_result(reply).output_ids == expected
    assert (reply.timings.attempts, reply.timings.slices) == (1, 1)
    offset = 0
    for chunk in caller.chunks[syscall_id]:
        assert chunk.offset <= offset, "a gap"
        offset = chunk.offset + len(chunk.text)


class Held(SimulatedCore):
    """A core that does not end a long generation until it may go on."""

    def __init__(self, config: SimulatedCoreConfig) -> None:
        super().__init__(config)
        self.go_on = asyncio.Event()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        tokens = 0
        async with aclosing(super().generate(request)) as steps:
            async for step in steps:
                yield step
                tokens += step.token_count
                if tokens >= HELD_TOKENS:
                    await self.go_on.wait()


class Counting(SimulatedCore):
    """A core that counts the tokens it was given back."""

    resumed_tokens = 0

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        self.resumed_tokens += len(request.resume_ids)
        return super().generate(request)
