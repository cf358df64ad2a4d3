"""A syscall that kills, hangs or fills its worker: it is quarantined, and harms nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import pytest_asyncio

from aios_broker.contract.errors import ModuleError, WorkerLost
from aios_broker.contract.reply import EchoResult, Reply
from aios_broker.contract.syscall import ToolEcho
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.poison import MARK
from tests.busy_kernel import Listener, at_rest
from tests.faults.crash_scene import Launched, launched, running_scheduler
from tests.waiting import wait_until_async

POISONED = Plan(poison=True, memory_bytes=1280 * 1024**2)
NEIGHBOURS = 20
ENDED_S = 30.0


@pytest_asyncio.fixture
async def caller(redis_url: str) -> AsyncIterator[Listener]:
    caller = Listener(redis_url)
    yield caller
    await caller.aclose()


def has_ended(child: Launched) -> bool:
    return child.poll() is not None


@asynccontextmanager
async def kept_alive(url: str, lease_s: float) -> AsyncIterator[list[int]]:
    """Run a poisonable tool worker, started again whenever it dies; give its exit codes."""
    codes: list[int] = []

    async def serve() -> None:
        while True:
            with launched("tool", url, plan=POISONED, AIOS_WORKER_LEASE_S=str(lease_s)) as child:
                await wait_until_async(partial(has_ended, child), ENDED_S)
                codes.append(child.returncode)

    serving = asyncio.create_task(serve())
    try:
        yield codes
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def poisoned(caller: Listener, kind: str, *, lease_s: float = 0.8) -> tuple[Reply, list[int]]:
    """Submit poison in the midst of others; return its reply, and the worker's exit codes."""
    async with running_scheduler(caller.url, None):
        texts = [f"{n}" for n in range(NEIGHBOURS)]
        before = await caller.submit(*map(ToolEcho, texts))
        [poison] = await caller.submit(ToolEcho(MARK + kind))
        behind = await caller.submit(*map(ToolEcho, texts))
        async with kept_alive(caller.url, lease_s) as codes:
            await wait_until_async(lambda: _heard(caller, [*before, poison, *behind]), ENDED_S)
            await at_rest(caller)
    for neighbour, text in zip([*before, *behind], [*texts, *texts], strict=True):
        assert caller.replies[neighbour][0].unwrap() == EchoResult(text)
    return caller.replies[poison][0], codes


async def _heard(caller: Listener, ids: list[str]) -> bool:
    await caller.hear_more()
    return all(each in caller.replies for each in ids)


async def test_a_crash_is_tried_again_three_times_and_takes_nobody_along(caller: Listener) -> None:
    reply, codes = await poisoned(caller, "segfault")
    assert reply.error is not None
    assert reply.error.code == WorkerLost.code
    assert len(codes) == 3


@pytest.mark.slow
async def test_a_loop_without_end_ends_with_its_worker(caller: Listener) -> None:
    reply, codes = await poisoned(caller, "loop")
    assert reply.error is not None
    assert reply.error.code == WorkerLost.code
    assert codes[:2] == [1, 1]


@pytest.mark.slow
async def test_memory_that_runs_out_is_the_callers_error(caller: Listener) -> None:
    reply, codes = await poisoned(caller, "memory", lease_s=5.0)
    assert reply.error is not None
    assert reply.error.code == ModuleError.code
    assert codes == []


@pytest.mark.slow
async def test_a_huge_result_is_refused(caller: Listener) -> None:
    reply, codes = await poisoned(caller, "huge", lease_s=5.0)
    assert reply.error is not None
    assert reply.error.code == ModuleError.code
    assert reply.error.field == "result"
    assert codes == []
