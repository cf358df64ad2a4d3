"""The Redis client of the hot path: order, time limits, and what happens when Redis does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress

import hiredis
import pytest
import redis

from aios_broker.contract.errors import InvalidConfig, RedisUnavailable
from aios_broker.redis.connection import CONNECT_TIMEOUT_S, Address, Connection, parse_url
from tests.conftest import RunningRedis
from tests.waiting import wait_until_async

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@pytest.fixture
async def connection(redis_url: str) -> AsyncIterator[Connection]:
    connection = Connection(redis_url)
    yield connection
    await connection.aclose()


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Run something that is not quite a Redis; give its URL."""
    busy: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        busy.add(asyncio.ensure_future(answer(reader, writer)))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()[:2]
    try:
        yield f"redis://{host}:{port}/0"
    finally:
        listening.close()
        await asyncio.wait_for(asyncio.gather(*busy), 5.0)


def saying(*answers: bytes) -> Answer:
    """Answer the first commands with these bytes, then say nothing more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        with suppress(ConnectionError):
            while await reader.read(65536):
                writer.write(left.pop(0) if left else b"")
        writer.close()

    return answer


# Order


async def test_answers_come_in_the_order_of_the_commands(connection: Connection) -> None:
    answers = await asyncio.gather(*(connection.execute("ECHO", str(n)) for n in range(2_000)))

    assert answers == [str(n).encode() for n in range(2_000)]


async def test_commands_of_one_tick_leave_in_one_write(
    redis_url: str, connection: Connection
) -> None:
    await connection.execute("PING")
    with redis.Redis.from_url(redis_url) as client:
        before = client.info("stats")["total_reads_processed"]
        await asyncio.gather(*(connection.execute("INCR", "n") for _ in range(100)))
        after = client.info("stats")["total_reads_processed"]

    assert after - before <= 4  # one for ours, one for INFO; a large write may be read in parts


async def test_many_that_begin_at_once_share_one_connection(redis_url: str) -> None:
    connection = Connection(redis_url, name="shared")
    await asyncio.gather(*(connection.execute("PING") for _ in range(50)))

    with redis.Redis.from_url(redis_url) as client:
        assert [each["name"] for each in client.client_list()].count("shared") == 1
    await connection.aclose()


async def test_a_refusal_is_of_its_command_alone(connection: Connection) -> None:
    good, bad, more = await asyncio.gather(
        connection.execute("SET", "k", "v"),
        connection.execute("LPUSH", "k", "v"),
        connection.execute("GET", "k"),
        return_exceptions=True,
    )

    assert (good, more) == (b"OK", b"v")
    assert isinstance(bad, hiredis.ReplyError)
    assert "WRONGTYPE" in str(bad)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\r\n",
        bytes(range(256)),
        "grüße".encode(),
        pytest.param(bytes(32 * 2**20), id="32MiB"),
    ],
)
async def test_any_bytes_come_back(connection: Connection, value: bytes) -> None:
    await connection.execute("SET", "k", value)

    assert await connection.execute("GET", "k") == value


async def test_numbers_text_and_nested_answers(connection: Connection) -> None:
    await connection.execute("ZADD", "z", 1.5, "a", 2, b"b")

    assert await connection.execute("ZRANGE", "z", 0, -1, "WITHSCORES") == [
        b"a",
        b"1.5",
        b"b",
        b"2",
    ]
    assert await connection.execute("GET", "nothing") is None
    assert await connection.execute("EVAL", "return {1, {2, {'x'}}}", 0) == [1, [2, [b"x"]]]


# Giving up


async def test_a_cancelled_waiter_disturbs_nobody(connection: Connection) -> None:
    await connection.execute("PING")
    waiting = asyncio.create_task(connection.execute("BLPOP", "list", 0.3))
    others = [asyncio.create_task(connection.execute("ECHO", str(n))) for n in range(10)]
    await asyncio.sleep(0)  # let them send
    waiting.cancel()

    assert await asyncio.gather(*others) == [str(n).encode() for n in range(10)]
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await connection.execute("PING") == b"PONG"


async def test_no_answer_in_time_is_said_and_the_next_command_works(connection: Connection) -> None:
    began = time.monotonic()
    with pytest.raises(RedisUnavailable, match=r"BLPOP.*0\.2 s"):
        await connection.execute("BLPOP", "list", 5, timeout_s=0.2)
    assert time.monotonic() - began < 2.0

    assert await connection.execute("PING") == b"PONG"


async def test_one_that_is_late_fails_all_behind_it_instead_of_mixing_them_up(
    connection: Connection,
) -> None:
    await connection.execute("PING")
    late = connection.execute("BLPOP", "list", 5, timeout_s=0.2)
    behind = connection.execute("ECHO", "mine")

    outcomes = await asyncio.gather(late, behind, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [RedisUnavailable] * 2
    assert await connection.execute("ECHO", "next") == b"next"


async def test_a_closed_connection_stays_closed(connection: Connection) -> None:
    await connection.execute("PING")
    waiting = asyncio.create_task(connection.execute("BLPOP", "list", 5))
    await asyncio.sleep(0)  # let it send
    await connection.aclose()
    await connection.aclose()

    with pytest.raises(RedisUnavailable):
        await waiting
    with pytest.raises(RedisUnavailable, match="closed"):
        await connection.execute("PING")


# Redis away


async def test_a_killed_connection_is_opened_again(redis_url: str) -> None:
    connection = Connection(redis_url, name="victim")
    waiting = asyncio.create_task(connection.execute("BLPOP", "list", 10))
    with redis.Redis.from_url(redis_url) as client:

        def victims() -> list[str]:
            return [each["id"] for each in client.client_list() if each["name"] == "victim"]

        await wait_until_async(victims)
        client.client_kill_filter(_id=victims()[0])

    with pytest.raises(RedisUnavailable, match="broke") as caught:
        await waiting
    assert "may or may not have run" in (caught.value.remedy or "")
    assert await connection.execute("PING") == b"PONG"
    await connection.aclose()


async def test_a_restarted_server_is_found_again(
    redis_url: str, redis_server: RunningRedis, connection: Connection
) -> None:
    await connection.execute("SET", "k", "v")
    await connection.execute("WAITAOF", 1, 0, 5_000)
    redis_server.process.kill()
    with pytest.raises(RedisUnavailable):
        await connection.execute("GET", "k")

    redis_server.process.start()

    async def value() -> object:
        try:
            return await connection.execute("GET", "k")
        except RedisUnavailable as error:
            assert error.retryable  # noqa: PT017  while it loads
            return None

    assert await wait_until_async(value) == b"v"


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
    ],
)
async def test_a_server_that_cannot_serve_now_is_unavailable_not_a_refusal(refusal: str) -> None:
    async with server(saying(b"+OK\r\n", f"-{refusal}\r\n".encode())) as url:
        connection = Connection(url)
        with pytest.raises(RedisUnavailable, match=refusal.split()[0]) as caught:
            await connection.execute("GET", "k")
        await connection.aclose()

    assert (caught.value.retryable, caught.value.retry_after_s) == (True, 1.0)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0",
        "unix:///no/such/socket",
        "redis://no-such-host.invalid:6379/0",
    ],
)
async def test_where_no_redis_is_the_error_says_where_it_looked(url: str) -> None:
    connection = Connection(url)
    with pytest.raises(RedisUnavailable, match="no Redis at") as caught:
        await connection.execute("PING")

    assert url in caught.value.message
    assert (caught.value.field, bool(caught.value.remedy)) == ("AIOS_REDIS_URL", True)


async def test_a_server_that_is_no_redis_is_told() -> None:
    async with server(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as url:
        connection = Connection(url)
        with pytest.raises(RedisUnavailable, match="no Redis"):
            await connection.execute("PING")
        await connection.aclose()


async def test_a_server_that_wants_a_password_is_told_at_once() -> None:
    async with server(saying(b"-NOAUTH Authentication required.\r\n")) as url:
        connection = Connection(url)
        with pytest.raises(RedisUnavailable, match="NOAUTH") as caught:
            await connection.execute("PING")
        assert caught.value.field == "AIOS_REDIS_URL"
        await connection.aclose()


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with server(saying(b"+OK\r\n")) as url:
        connection = Connection(url, timeout_s=0.2)
        with pytest.raises(RedisUnavailable, match="did not answer"):
            await connection.execute("PING")
        await connection.aclose()


async def test_all_that_wait_for_a_server_that_does_not_greet_give_up_together() -> None:
    async with server(saying()) as url:
        connection = Connection(url)
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(connection.execute("PING") for _ in range(20)), return_exceptions=True
        )

        assert [type(outcome) for outcome in outcomes] == [RedisUnavailable] * 20
        assert time.monotonic() - began < 2 * CONNECT_TIMEOUT_S  # not one limit after the other
        await connection.aclose()


# Passwords and addresses


@pytest.fixture
def locked(redis_url: str) -> Sequence[str]:
    """Give the server a user with a password; return its name and password."""
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command(
            "ACL", "SETUSER", "ada", "on", ">p@ss/word", "allkeys", "allcommands"
        )
    return ("ada", "p%40ss%2Fword")


async def test_a_password_in_the_url_opens_the_server(
    redis_url: str, locked: Sequence[str]
) -> None:
    connection = Connection(redis_url.replace("unix://", f"unix://{locked[0]}:{locked[1]}@"))

    assert await connection.execute("ACL", "WHOAMI") == b"ada"
    await connection.aclose()


async def test_a_wrong_password_is_told_and_not_shown(
    redis_url: str, locked: Sequence[str]
) -> None:
    connection = Connection(redis_url.replace("unix://", f"unix://{locked[0]}:wrong@"))

    with pytest.raises(RedisUnavailable, match="WRONGPASS") as caught:
        await connection.execute("PING")
    assert "wrong@" not in str(caught.value)
    assert f"{locked[0]}:***@" in caught.value.message
    await connection.aclose()


async def test_a_database_that_is_not_there_is_told(redis_url: str) -> None:
    connection = Connection(redis_url.replace("db=0", "db=99"))

    with pytest.raises(RedisUnavailable, match="out of range"):
        await connection.execute("PING")
    await connection.aclose()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", Address()),
        ("redis://example.org", Address(host="example.org")),
        ("redis://example.org:7000/3", Address(host="example.org", port=7000, db=3)),
        ("redis://example.org?db=3", Address(host="example.org", db=3)),
        ("redis://:secret@h", Address(host="h", password="secret")),
        ("redis://ada:p%40ss@h/", Address(host="h", username="ada", password="p@ss")),
        ("rediss://h:6380", Address(host="h", port=6380, tls=True)),
        ("unix:///run/a%20b.sock?db=2", Address(path="/run/a b.sock", db=2)),
        ("unix://ada:x@/run/r.sock", Address(path="/run/r.sock", username="ada", password="x")),
    ],
)
def test_urls_are_read_as_redis_py_writes_them(url: str, address: Address) -> None:
    assert parse_url(url) == (address,)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://h",
        "localhost:6379",
        "redis://h:port",
        "redis://h:99999",
        "redis://h/zero",
        "redis://h?db=x",
        "unix:///s?db=x",
        "redis://[::1",
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_tried(url: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Connection(url)

    assert (caught.value.field, bool(caught.value.remedy)) == ("AIOS_REDIS_URL", True)


def test_a_wrong_url_does_not_show_its_password() -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_url("redis://:hunter2@h:port")

    assert "hunter2" not in str(caught.value)
