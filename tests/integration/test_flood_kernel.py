"""A flood of one tenant, with a real scheduler and a worker: others have turns; it is ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from aios_broker.contract.errors import AgentSuspended
from aios_broker.queues.quota import Subject
from aios_sdk import AsyncAgent
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, running_worker
from tests.scheduler_scene import scheduler
from tests.waiting import wait_until_async

# Two slots, a tenth of a second for each chat: the flood alone takes half a minute.
CONFIG = SimulatedCoreConfig(slots=2, end_probability=0.0, decode_tokens_per_s=100.0)
FLOOD, TOKENS = 600, 10
MOST_S = 5.0  # of waiting: some turns, and what a loaded machine adds


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(scheduler(redis_url, aios_policy="rr"))
        loaded = await llm_module(SimulatedCore(CONFIG))
        await stack.enter_async_context(running_worker(redis_url, "llm", loaded))
        caller = Caller(redis_url)
        stack.push_async_callback(caller.aclose)
        yield caller


async def test_a_chat_of_another_tenant_waits_for_its_turn_and_not_for_the_flood(
    caller: Caller,
) -> None:
    async with (
        AsyncAgent("mal", url=caller.url, tenant="acme") as mal,
        AsyncAgent("vic", url=caller.url, tenant="umbrella") as vic,
    ):
        flood = [mal.llm.chat.start("again", max_tokens=TOKENS) for _ in range(FLOOD)]

        async def waits() -> bool:
            return (await caller.control.queue("llm")).waiting > FLOOD // 2

        await wait_until_async(waits)
        took_s = []
        for _ in range(5):
            began_s = time.monotonic()
            await vic.llm.chat("and mine", max_tokens=TOKENS)
            took_s.append(time.monotonic() - began_s)
        assert (await caller.control.queue("llm")).waiting > FLOOD // 2  # the flood goes on
        assert sorted(took_s)[2] < MOST_S, took_s

        # And it is ended by an operator at once, what runs and what waits; others go on.
        ended = await caller.control.stop(Subject.of_agent("mal", "acme"), who="test")
        assert ended > FLOOD // 2
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, AgentSuspended)]
        assert len(refused) == ended
        assert (await vic.llm.chat("still mine", max_tokens=TOKENS)).text
        with pytest.raises(AgentSuspended):
            await mal.llm.chat("again")


async def test_what_runs_of_a_suspended_agent_leaves_its_slot(caller: Caller) -> None:
    async with (
        AsyncAgent("mal", url=caller.url) as mal,
        AsyncAgent("vic", url=caller.url) as vic,
    ):
        long = [mal.llm.chat.start("for ever", max_tokens=3_000) for _ in range(2)]

        async def run() -> bool:
            return (await caller.control.queue("llm")).running == 2

        await wait_until_async(run)
        assert await caller.control.stop(Subject.of_agent("mal"), who="test") == 2
        for each in long:
            with pytest.raises(AgentSuspended):
                await each
        began_s = time.monotonic()
        await vic.llm.chat("mine", max_tokens=TOKENS)
        assert time.monotonic() - began_s < MOST_S
