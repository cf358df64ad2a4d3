"""Who leaves a stream early has its generation cancelled: seen at the kernel, not at a flag."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import ChatResult, Result
from aios_broker.contract.syscall import Syscall
from aios_broker.contract.tokens import digest
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection
from aios_sdk import Agent, AsyncAgent, Cancelled
from tests.doors import Door
from tests.tiny_worker import MODEL, Emit, TinyWorker
from tests.waiting import wait_until, wait_until_async


async def endless(syscall: Syscall, emit: Emit) -> Result:
    """Say a word at a time, until it is cancelled."""
    assert isinstance(syscall.body, LlmChat)
    offset = 0
    while True:
        await emit(offset, "word ")
        offset += 5
        await asyncio.sleep(0.01)


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[TinyWorker]:
    async with TinyWorker(redis_url, "llm", endless) as worker:
        yield worker


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def is_cancelled(raw: redis.Redis, syscall_id: str) -> bool:
    return raw.hget(f"rq:job:{syscall_id}", "status") == b"canceled"


@pytest.mark.usefixtures("worker")
async def test_leaving_the_context_cancels(door: Door, raw: redis.Redis) -> None:
    async with door.agent("writer") as me:
        async with me.llm.chat.stream("a story") as stream:
            assert await anext(aiter(stream)) != ""
        await wait_until_async(lambda: is_cancelled(raw, stream.id))


@pytest.mark.usefixtures("worker")
async def test_an_exception_in_the_middle_cancels(door: Door, raw: redis.Redis) -> None:
    async with door.agent("writer") as me:
        stream = me.llm.chat.stream("a story")

        async def break_off() -> None:
            async with stream:
                async for _ in stream:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await break_off()
        await wait_until_async(lambda: is_cancelled(raw, stream.id))


@pytest.mark.usefixtures("worker")
async def test_a_cancelled_task_cancels_what_it_reads(door: Door, raw: redis.Redis) -> None:
    seen: list[str] = []

    async def read(me: AsyncAgent) -> None:
        stream = me.llm.chat.stream("a story")
        seen.append(stream.id)
        seen.extend([text async for text in stream])

    async with door.agent("writer") as me:
        reading = asyncio.create_task(read(me))
        await wait_until_async(lambda: raw.hlen("rq:aios:live:llm") and seen)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await wait_until_async(lambda: is_cancelled(raw, seen[0]))


@pytest.mark.usefixtures("worker")
async def test_a_stream_that_is_dropped_cancels(door: Door, raw: redis.Redis) -> None:
    async with door.agent("writer") as me:
        stream = me.llm.chat.stream("a story")
        syscall_id = stream.id
        async for _ in stream:
            break
        del stream
        await wait_until_async(lambda: is_cancelled(raw, syscall_id))


@pytest.mark.usefixtures("worker")
async def test_one_that_somebody_waits_for_goes_on(door: Door, raw: redis.Redis) -> None:
    async with door.agent("writer") as me:
        async with me.llm.chat.stream("a story") as stream:
            waiting = asyncio.create_task(stream.call.result())
            await anext(aiter(stream))
        alive = [await stream.call.status() for _ in range(3)]
        assert {status.state for status in alive} == {"running"}
        await stream.cancel()
        with pytest.raises(Cancelled):
            await waiting
    assert is_cancelled(raw, stream.id)


@pytest.mark.usefixtures("worker")
async def test_one_that_another_stream_reads_goes_on(door: Door, raw: redis.Redis) -> None:
    async with door.agent("writer") as agent:
        me = agent.with_options(key="the story")
        async with me.llm.chat.stream("a story") as stream:
            async with me.llm.chat.stream("a story") as other:
                assert other.id == stream.id
                assert await anext(aiter(other)) != ""
            for _ in range(20):
                assert await anext(aiter(stream)) != ""
            assert not is_cancelled(raw, stream.id)
        await wait_until_async(lambda: is_cancelled(raw, stream.id))


async def test_one_that_has_ended_is_left_as_it_is(
    redis_url: str, raw: redis.Redis, door: Door
) -> None:
    async with TinyWorker(redis_url, "llm"), door.agent("writer") as me:
        async with me.llm.chat.stream("one two") as stream:
            assert "".join([text async for text in stream]) == "one two"
        assert stream.result == ChatResult("one two", "stop", MODEL)
        assert (await me.call(stream.id)) == stream.result
    assert raw.hget(f"rq:job:{stream.id}", "status") == b"finished"


async def test_a_call_that_is_taken_from_its_stream_goes_on(redis_url: str, door: Door) -> None:
    def ask() -> str:
        with door.sync_agent("writer") as me:
            return me.llm.chat.stream("one two").call.result().text

    async with TinyWorker(redis_url, "llm"), door.agent("writer") as me:
        assert (await me.llm.chat.stream("one two").call.result()).text == "one two"
        assert await asyncio.to_thread(ask) == "one two"


@pytest.mark.usefixtures("worker")
async def test_without_await_it_is_the_same(door: Door, raw: redis.Redis) -> None:
    def leave_in_both_ways() -> None:
        with door.sync_agent("writer") as me:
            with me.llm.chat.stream("a story") as stream:
                assert next(stream) != ""
            wait_until(lambda: is_cancelled(raw, stream.id))
            dropped = me.llm.chat.stream("another")
            syscall_id = dropped.id
            for _ in dropped:
                break
            del dropped
            wait_until(lambda: is_cancelled(raw, syscall_id))

    await asyncio.to_thread(leave_in_both_ways)


@pytest.mark.usefixtures("worker")
async def test_what_they_are_is_said_and_no_secret(redis_url: str, door: Door) -> None:
    connection = Connection(redis_url)
    await Tokens(connection).put(digest("s3cret-token"), Identity("writer"))
    await connection.aclose()
    async with door.agent("writer", token="s3cret-token") as me:
        assert repr(me).startswith(
            "<AsyncAgent 'writer', tenant 'default', program 'main', open to"
        )
        assert repr(me.llm.chat).startswith("<llm.chat of <AsyncAgent 'writer'")
        assert repr(me.memory.alloc).startswith("<memory.alloc of ")
        async with me.llm.chat.stream("a story") as stream:
            await stream.call.accepted()
            assert repr(stream) == f"<Stream {stream.id} (llm.chat): accepted>"
        everything = repr((me, me.options, me.llm.chat, stream, me.call(stream.id)))
        assert "s3cret" not in everything
    assert "not open" in repr(me)


def test_an_address_is_shown_without_its_password() -> None:
    agent = AsyncAgent("writer", url="redis://user:pa55word@somewhere:6379/3")
    agent._line._address = "redis://user:pa55word@somewhere:6379/3"
    assert "pa55word" not in repr(agent)
    assert repr(Agent("writer")) == "<Agent 'writer', tenant 'default', program 'main', not open>"
