"""What an agent asks, it gets: calls, handles, streams, maps, against a real Redis."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis

from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import PolicyRow
from aios_broker.redis.connection import Connection
from aios_sdk import (
    AsyncAgent,
    Cancelled,
    ChatResult,
    Chunk,
    EchoResult,
    InvalidSyscall,
    KernelError,
    KeyConflict,
    LlmChat,
    Message,
    QueueFull,
    QuotaExceeded,
    Reply,
    ToolEcho,
    UnknownCore,
    UnknownSyscall,
    WaitTimeout,
)
from aios_sdk.call import PORTION
from tests.doors import Door
from tests.tiny_worker import MODEL, TinyWorker
from tests.waiting import wait_until_async

STORY = "once upon a time there was a queue"


@pytest.fixture
async def me(door: Door) -> AsyncIterator[AsyncAgent]:
    async with door.agent("writer") as agent:
        yield agent


@pytest.fixture
async def control(redis_url: str) -> AsyncIterator[Control]:
    connection = Connection(redis_url)
    yield Control(Functions(connection))
    await connection.aclose()


async def test_a_call_returns_the_typed_result(redis_url: str, me: AsyncAgent) -> None:
    async with TinyWorker(redis_url, "llm"), TinyWorker(redis_url, "tool"):
        assert await me.tool.echo(text="hello") == EchoResult("hello")
        assert await me.llm.chat(STORY) == ChatResult(STORY, "stop", MODEL)
        turns: list[Message | dict[str, str]] = [
            Message("system", "be brief"),
            {"role": "user", "content": "hi"},
        ]
        assert (await me.llm.chat(turns, max_tokens=5)).text == "hi"


async def test_the_options_travel(redis_url: str, me: AsyncAgent) -> None:
    async with TinyWorker(redis_url, "llm") as worker:
        fast = me.with_options(nice=5, timeout_s=20, program="p", core=MODEL)
        await fast.llm.chat("hi", temperature=0.5, stop=["x"])
    [syscall] = worker.seen
    assert (syscall.agent, syscall.program, syscall.nice, syscall.core) == (
        "writer",
        "p",
        5,
        MODEL,
    )
    assert syscall.deadline_s == 20
    assert isinstance(syscall.body, LlmChat)
    assert (syscall.body.temperature, syscall.body.stop) == (0.5, ("x",))


async def test_two_hundred_calls_at_once_get_their_own_answers(
    redis_url: str, me: AsyncAgent
) -> None:
    async with TinyWorker(redis_url, "tool"):
        results = await asyncio.gather(*(me.tool.echo(f"{n}") for n in range(200)))
    assert [result.text for result in results] == [f"{n}" for n in range(200)]


async def test_the_calls_of_one_tick_are_one_submit(
    redis_url: str, me: AsyncAgent, control: Control
) -> None:
    def function_calls() -> int:
        with redis.Redis.from_url(redis_url) as client:
            return int(client.info("commandstats")["cmdstat_fcall"]["calls"])

    before = function_calls()
    calls = [me.tool.echo.start(f"{n}") for n in range(100)]
    await asyncio.gather(*(call.accepted() for call in calls))
    assert function_calls() - before == 1
    assert (await control.queue("tool")).waiting == 100


async def test_a_syscall_is_submitted_when_the_verb_is_called(
    redis_url: str, me: AsyncAgent, control: Control
) -> None:
    started = me.tool.echo("nobody awaits me yet")
    async with asyncio.timeout(10):
        while (await control.queue("tool")).waiting != 1:
            pass
    assert not started.done


async def test_a_map_keeps_the_order(redis_url: str, me: AsyncAgent) -> None:
    async with TinyWorker(redis_url, "llm"), TinyWorker(redis_url, "tool") as worker:
        echoes = await me.tool.echo.map([f"{n}" for n in range(50)])
        assert [echo.text for echo in echoes] == [f"{n}" for n in range(50)]
        chats = await me.llm.chat.map(
            [{"messages": "one", "max_tokens": 3}, "two"] * 5, concurrency=3
        )
        assert [chat.text for chat in chats] == ["one", "two"] * 5
        assert await me.tool.echo.map([]) == []
    assert len(worker.seen) == 50


@pytest.mark.parametrize("concurrency", [None, PORTION + 50, 7])
async def test_a_long_map_is_whole_however_many_end_while_it_begins(
    redis_url: str, me: AsyncAgent, concurrency: int | None
) -> None:
    texts = [f"{n}" for n in range(3 * PORTION + 1)]
    async with TinyWorker(redis_url, "tool") as worker:
        echoes = await me.tool.echo.map(texts, concurrency=concurrency)
    assert [echo.text for echo in echoes] == texts
    assert len(worker.seen) == len(texts)


async def test_a_failing_map_cancels_its_other_calls(redis_url: str, me: AsyncAgent) -> None:
    with pytest.raises(UnknownCore):
        await me.llm.chat.map([{"messages": "a", "core": "nowhere"}, {"messages": "b"}])

    mixed = me.llm.chat.map([{"messages": "a", "core": "nowhere"}, "b"], return_errors=True)
    async with TinyWorker(redis_url, "llm"):
        first, second = await mixed
    assert isinstance(first, UnknownCore)
    assert second.text == "b"


async def test_a_stream_yields_pieces_and_then_has_the_result(
    redis_url: str, me: AsyncAgent
) -> None:
    async with TinyWorker(redis_url, "llm"):
        stream = me.llm.chat.stream(STORY)
        with pytest.raises(KernelError, match="not ended"):
            _ = stream.result
        pieces = [piece async for piece in stream]
    assert len(pieces) == 8
    assert "".join(pieces) == STORY == stream.result.text


async def test_events_are_the_chunks_and_then_the_reply(redis_url: str, me: AsyncAgent) -> None:
    async with TinyWorker(redis_url, "llm"):
        call = me.llm.chat.start(STORY, stream=True)
        events = [event async for event in call.events()]
        again = [event async for event in call.events()]
    assert again == events
    *chunks, reply = events
    assert isinstance(reply, Reply)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    assert call.timings == reply.timings
    assert call.timings.attempts >= 0


async def test_what_was_not_streamed_comes_at_the_end(redis_url: str, me: AsyncAgent) -> None:
    async def forgetful(syscall: object, emit: object) -> ChatResult:
        await emit(0, "ab")  # type: ignore[operator]
        await emit(1, "bc")  # type: ignore[operator]
        await emit(5, "fg")  # type: ignore[operator]
        return ChatResult("abcdefgh", "stop", MODEL)

    async with TinyWorker(redis_url, "llm", forgetful):
        pieces = [piece async for piece in me.llm.chat.stream("x")]
    assert pieces == ["ab", "c", "defgh"]


async def test_status_says_where_a_call_stands(redis_url: str, me: AsyncAgent) -> None:
    first, second = me.tool.echo.start("a"), me.tool.echo.start("b")
    status = await second.status()
    assert (status.id, status.state, status.position) == (second.id, "queued", 1)
    async with TinyWorker(redis_url, "tool"):
        await first
        await second
    assert (await second.status()).state == "finished"
    assert (await me.call(second.id).status()).state == "finished"


async def test_a_waiting_call_is_cancelled(me: AsyncAgent) -> None:
    call = me.tool.echo.start("a")
    await call.accepted()
    assert await call.cancel()
    with pytest.raises(Cancelled) as caught:
        await call
    assert caught.value.syscall_id == call.id
    assert not await call.cancel()
    assert (await call.status()).state == "cancelled"


async def test_a_running_call_is_cancelled(redis_url: str, me: AsyncAgent) -> None:
    async def forever(_syscall: object, _emit: object) -> EchoResult:
        await asyncio.Event().wait()
        return EchoResult()

    async with TinyWorker(redis_url, "tool", forever) as worker:
        call = me.tool.echo.start("a")
        await wait_until_async(lambda: worker.seen)
        assert (await call.status()).state == "running"
        assert await call.cancel()
        with pytest.raises(Cancelled):
            await call


async def test_cancelling_the_task_cancels_the_syscall(me: AsyncAgent, control: Control) -> None:
    call = me.tool.echo.start("a")
    await call.accepted()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, timeout=0.01)
    async with asyncio.timeout(10):
        while await control.job(call.id) is not None:
            pass


async def test_the_caller_stops_waiting_and_the_syscall_goes_on(
    redis_url: str, me: AsyncAgent
) -> None:
    call = me.with_options(timeout_s=0.05, deadline_s=60).tool.echo.start("late")
    with pytest.raises(WaitTimeout) as caught:
        await call
    assert caught.value.syscall_id == call.id
    async with TinyWorker(redis_url, "tool"):
        assert (await call.result(timeout_s=10)).text == "late"
        assert await me.call(call.id) == EchoResult("late")


async def test_the_same_key_is_the_same_syscall(redis_url: str, me: AsyncAgent, door: Door) -> None:
    keyed = me.with_options(key="step-1")
    async with TinyWorker(redis_url, "tool") as worker:
        first, joined = keyed.tool.echo.start("one"), keyed.tool.echo.start("one")
        assert first.id == joined.id
        assert (await first, await joined) == (EchoResult("one"), EchoResult("one"))
        async with door.agent("writer") as other:
            step = other.with_options(key="step-1")
            assert await step.tool.echo("one") == EchoResult("one")
            with pytest.raises(KeyConflict, match=r"tool\.echo with another body\.text"):
                await step.tool.echo("two")
        mapped = await me.with_options(key="m").tool.echo.map(["a", "b"])
        assert [echo.text for echo in mapped] == ["a", "b"]
        with pytest.raises(KeyConflict, match=r"kind tool\.echo; this one is a llm\.chat"):
            await keyed.llm.chat("hello")
    assert len(worker.seen) == 3


async def test_another_client_attaches_by_id(redis_url: str, me: AsyncAgent, door: Door) -> None:
    call = me.tool.echo.start("shared")
    await call.accepted()
    async with door.agent("writer") as other:
        watched = other.call(call.id)
        assert (await watched.status()).state == "queued"
        async with TinyWorker(redis_url, "tool"):
            assert await watched == EchoResult("shared")
            assert await call == EchoResult("shared")
        assert await other.call(call.id) == EchoResult("shared")
        with pytest.raises(UnknownSyscall):
            await other.call("0" * 32)
        with pytest.raises(InvalidSyscall, match="id"):
            other.call("not an id")


async def test_leaving_the_context_cancels_what_is_left(door: Door, control: Control) -> None:
    async with door.agent("writer") as me:
        calls = [me.tool.echo.start(f"{n}") for n in range(3)]
        await calls[0].accepted()
        unsent = me.tool.echo.start("never sent")
    assert (await control.queue("tool")).waiting == 0
    for call in [*calls, unsent]:
        with pytest.raises(Cancelled):
            call.unwrap()
    with pytest.raises(KernelError, match="not open"):
        me.tool.echo("too late")


async def test_a_watcher_that_leaves_cancels_nothing(
    door: Door, me: AsyncAgent, control: Control
) -> None:
    call = me.tool.echo.start("a")
    await call.accepted()
    async with door.agent("writer") as other:
        watched = other.call(call.id)
        await watched.accepted()
    assert await control.job(call.id) is not None


async def test_a_full_queue_says_when_to_try_again(me: AsyncAgent, control: Control) -> None:
    await control.set_policy("tool", PolicyRow(max_waiting=10))
    calls = [me.tool.echo.start(f"{n}") for n in range(16)]
    outcomes = await asyncio.gather(*(call.accepted() for call in calls), return_exceptions=True)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 6  # what fits is taken, though all were of one batch
    for error in refused:
        assert isinstance(error, QueueFull)
        assert error.retryable
        assert error.retry_after_s is not None
    with pytest.raises(QueueFull):
        await calls[-1]


async def test_what_the_agents_quota_leaves_room_for_is_taken(
    redis_url: str, me: AsyncAgent, door: Door
) -> None:
    connection = Connection(redis_url)
    await Quotas(Functions(connection)).set(
        "tool", QuotaRow(Subject.of_agent("writer"), max_queued=5)
    )
    calls = [me.tool.echo.start(f"{n}") for n in range(16)]
    outcomes = await asyncio.gather(*(call.accepted() for call in calls), return_exceptions=True)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 11
    for error in refused:
        assert isinstance(error, QuotaExceeded)
        assert (error.field, error.retry_after_s) == ("quota.max_queued", 1.0)
    async with door.agent("reader") as other:
        await other.tool.echo.start("mine").accepted()
    await connection.aclose()


async def test_an_unknown_core_harms_nobody_else(redis_url: str, me: AsyncAgent) -> None:
    async with TinyWorker(redis_url, "llm"):
        bad, good = me.llm.chat("x", core="gpt-17"), me.llm.chat("x", core=MODEL)
        with pytest.raises(UnknownCore, match=f"use one of: {MODEL}") as caught:
            await bad
        assert caught.value.field == "body.core"
        assert (await good).text == "x"


async def test_any_body_of_the_contract_is_submitted(redis_url: str, me: AsyncAgent) -> None:
    async with TinyWorker(redis_url, "tool"), TinyWorker(redis_url, "llm"):
        assert await me.submit(ToolEcho("a")) == EchoResult("a")
        result = await me.submit(LlmChat((Message("user", "b"),), core=MODEL))
        assert result == ChatResult("b", "stop", MODEL)
