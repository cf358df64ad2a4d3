"""What a module asks of the kernel itself: once per step, in the name of who asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import msgspec
import pytest
import redis

from aios_broker.contract.errors import (
    KernelError,
    QueueFull,
    UnknownCore,
)
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.memory import MemoryAdd
from aios_broker.contract.reply import ChatResult, Result
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.ledger.journal import metadata_of, read_entry
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import PolicyRow
from aios_broker.redis.connection import Connection
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.kernel_calls import SubmittedCalls
from aios_workers.runtime.registry import llm_module
from tests.caller import redis_away, running_worker
from tests.conftest import RunningRedis
from tests.tiny_worker import Emit, TinyWorker, parrot
from tests.waiting import wait_until_async

CHAT = LlmChat((Message("user", "hello"),), max_tokens=5)


@asynccontextmanager
async def calls_on(redis_url: str, *, no_worker_s: float = 5.0) -> AsyncIterator[SubmittedCalls]:
    connection = Connection(redis_url)
    try:
        async with SubmittedCalls(
            Functions(connection), Keys(), redis_url, "test", no_worker_s=no_worker_s
        ) as calls:
            yield calls
    finally:
        await connection.aclose()


@pytest.fixture
def asked() -> Syscall:
    return Syscall(new_id(), "ann", MemoryAdd("x"), deadline_s=20.0)


async def test_the_same_step_is_the_same_syscall(redis_url: str, asked: Syscall) -> None:
    llm = await llm_module(SimulatedCore(SimulatedCoreConfig()))
    async with running_worker(redis_url, "llm", llm) as worker, calls_on(redis_url) as calls:
        first, again = await asyncio.gather(
            calls.call(asked, CHAT, "plan"), calls.call(asked, CHAT, "plan")
        )
        assert isinstance(first, ChatResult)
        assert again == first
        async with calls_on(redis_url) as after_a_crash:
            assert await after_a_crash.call(asked, CHAT, "plan") == first
        other = await calls.call(asked, CHAT, "another step")
        assert isinstance(other, ChatResult)
        finished = [
            sample.value
            for metric in worker.metrics()
            for sample in metric.samples
            if sample.labels.get("outcome") == "finished"
        ]
    assert finished == [2.0]


async def test_many_at_once_hear_their_own_answers(redis_url: str, asked: Syscall) -> None:
    llm = await llm_module(SimulatedCore(SimulatedCoreConfig(slots=4)))
    async with running_worker(redis_url, "llm", llm), calls_on(redis_url) as calls:
        chats = [LlmChat((Message("user", str(n)),), max_tokens=4) for n in range(12)]
        once = await asyncio.gather(
            *(calls.call(asked, chat, str(n)) for n, chat in enumerate(chats))
        )
        for number, chat in enumerate(chats):
            assert await calls.call(asked, chat, str(number)) == once[number]


async def test_without_a_worker_it_says_so(redis_url: str, asked: Syscall) -> None:
    async with calls_on(redis_url, no_worker_s=0.2) as calls:
        with pytest.raises(UnknownCore, match="no worker serves the module llm"):
            await calls.call(asked, CHAT, "plan")


def chat(text: str) -> LlmChat:
    return LlmChat((Message("user", text),), max_tokens=5)


def text_of(result: Result) -> str:
    assert isinstance(result, ChatResult)
    return result.text


async def test_a_step_that_asks_something_else_by_now_is_another_call(
    redis_url: str, asked: Syscall
) -> None:
    async with TinyWorker(redis_url, "llm") as worker, calls_on(redis_url) as calls:
        assert text_of(await calls.call(asked, chat("two notes"), "relate")) == "two notes"
        assert text_of(await calls.call(asked, chat("three notes"), "relate")) == "three notes"
        assert text_of(await calls.call(asked, chat("two notes"), "relate")) == "two notes"
    assert len(worker.seen) == 2


async def test_what_is_under_way_goes_on_when_its_worker_leaves(
    redis_url: str, asked: Syscall
) -> None:
    gate = asyncio.Event()

    async def when_told(syscall: Syscall, emit: Emit) -> Result:
        await gate.wait()
        return await parrot(syscall, emit)

    async with TinyWorker(redis_url, "llm", when_told) as worker:
        async with calls_on(redis_url) as calls:
            lost = asyncio.create_task(calls.call(asked, chat("x"), "plan"))
            await wait_until_async(lambda: len(worker.seen) == 1)
        with pytest.raises(asyncio.CancelledError):
            await lost
        async with calls_on(redis_url) as after:
            again = asyncio.create_task(after.call(asked, chat("x"), "plan"))
            [state] = await states(redis_url)
            assert state == "running"
            gate.set()
            assert text_of(await again) == "x"
    assert len(worker.seen) == 1


async def states(redis_url: str) -> list[str]:
    connection = Connection(redis_url)
    try:
        return [job.state for job in await Control(Functions(connection)).jobs("llm")]
    finally:
        await connection.aclose()


async def test_a_full_queue_is_waited_for_while_there_is_time(
    redis_url: str, asked: Syscall
) -> None:
    connection = Connection(redis_url)
    control = Control(Functions(connection))
    try:
        async with TinyWorker(redis_url, "llm") as worker, calls_on(redis_url) as calls:
            await control.set_policy("llm", PolicyRow(max_waiting=0))
            hurried = Syscall(new_id(), "ann", MemoryAdd("x"), deadline_s=0.3)
            with pytest.raises(QueueFull):
                await calls.call(hurried, CHAT, "plan")
            waiting = asyncio.create_task(calls.call(asked, chat("patient"), "plan"))
            await asyncio.wait([waiting], timeout=0.5)
            assert not waiting.done()
            await control.set_policy("llm", PolicyRow())
            assert text_of(await waiting) == "patient"
        [call] = worker.seen
        assert call.deadline_s < asked.deadline_s - 0.5  # the wait counts
    finally:
        await connection.aclose()


async def test_a_redis_that_comes_back_in_time_costs_no_call(
    redis_url: str, redis_server: RunningRedis, asked: Syscall
) -> None:
    async with TinyWorker(redis_url, "llm"), calls_on(redis_url) as calls:
        assert text_of(await calls.call(asked, chat("before"), "plan")) == "before"
        with redis_away(redis_server):
            meanwhile = asyncio.create_task(calls.call(asked, chat("meanwhile"), "plan"))
            await asyncio.wait([meanwhile], timeout=0.3)
            assert not meanwhile.done()
        assert text_of(await asyncio.wait_for(meanwhile, 15)) == "meanwhile"


async def test_a_client_that_failed_begins_anew(redis_url: str, asked: Syscall) -> None:
    async with TinyWorker(redis_url, "llm"), calls_on(redis_url) as calls:
        assert text_of(await calls.call(asked, chat("0"), "plan")) == "0"
        with replies_refused(redis_url), pytest.raises(KernelError, match="the client failed"):
            await asked_until_refused(calls, asked)
        assert text_of(await calls.call(asked, chat("1"), "plan")) == "1"


async def asked_until_refused(calls: SubmittedCalls, asked: Syscall) -> None:
    """Ask until the client sees that it may not: one look for replies was under way before."""
    for number in range(10):
        await calls.call(asked, chat(f"refused {number}"), "plan")


@contextmanager
def replies_refused(redis_url: str) -> Iterator[None]:
    """For the length of a block, nobody may take replies."""
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-blmpop")
        try:
            yield
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+blmpop")


async def test_who_makes_no_calls_has_no_client(redis_url: str, asked: Syscall) -> None:
    with redis.Redis.from_url(redis_url) as client:

        def names() -> set[str]:
            found = {each["name"] for each in client.client_list()}
            return {name for name in found if name.endswith("test.calls")}

        async with TinyWorker(redis_url, "llm"), calls_on(redis_url) as calls:
            assert names() == set()
            await calls.call(asked, CHAT, "plan")
            assert names() == {"aios-client:test.calls", "aios-replies:test.calls"}


async def test_it_is_told_who_asked_and_in_which_trace(redis_url: str, asked: Syscall) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    asked = msgspec.structs.replace(asked, traceparent=parent)
    llm = await llm_module(SimulatedCore(SimulatedCoreConfig()))
    async with running_worker(redis_url, "llm", llm), calls_on(redis_url) as calls:
        await calls.call(asked, CHAT, "plan")
    async with aclosing(Connection(redis_url)) as connection:
        entries = await connection.execute("XRANGE", Keys().journal, "-", "+")
    [metadata] = [
        found for entry in entries for each in read_entry(entry) if (found := metadata_of(each))
    ]
    assert (metadata.asked_by, metadata.traceparent) == (asked.id, parent)
