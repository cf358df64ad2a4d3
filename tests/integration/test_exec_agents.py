"""Sessions as an agent's author has them: a block that closes what it opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from aios_broker.contract.errors import SessionLost, UnknownSession
from aios_broker.contract.exec import ExecOutcome, ExecSession
from aios_sdk import Agent, AsyncAgent, Call
from tests.caller import Caller
from tests.tool_scene import ToolScene
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def url(redis_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a kernel that has a tool worker."""
    async with aclosing(Caller(redis_url)) as caller, ToolScene(tmp_path).worker(caller.url):
        yield redis_url


async def test_a_block_closes_the_session_that_it_opened(url: str) -> None:
    async with AsyncAgent("ada", url=url) as me:
        async with me.exec.open("python", name="notebook") as box:
            assert (await box.run("x = 40\nx + 2")).value == "42"
            assert "".join([text async for text in box.run.stream("print(x)")]) == "40\n"
            assert (await box.reset()).runs == 0
            assert [one.id for one in (await me.exec.list()).sessions] == [box.id]
            assert (box.name, box.interpreter, box.sandbox) == ("notebook", "python", "bubblewrap")

        assert (await me.exec.list()).sessions == ()
        with pytest.raises(UnknownSession):
            await box.run("1")


async def test_a_block_that_is_left_by_an_error_closes_it_while_something_runs(url: str) -> None:
    async with AsyncAgent("ada", url=url) as me:
        running: list[Call[ExecOutcome]] = []

        async def fails() -> None:
            async with me.exec.open() as box:
                running.append(box.run("import time; time.sleep(600)"))

                async def is_busy() -> bool:
                    [session] = (await me.exec.list()).sessions
                    return session.state == "busy"

                await wait_until_async(is_busy)
                raise ValueError("enough")

        with pytest.raises(ValueError, match="enough"):
            await fails()

        with pytest.raises(SessionLost, match="it was closed"):
            await running[0]
        assert (await me.exec.list()).sessions == ()


async def test_a_session_is_also_awaited_and_stays_until_it_is_closed(url: str) -> None:
    async with AsyncAgent("ada", url=url) as me:
        opened = await me.exec.open()
        assert isinstance(opened, ExecSession)
        assert (await opened.run("1 + 1")).value == "2"
        async with opened:
            await opened.close()  # a block is left all the same
        assert (await me.exec.list()).sessions == ()


async def test_who_is_cancelled_while_it_opens_leaves_none(url: str) -> None:
    async with AsyncAgent("ada", url=url) as me:

        async def enter() -> None:
            async with me.exec.open():
                await asyncio.sleep(600)

        async def has_begun() -> bool:
            return (await me.exec.list()).sessions != ()

        entering = asyncio.create_task(enter())
        await wait_until_async(has_begun)
        entering.cancel()
        await asyncio.wait([entering])

        async def is_none_left() -> bool:
            return not await has_begun()

        await wait_until_async(is_none_left)


async def test_an_agent_that_waits_has_the_same_block(url: str) -> None:
    def lives() -> None:
        with Agent("ada", url=url) as me:
            with me.exec.open("shell") as box:
                box.run("X=kept")
                assert box.run("echo $X").stdout == "kept\n"
                with box.run.stream("echo a; echo b") as texts:
                    assert "".join(texts) == "a\nb\n"
            with pytest.raises(UnknownSession):
                box.run("echo $X")
            with pytest.raises(ZeroDivisionError), me.exec.open():
                raise ZeroDivisionError
            assert me.exec.list().sessions == ()

    await asyncio.to_thread(lives)
