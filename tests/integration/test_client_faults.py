"""A batch that is refused in part, messages that cannot be read, keys used twice, forks."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import redis

from aios_broker.client.pending import Pending
from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Limits, Session
from aios_broker.contract.errors import (
    Cancelled,
    ForkedAgent,
    InvalidSyscall,
    KernelError,
    KeyConflict,
    QueueFull,
    QuotaExceeded,
    UnknownCore,
    UnsupportedVersion,
)
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.reply import EchoResult, Result
from aios_broker.contract.syscall import Body, Syscall, ToolEcho, new_id
from aios_broker.queues.functions import Functions
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.redis.connection import Connection
from aios_sdk import Agent, AsyncAgent
from tests.session_user import sent
from tests.tiny_worker import Emit, TinyWorker
from tests.waiting import wait_until

PATIENT = Limits(recheck_s=60.0, patience_s=5.0, cancel_s=0.5)  # nothing is found by waiting
KEY = "monday's report"


def syscall(body: Body, agent: str = "writer") -> Syscall:
    return Syscall(id=new_id(), agent=agent, body=body)


def echo(text: str, agent: str = "writer") -> Syscall:
    return syscall(ToolEcho(text), agent)


@asynccontextmanager
async def session_of(url: str) -> AsyncIterator[Session]:
    session = Session(RedisTransport(url, "writer"), PATIENT)
    await session.open()
    try:
        yield session
    finally:
        await session.aclose()


async def answer(pending: Pending) -> Result:
    await asyncio.wait_for(pending.ended, timeout=10)
    assert pending.reply is not None
    return pending.reply.unwrap()


async def error_of(pending: Pending) -> KernelError:
    with pytest.raises(KernelError) as caught:
        await answer(pending)
    return caught.value


async def check_split(url: str, calls: list[Pending], taken: int, error: type[KernelError]) -> None:
    """The first `taken` are queued and run, the others were refused and did not."""
    for pending in calls[taken:]:
        assert isinstance(await error_of(pending), error)
        assert pending.state == "refused"
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.lrange("rq:queue:tool", 0, -1) == [call.id for call in calls[:taken]]
    async with TinyWorker(url, "tool") as worker:
        for n, pending in enumerate(calls[:taken]):
            assert await answer(pending) == EchoResult(f"{n}")
    assert [seen.id for seen in worker.seen] == [call.id for call in calls[:taken]]


async def test_of_a_batch_that_does_not_fit_nothing_is_run_and_refused(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.hset("rq:aios:policy:tool", "max_waiting", 3)
    async with session_of(redis_url) as session:
        calls = [sent(session, echo(f"{n}")) for n in range(8)]
        await check_split(redis_url, calls, 3, QueueFull)


async def test_of_a_batch_over_its_quota_nothing_is_run_and_refused(redis_url: str) -> None:
    connection = Connection(redis_url)
    quotas = Quotas(Functions(connection))
    await quotas.set("tool", QuotaRow(Subject.of_agent("writer"), max_queued=3))
    await connection.aclose()
    async with session_of(redis_url) as session:
        calls = [sent(session, echo(f"{n}")) for n in range(8)]
        await check_split(redis_url, calls, 3, QuotaExceeded)


async def test_one_call_harms_no_other_of_its_batch(redis_url: str) -> None:
    chat = LlmChat((Message("user", "x"),))
    async with session_of(redis_url) as session:
        unserved = sent(session, syscall(msgspec.structs.replace(chat, core="nobody")))
        unwritable = sent(session, syscall(LlmChat((Message("user", "\ud800"),))))
        fine = sent(session, syscall(chat))
        assert isinstance(await error_of(unserved), UnknownCore)
        assert isinstance(await error_of(unwritable), InvalidSyscall)
        await asyncio.wait_for(fine.accepted, timeout=10)
        assert fine.state == "accepted"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff not json",
        b'{"kind":"reply9","id":"%s"}',
        b'{"kind":"reply","id":"\\ud800"}',
        b"[" * 9999,
    ],
)
async def test_what_cannot_be_read_is_asked_for_at_once(redis_url: str, garbage: bytes) -> None:
    async def in_vain(call: Syscall, _emit: Emit) -> Result:
        # The reply goes to nobody; what comes in its place cannot be read.
        with redis.Redis.from_url(redis_url) as client:
            client.hset("rq:aios:live:tool", call.id, "somebody-else")
        return EchoResult("found")

    async with session_of(redis_url) as session:
        pending = sent(session, echo("found"))
        await pending.accepted
        with redis.Redis.from_url(redis_url) as client:
            [name] = client.hvals("rq:aios:live:tool")
            async with TinyWorker(redis_url, "tool", in_vain):
                await asyncio.to_thread(
                    wait_until, lambda: client.hget(f"rq:job:{pending.id}", "aios_reply")
                )
            client.rpush(b"rq:aios:reply:" + name, garbage.replace(b"%s", pending.id.encode()))
            assert await answer(pending) == EchoResult("found")
            # A stored reply that cannot be read either: a typed error, once.
            other = sent(session, echo("newer"))
            await other.accepted
            client.hset(f"rq:job:{other.id}", "aios_reply", garbage)
            client.hdel("rq:aios:live:tool", other.id)
            client.rpush(b"rq:aios:reply:" + name, garbage.replace(b"%s", other.id.encode()))
            assert isinstance(await error_of(other), UnsupportedVersion)


async def test_a_key_with_another_body_is_a_conflict(redis_url: str) -> None:
    async with session_of(redis_url) as ours, session_of(redis_url) as theirs:
        first = sent(ours, echo("first"), KEY)
        await first.accepted
        for ended in (False, True):
            joined = sent(ours, echo("second"), KEY)
            for pending in (joined, sent(theirs, echo("second"), KEY)):
                error = await error_of(pending)
                assert isinstance(error, KeyConflict)
                assert "tool.echo with another body.text" in str(error)
                assert error.field == "key"
            same = sent(theirs, msgspec.structs.replace(echo("first"), deadline_s=5.0), KEY)
            if not ended:
                await same.accepted
                async with TinyWorker(redis_url, "tool"):
                    assert await answer(first) == EchoResult("first")
                assert await answer(same) == EchoResult("first")
            # It has ended: its reply is kept, and so is what it stands for.


async def test_a_key_that_is_attached_to_is_compared_too(redis_url: str) -> None:
    async with session_of(redis_url) as ours, session_of(redis_url) as theirs:
        first = sent(theirs, echo("first"), KEY)
        await first.accepted
        attached = ours.attach(first.id, first.owner)
        await attached.accepted
        error = await error_of(sent(ours, echo("second"), KEY))
        assert isinstance(error, KeyConflict)
        same = [sent(ours, echo("first"), KEY) for _ in range(2)]
        await same[1].accepted
        async with TinyWorker(redis_url, "tool") as worker:
            for pending in (attached, *same, first):
                assert await answer(pending) == EchoResult("first")
        assert len(worker.seen) == 1


async def test_what_is_attached_to_and_submitted_is_cancelled_on_leaving(redis_url: str) -> None:
    async with session_of(redis_url) as theirs:
        first = sent(theirs, echo("first"), KEY)
        await first.accepted
        async with session_of(redis_url) as ours:
            attached = ours.attach(first.id, first.owner)
            same = sent(ours, echo("first"), KEY)
            await same.accepted
        for pending in (attached, same, first):
            assert isinstance(await error_of(pending), Cancelled)


def in_child(work: Callable[[], None]) -> int:
    """Return the child's exit status: 0 where `work` did its work within 10 s."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001  the child must not run the rest of the tests
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_hears_at_once_that_the_agent_is_its_parents(redis_url: str) -> None:
    with Agent("parent", url=redis_url) as me:
        call = me.tool.echo.start("x")
        call.accepted()

        def use() -> None:
            for step in (lambda: me.tool.echo("y"), call.result, call.cancel, call.status):
                with pytest.raises(ForkedAgent):
                    step()
            me.close()

        assert in_child(use) == 0
        with redis.Redis.from_url(redis_url) as client:
            assert client.llen("rq:queue:tool") == 1


async def test_a_child_of_a_loop_hears_it_too(redis_url: str) -> None:
    async with AsyncAgent("parent", url=redis_url) as me:
        call = me.tool.echo.start("x")
        await call.accepted()

        async def use() -> None:
            for step in (call.result(), call.cancel(), call.status()):
                with pytest.raises(ForkedAgent):
                    await step
            with pytest.raises(ForkedAgent):
                me.tool.echo.start("y")
            await me.aclose()
            async with me:  # and now it is the child's own
                await me.tool.echo.start("z").accepted()

        assert in_child(lambda: asyncio.run(use())) == 0
        async with TinyWorker(redis_url, "tool"):
            assert (await call).text == "x"
