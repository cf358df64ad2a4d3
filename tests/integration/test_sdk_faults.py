"""Redis restarts, forgets, stays away: whoever waits hears it in the end, and never twice."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Limits, Session
from aios_broker.contract.reply import EchoResult, Result
from aios_broker.contract.syscall import Syscall, ToolEcho, new_id
from aios_broker.retry import now_s
from aios_sdk import (
    ApiUnavailable,
    AsyncAgent,
    ClientFailed,
    InvalidConfig,
    KernelNotRunning,
    RedisUnavailable,
    UnknownSyscall,
)
from tests.conftest import RunningRedis
from tests.session_user import sent
from tests.tiny_worker import Emit, TinyWorker
from tests.waiting import AT_ONCE_S, wait_until_async

IMPATIENT = Limits(recheck_s=0.1, patience_s=0.5, cancel_s=0.5)


def echo(text: str) -> Syscall:
    return Syscall(id=new_id(), agent="writer", body=ToolEcho(text))


@asynccontextmanager
async def session_of(url: str, limits: Limits = IMPATIENT) -> AsyncIterator[Session]:
    session = Session(RedisTransport(url, "writer"), limits)
    await session.open()
    try:
        yield session
    finally:
        await session.aclose()


async def answer(session: Session, syscall: Syscall) -> Result:
    pending = sent(session, syscall)
    await pending.ended
    assert pending.reply is not None
    return pending.reply.unwrap()


async def test_a_redis_that_restarts_loses_no_waiter(
    redis_url: str, redis_server: RunningRedis
) -> None:
    gate = asyncio.Event()

    async def when_told(syscall: Syscall, _emit: Emit) -> Result:
        await gate.wait()
        assert isinstance(syscall.body, ToolEcho)
        return EchoResult(syscall.body.text)

    async with AsyncAgent("writer", url=redis_url) as me:
        waiting = [me.tool.echo.start(f"{n}") for n in range(20)]
        await asyncio.gather(*(call.accepted() for call in waiting))
        # What is acknowledged reaches the disk within a second.
        with redis.Redis.from_url(redis_url) as client:
            client.config_set("appendfsync", "always")
            client.config_set("appendfsync", "everysec")
        redis_server.process.stop()
        submitted_while_away = [me.tool.echo.start(f"{n}") for n in range(20, 40)]
        redis_server.process.start()
        async with TinyWorker(redis_url, "tool", when_told):
            gate.set()
            results = await asyncio.gather(*waiting, *submitted_while_away)
    assert [result.text for result in results] == [f"{n}" for n in range(40)]


async def test_a_redis_killed_while_syscalls_run(
    redis_url: str, redis_server: RunningRedis
) -> None:
    gate = asyncio.Event()

    async def when_told(_syscall: Syscall, _emit: Emit) -> Result:
        await gate.wait()
        return EchoResult("done")

    async with (
        AsyncAgent("writer", url=redis_url) as me,
        TinyWorker(redis_url, "tool", when_told) as worker,
    ):
        calls = [me.tool.echo.start("x") for _ in range(20)]
        await wait_until_async(lambda: len(worker.seen) == 20)
        redis_server.process.kill()
        redis_server.process.start()
        gate.set()
        # Of a killed Redis the last second may be gone: then the SDK submits again, under the
        # same ids.
        results = await asyncio.wait_for(asyncio.gather(*calls), timeout=20)
    assert {result.text for result in results} == {"done"}


async def test_a_lost_reply_is_found_by_id(redis_url: str) -> None:
    async with session_of(redis_url) as session:
        pending = sent(session, echo("found"))
        await pending.accepted

        async def lose_it(_syscall: Syscall, _emit: Emit) -> Result:
            # The kernel pushes to nobody: what this client would have popped never comes.
            with redis.Redis.from_url(redis_url) as client:
                client.hset("rq:aios:live:tool", pending.id, "somebody-else")
            return EchoResult("found")

        async with TinyWorker(redis_url, "tool", lose_it):
            await asyncio.wait_for(pending.ended, timeout=5)
        assert pending.reply is not None
        assert pending.reply.unwrap() == EchoResult("found")


async def test_what_redis_forgot_is_submitted_again_each_time(redis_url: str) -> None:
    async with session_of(redis_url) as session:
        pending = sent(session, echo("thrice"))
        await pending.accepted
        with redis.Redis.from_url(redis_url) as client:
            for _ in range(2):
                client.flushall()
                await wait_until_async(lambda: client.llen("rq:queue:tool") == 1)
                await wait_until_async(lambda: pending.is_known)
        async with TinyWorker(redis_url, "tool") as worker:
            await asyncio.wait_for(pending.ended, timeout=5)
        assert [seen.id for seen in worker.seen] == [pending.id]


async def test_what_redis_forgot_is_not_submitted_after_its_time(redis_url: str) -> None:
    async with session_of(redis_url) as session:
        pending = sent(session, msgspec.structs.replace(echo("late"), deadline_s=0.5))
        await pending.accepted
        await wait_until_async(lambda: now_s() > pending.submitted_at_s + 0.5)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
            await asyncio.wait_for(pending.ended, timeout=5)
            assert client.llen("rq:queue:tool") == 0
    assert pending.reply is not None
    with pytest.raises(UnknownSyscall):
        pending.reply.unwrap()


async def test_a_client_that_failed_begins_anew_with_the_next_call(redis_url: str) -> None:
    async with AsyncAgent("writer", url=redis_url) as me, TinyWorker(redis_url, "tool"):
        assert (await me.tool.echo("before")).text == "before"
        with redis.Redis.from_url(redis_url) as client:
            client.execute_command("ACL", "SETUSER", "default", "-blmpop")
            try:
                # One look for replies was under way before.
                heard = await me.tool.echo.map("refused", concurrency=1, return_errors=True)
            finally:
                client.execute_command("ACL", "SETUSER", "default", "+blmpop")
        failed = heard[-1]
        assert isinstance(failed, ClientFailed)
        assert failed.retryable
        assert (await me.tool.echo("after")).text == "after"


async def test_all_that_redis_forgot_is_found_though_most_are_seldom_asked_for(
    redis_url: str,
) -> None:
    limits = Limits(recheck_s=0.5, patience_s=0.5, cancel_s=0.5)
    async with session_of(redis_url, limits) as session:
        waiting = [sent(session, echo(f"{n}")) for n in range(200)]
        await asyncio.gather(*(pending.accepted for pending in waiting))
        for pending in waiting:
            pending.asks = 100  # as after a long wait: half a minute until the next
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
            await wait_until_async(lambda: client.llen("rq:queue:tool") == 200, 10)
        async with TinyWorker(redis_url, "tool"):
            await asyncio.wait_for(asyncio.gather(*(p.ended for p in waiting)), timeout=10)


async def test_a_redis_that_stays_away_is_told_to_all_who_wait(
    redis_url: str, redis_server: RunningRedis
) -> None:
    async with session_of(redis_url) as session:
        accepted = sent(session, echo("a"))
        await accepted.accepted
        redis_server.process.stop()
        try:
            unsent = sent(session, echo("b"))
            for pending in (accepted, unsent):
                await asyncio.wait_for(pending.ended, timeout=10)
                assert pending.reply is not None
                with pytest.raises(RedisUnavailable) as caught:
                    pending.reply.unwrap()
                assert caught.value.retryable
        finally:
            redis_server.process.start()
        async with TinyWorker(redis_url, "tool"):  # and it works again
            result = await asyncio.wait_for(answer(session, echo("c")), timeout=10)
    assert result == EchoResult("c")


async def test_leaving_while_redis_is_away_takes_no_longer_than_its_limit(
    redis_url: str, redis_server: RunningRedis
) -> None:
    async with session_of(redis_url) as session:
        pending = sent(session, echo("a"))
        await pending.accepted
        redis_server.process.stop()
        started_s = time.monotonic()
    try:
        assert time.monotonic() - started_s < AT_ONCE_S
        assert pending.ended.done()
    finally:
        redis_server.process.start()


@pytest.mark.parametrize("turns", range(1, 8))
async def test_leaving_closes_all_however_often_it_is_cancelled(redis_url: str, turns: int) -> None:
    """A caller cancels its task, and a loop that ends what is left: also what is leaving then."""
    entered = asyncio.Event()

    async def enter_and_stay() -> None:
        async with AsyncAgent("leaver", url=redis_url) as me:
            await me.tool.echo.start("never answered").accepted()
            entered.set()
            await asyncio.get_running_loop().create_future()

    staying = asyncio.create_task(enter_and_stay())
    await entered.wait()
    with redis.Redis.from_url(redis_url) as watcher:

        def connections() -> list[str]:
            names = [client["name"] for client in watcher.client_list()]
            return [name for name in names if name.endswith("leaver")]

        assert len(connections()) == 2
        while not staying.done():
            staying.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
        await wait_until_async(lambda: connections() == [])


async def test_garbage_in_the_reply_list_harms_nobody(redis_url: str) -> None:
    async with session_of(redis_url) as session:
        pending = sent(session, echo("fine"))
        await pending.accepted
        with redis.Redis.from_url(redis_url) as client:
            [client_name] = client.hvals("rq:aios:live:tool")
            client.rpush(b"rq:aios:reply:" + client_name, b"\xff not json", b'{"kind":"?"}')
        async with TinyWorker(redis_url, "tool"):
            await asyncio.wait_for(pending.ended, timeout=5)
        assert pending.reply is not None
        assert pending.reply.unwrap() == EchoResult("fine")


async def open_and_close(url: str | None = None) -> None:
    async with AsyncAgent("writer", url=url):
        pass


@pytest.mark.parametrize(
    ("url", "expected", "says"),
    [
        ("redis://127.0.0.1:1/0", RedisUnavailable, "no Redis at redis://127.0.0.1:1"),
        ("unix:///nowhere/redis.sock", RedisUnavailable, "no Redis at unix:///nowhere"),
        ("ftp://somewhere", InvalidConfig, "scheme 'ftp' is not known"),
        ("redis://host:port/0", InvalidConfig, "is not the URL of a Redis"),
        ("http://127.0.0.1:1", ApiUnavailable, "no API at http://127.0.0.1:1"),
    ],
)
async def test_a_wrong_url_is_a_typed_error_at_once(
    url: str, expected: type[Exception], says: str
) -> None:
    started_s = time.monotonic()
    with pytest.raises(expected, match=says):
        await open_and_close(url)
    assert time.monotonic() - started_s < AT_ONCE_S


async def test_a_server_that_is_no_redis_is_a_typed_error() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(RedisUnavailable):
            await open_and_close(f"redis://127.0.0.1:{port}/0")


async def test_the_kernel_of_this_machine_is_found_by_its_record(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    monkeypatch.setenv("AIOS_STATE_DIR", str(tmp_path))
    record = tmp_path / "kernel.json"
    with pytest.raises(KernelNotRunning, match="no kernel was found"):
        await open_and_close()
    record.write_text('{"redis_url": "unix:///gone/redis.sock"}')
    with pytest.raises(KernelNotRunning, match="does not answer"):
        await open_and_close()
    record.write_text(f'{{"redis_url": "{redis_url}"}}')
    await open_and_close()


async def test_a_key_prefix_of_the_environment_is_kept(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RQ_KEY_PREFIX", "elsewhere")
    async with AsyncAgent("writer", url=redis_url) as me:
        call = me.tool.echo.start("x")
        await call.accepted()
        with redis.Redis.from_url(redis_url) as client:
            assert client.llen("elsewhere:queue:tool") == 1
            assert client.llen("rq:queue:tool") == 0
