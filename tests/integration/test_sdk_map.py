"""A map has no task per item, and still keeps each promise of a call: limits, times, cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aios_broker.contract.reply import EchoResult, Result
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.redis.connection import Connection
from aios_sdk import AsyncAgent, Cancelled, KernelError, WaitTimeout
from tests.doors import Door
from tests.tiny_worker import Emit, TinyWorker
from tests.waiting import wait_until_async


@pytest.fixture
async def me(door: Door) -> AsyncIterator[AsyncAgent]:
    async with door.agent("mapper") as agent:
        yield agent


@pytest.fixture
async def control(redis_url: str) -> AsyncIterator[Control]:
    connection = Connection(redis_url)
    yield Control(Functions(connection))
    await connection.aclose()


class Crowded:
    """A handler that counts how many it runs at the same time."""

    def __init__(self) -> None:
        self.most = 0
        self._running = 0

    async def __call__(self, syscall: Syscall, emit: Emit) -> Result:
        assert isinstance(syscall.body, ToolEcho)
        self._running += 1
        self.most = max(self.most, self._running)
        await asyncio.sleep(0.01)
        self._running -= 1
        return EchoResult(syscall.body.text)


async def test_no_more_than_asked_for_are_under_way(redis_url: str, me: AsyncAgent) -> None:
    crowded = Crowded()
    async with TinyWorker(redis_url, "tool", crowded):
        echoes = await me.tool.echo.map([f"{n}" for n in range(30)], concurrency=4)
    assert [echo.text for echo in echoes] == [f"{n}" for n in range(30)]
    assert 1 < crowded.most <= 4


async def test_where_nobody_answers_in_time_the_map_ends(me: AsyncAgent) -> None:
    with pytest.raises(WaitTimeout):
        await me.with_options(timeout_s=0.2, deadline_s=60).tool.echo.map(["a", "b"])


async def test_items_that_are_late_stand_among_the_results(me: AsyncAgent) -> None:
    hasty = me.with_options(timeout_s=0.1, deadline_s=60)
    results: list[object] = [
        *await hasty.tool.echo.map(["a"] * 5, concurrency=2, return_errors=True)
    ]
    assert [type(result) for result in results] == [WaitTimeout] * 5


async def test_a_map_that_is_cancelled_takes_its_syscalls_with_it(
    me: AsyncAgent, control: Control
) -> None:
    mapped = me.tool.echo.map([f"{n}" for n in range(20)])
    other = me.tool.echo("somebody else's")
    await wait_until_async(lambda: _waits(control, 21))
    mapped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mapped
    await wait_until_async(lambda: _waits(control, 1))
    assert not other.done


async def test_one_that_another_waits_for_survives_the_map(
    redis_url: str, me: AsyncAgent, control: Control
) -> None:
    keyed = me.with_options(key="step")
    mapped = keyed.tool.echo.map(["shared", "mine"])
    twin = asyncio.ensure_future(keyed.tool.echo.map(["shared"]))
    await wait_until_async(lambda: _waits(control, 2))
    mapped.cancel()
    await asyncio.wait([mapped])
    await wait_until_async(lambda: _waits(control, 1))
    async with TinyWorker(redis_url, "tool"):
        assert await twin == [EchoResult("shared")]


async def test_leaving_while_a_map_runs_ends_it_with_an_error(door: Door) -> None:
    async with door.agent("leaver") as agent:
        few = agent.tool.echo.map(["a", "b", "c"], concurrency=1)
        await asyncio.sleep(0)
    with pytest.raises((Cancelled, KernelError)):
        await few


async def _waits(control: Control, count: int) -> bool:
    return (await control.queue("tool")).waiting == count
