"""The synchronous agent: the same answers without `await`, from any thread."""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from aios_sdk import (
    Agent,
    AsyncAgent,
    Cancelled,
    ChatResult,
    EchoResult,
    InvalidSyscall,
    KernelError,
    LlmChat,
    Message,
    RedisUnavailable,
    Reply,
    ToolEcho,
    UnknownCore,
    WaitTimeout,
)
from aios_sdk.loop_thread import Answer, LoopThread
from tests.doors import Door
from tests.tiny_worker import MODEL, TinyWorker
from tests.waiting import wait_until

STORY = "once upon a time there was a queue"


@pytest.fixture
def workers(redis_url: str) -> Iterator[None]:
    """An llm and a tool worker on a thread of their own."""
    thread = LoopThread()
    thread.start("workers")
    running = [TinyWorker(redis_url, "llm"), TinyWorker(redis_url, "tool")]
    for worker in running:
        thread.run(worker.__aenter__())
    yield
    for worker in running:
        thread.run(worker.__aexit__(None, None, None))
    thread.stop()


@pytest.fixture
def me(door: Door) -> Iterator[Agent]:
    with door.sync_agent("writer") as agent:
        yield agent


@pytest.mark.usefixtures("workers")
def test_all_verbs_without_await(me: Agent) -> None:
    assert me.llm.chat(STORY) == ChatResult(STORY, "stop", MODEL)
    call = me.tool.echo.start("started")
    assert call.result(timeout_s=10) == EchoResult("started")
    assert call.done
    assert call.timings is not None
    stream = me.llm.chat.stream(STORY)
    assert "".join(stream) == STORY == stream.result.text
    echoes = me.tool.echo.map([f"{n}" for n in range(20)], concurrency=5)
    assert [echo.text for echo in echoes] == [f"{n}" for n in range(20)]
    *chunks, reply = me.llm.chat.start("a b", stream=True).events()
    assert len(chunks) == 2
    assert isinstance(reply, Reply)
    assert me.submit(ToolEcho("a")).result() == EchoResult("a")
    assert me.submit(LlmChat((Message("user", "b"),))).result() == ChatResult("b", "stop", MODEL)
    assert me.call(call.id).result() == EchoResult("started")


@pytest.mark.usefixtures("workers")
def test_many_threads_share_one_agent(me: Agent) -> None:
    def ask(number: int) -> str:
        mine = me.with_options(program=f"p{number % 4}")
        return mine.tool.echo(f"{number}").text

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(100))) == [f"{n}" for n in range(100)]


@pytest.mark.usefixtures("workers")
async def test_it_works_where_a_loop_runs_already(door: Door) -> None:
    """As in a notebook: the main thread has a running loop."""
    assert asyncio.get_running_loop().is_running()
    me = door.sync_agent("writer").open()
    assert me.llm.chat("hi").text == "hi"
    me.close()
    me.close()


def test_handles_look_and_cancel(me: Agent) -> None:
    call = me.tool.echo.start("a")
    call.accepted()
    assert (call.status().state, call.status().position) == ("queued", 0)
    with pytest.raises(WaitTimeout):
        call.result(timeout_s=0.02)
    with pytest.raises(WaitTimeout):
        me.with_options(timeout_s=0.02).tool.echo("b")
    assert call.cancel()
    with pytest.raises(Cancelled):
        call.result()
    stream = me.llm.chat.stream("c")
    assert stream.cancel()
    with pytest.raises(Cancelled):
        list(stream)


def test_errors_are_those_of_the_asynchronous_agent(me: Agent) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        me.llm.chat("x", max_tokens=0)
    assert caught.value.field == "body.max_tokens"
    with pytest.raises(UnknownCore):
        me.llm.chat("x", core="nowhere")
    with pytest.raises(RedisUnavailable), Agent("writer", url="redis://127.0.0.1:1/0"):
        pass


def test_leaving_the_context_cancels_what_is_left(door: Door) -> None:
    with door.sync_agent("writer") as me:
        call = me.tool.echo.start("a")
        call.accepted()
    with pytest.raises(Cancelled):
        call.result()
    with pytest.raises(KernelError, match="not open"):
        me.tool.echo("b")
    with pytest.raises(KernelError, match="not open"):
        door.sync_agent("writer").tool.echo("c")


def test_closing_ends_the_waits_of_other_threads(redis_url: str, door: Door) -> None:
    def ask(me: Agent) -> str:
        try:
            me.tool.echo("nobody answers")
        except KernelError as error:
            return error.code
        return "answered"

    with ThreadPoolExecutor(8) as pool:
        with door.sync_agent("writer") as me, redis.Redis.from_url(redis_url) as client:
            asked = [pool.submit(ask, me) for _ in range(8)]
            wait_until(lambda: client.llen("rq:queue:tool") == 8)
        assert {each.result(timeout=10) for each in asked} == {"cancelled"}
        assert ask(me) == "kernel-error"


def test_an_interrupt_cancels_the_syscall(me: Agent, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:

        def interrupt() -> None:
            wait_until(lambda: client.llen("rq:queue:tool") == 1)
            os.kill(os.getpid(), signal.SIGINT)

        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            me.tool.echo("nobody answers")
        other.join()
        wait_until(lambda: client.llen("rq:queue:tool") == 0)


class InterruptedThread(LoopThread):
    """Ctrl-C comes when what was asked for is there, and nobody has it yet."""

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        answer = super().run(work)
        if isinstance(answer, AsyncAgent):
            raise KeyboardInterrupt
        return answer


def test_an_interrupt_as_it_opens_leaves_no_connection(redis_url: str) -> None:
    agent = Agent("opener", url=redis_url)
    agent._bind(agent._agent, InterruptedThread())
    with pytest.raises(KeyboardInterrupt):
        agent.open()
    with redis.Redis.from_url(redis_url) as watcher:
        wait_until(lambda: not any("opener" in one["name"] for one in watcher.client_list()))
    with pytest.raises(KernelError, match="not open"):
        agent.tool.echo("anybody there?")
