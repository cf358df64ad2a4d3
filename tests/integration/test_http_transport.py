"""The SDK by HTTP: what it needs, who may use it, and what it does when API or line are gone."""

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

import httpx
import msgspec
import pytest
import redis

from aios_broker.client import http_messages as wire
from aios_broker.client.http_transport import HttpTransport
from aios_broker.contract.reply import ChatResult, EchoResult, Result
from aios_broker.contract.syscall import Syscall, ToolEcho, encode_syscall, new_id
from aios_sdk import (
    AccessDenied,
    Agent,
    ApiUnavailable,
    AsyncAgent,
    InvalidConfig,
    InvalidSyscall,
    KeyConflict,
    UnknownSyscall,
)
from tests.cut_line import CutLine
from tests.doors import Door, RunningApi, door_of, issued
from tests.tiny_worker import MODEL, Emit, TinyWorker
from tests.waiting import AT_ONCE_S, wait_until_async

STORY = "once upon a time there was a queue that nobody had emptied for a hundred years " * 8
CUTS = 30


@pytest.fixture
def http(redis_url: str) -> Iterator[Door]:
    with door_of("http", redis_url) as door:
        yield door


class Gate:
    """Answers when it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, syscall: Syscall, _emit: Emit) -> Result:
        await self.opened.wait()
        assert isinstance(syscall.body, ToolEcho)
        return EchoResult(syscall.body.text)


async def test_only_the_token_says_who_asks(http: Door) -> None:
    with pytest.raises(AccessDenied) as refused:
        async with http.agent("writer", token="aios_nobodys"):
            pass
    assert refused.value.field == "token"
    with pytest.raises(AccessDenied):
        async with http.agent("writer", token=""):
            pass
    async with http.agent("writer", token=http.token("reader")) as me:
        with pytest.raises(AccessDenied, match="of agent 'reader'"):
            await me.tool.echo("x")
    async with http.agent("writer", token=http.token("writer", "acme")) as me:
        with pytest.raises(AccessDenied, match="tenant 'acme'"):
            await me.tool.echo("x")


async def test_no_token_is_queued(http: Door, redis_url: str) -> None:
    async with http.agent("writer") as me:
        call = me.tool.echo.start("x")
        await call.accepted()
        with redis.Redis.from_url(redis_url) as raw:
            record = raw.hgetall(f"rq:job:{call.id}")
    assert record
    assert http.token("writer").encode() not in b"".join(record.values())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1", ApiUnavailable),
        ("http://127.0.0.1:99999", InvalidConfig),
        ("http://", InvalidConfig),
        ("http:///v1", InvalidConfig),
    ],
)
async def test_a_wrong_url_is_a_typed_error_at_once(url: str, expected: type[Exception]) -> None:
    started_s = time.monotonic()
    with pytest.raises(expected) as caught:
        async with AsyncAgent("writer", url=url, token="aios_x"):
            pass
    assert time.monotonic() - started_s < AT_ONCE_S
    assert "aios_x" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", ApiUnavailable),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: hello\n\n", InvalidConfig),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", InvalidConfig),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno", ApiUnavailable),
        (b"-ERR unknown command\r\n", ApiUnavailable),
    ],
)
async def test_what_is_not_the_api_is_a_typed_error(
    answer: bytes, expected: type[Exception]
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(expected):
            async with AsyncAgent("writer", url=f"http://127.0.0.1:{port}", token="t"):
                pass


async def test_a_line_that_is_cut_again_and_again_loses_and_doubles_nothing(
    http: Door, redis_url: str
) -> None:
    """The session is another one after each cut; the text goes on where it was."""
    words = [word + " " for word in STORY.split(" ")]
    go_on = asyncio.Semaphore(0)

    async def slowly(_syscall: Syscall, emit: Emit) -> Result:
        offset = 0
        for word in words:
            await go_on.acquire()
            await emit(offset, word)
            offset += len(word)
        return ChatResult("".join(words), "stop", MODEL)

    async with (
        CutLine(http.url) as line,
        TinyWorker(redis_url, "llm", slowly) as worker,
        AsyncAgent("writer", url=line.url, token=http.token("writer")) as me,
    ):
        call = me.llm.chat.start("a story", stream=True)
        await call.accepted()
        reading = asyncio.create_task(read(me, call.id))
        for _ in range(CUTS):
            for _ in range(len(words) // CUTS):
                go_on.release()
            sessions = line.accepted
            line.cut()
            await wait_until_async(lambda before=sessions: line.accepted > before)  # type: ignore[misc]
        for _ in words:
            go_on.release()
        pieces = await asyncio.wait_for(reading, timeout=20)
    assert "".join(pieces) == "".join(words)
    assert len(worker.seen) == 1


async def read(me: AsyncAgent, syscall_id: str) -> list[str]:
    return [e.text async for e in me.call(syscall_id).events() if hasattr(e, "text")]


async def test_calls_outlive_the_line_and_run_once(http: Door, redis_url: str) -> None:
    gate = Gate()
    async with (
        CutLine(http.url) as line,
        TinyWorker(redis_url, "tool", gate) as worker,
        AsyncAgent("writer", url=line.url, token=http.token("writer")) as me,
    ):
        waiting = []
        for number in range(20):
            waiting.append(me.tool.echo.start(f"{number}"))
            line.cut()
            await asyncio.sleep(0)
        gate.opened.set()
        line.cut()
        async with asyncio.timeout(20):
            answers = [(await call).text for call in waiting]
    assert answers == [f"{number}" for number in range(20)]
    assert len({seen.id for seen in worker.seen}) == len(worker.seen) == 20


async def test_an_api_that_restarts_loses_no_waiter(redis_url: str) -> None:
    gate, token = Gate(), issued(redis_url, "writer")
    async with TinyWorker(redis_url, "tool", gate) as worker:
        with RunningApi(redis_url) as first:
            port = int(first.url.rpartition(":")[2])
            me = await AsyncAgent("writer", url=first.url, token=token).open()
            waiting = [me.tool.echo.start(f"{number}") for number in range(10)]
            await asyncio.gather(*(call.accepted() for call in waiting))
            await asyncio.to_thread(first.stop)
        gate.opened.set()
        unsent = me.tool.echo.start("while it was away")
        with RunningApi(redis_url, api_port=port):
            async with asyncio.timeout(20):
                assert [(await call).text for call in waiting] == [f"{n}" for n in range(10)]
                assert (await unsent).text == "while it was away"
                await me.aclose()
    assert len(worker.seen) == 11


async def test_a_revoked_token_is_told_to_all_who_wait(redis_url: str) -> None:
    token = issued(redis_url, "writer")
    with RunningApi(redis_url) as first:
        port = int(first.url.rpartition(":")[2])
        me = await AsyncAgent("writer", url=first.url, token=token).open()
        call = me.tool.echo.start("x")
        await call.accepted()
        with redis.Redis.from_url(redis_url) as raw:
            raw.delete("rq:aios:tokens")
        with pytest.raises(AccessDenied):
            await me.tool.echo("y")
        await asyncio.to_thread(first.stop)
    with RunningApi(redis_url, api_port=port):
        with pytest.raises(AccessDenied):
            await asyncio.wait_for(call.result(), timeout=20)
        await me.aclose()


async def test_another_agents_syscalls_are_unknown(http: Door, redis_url: str) -> None:
    async with http.agent("writer") as me, http.agent("reader") as other:
        call = me.tool.echo.start("x")
        await call.accepted()
        with pytest.raises(UnknownSyscall):
            await other.call(call.id)
        async with TinyWorker(redis_url, "tool"):
            assert (await call).text == "x"
            with pytest.raises(UnknownSyscall):
                await other.call(call.id)


async def test_two_clients_of_one_agent_with_one_key(http: Door, redis_url: str) -> None:
    async with http.agent("writer") as one, http.agent("writer") as two:
        keyed = [me.with_options(key="step") for me in (one, two)]
        calls = [me.tool.echo.start("x") for me in keyed]
        await asyncio.gather(*(call.accepted() for call in calls))
        with pytest.raises(KeyConflict):
            await keyed[1].tool.echo("y")
        async with TinyWorker(redis_url, "tool") as worker:
            assert [(await call).text for call in calls] == ["x", "x"]
        assert len(worker.seen) == 1


async def test_a_map_larger_than_one_request(http: Door, redis_url: str) -> None:
    large = "x" * 400_000
    async with http.agent("writer") as me, TinyWorker(redis_url, "tool"):
        echoes = await me.tool.echo.map([f"{n}{large}" for n in range(40)])
        assert [echo.text for echo in echoes] == [f"{n}{large}" for n in range(40)]


@pytest.fixture
async def client(http: Door) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {http.token('writer')}"}
    async with httpx.AsyncClient(base_url=http.url, headers=headers) as client:
        yield client


async def test_each_syscall_of_a_request_stands_for_itself(
    client: httpx.AsyncClient, http: Door
) -> None:
    async with http.agent("writer") as me:
        ids = me._ids
        good = encode_syscall(Syscall(ids.fresh(), "writer", ToolEcho("x")))
        bad = [
            encode_syscall(Syscall(new_id(), "writer", ToolEcho("x"))),  # an id of nobody's
            encode_syscall(Syscall(ids.fresh(), "reader", ToolEcho("x"))),
            b'{"id":"1","agent":"writer","body":{"type":"tool.echo"}}',
            b'{"id":"%s","agent":"writer","body":{"type":"no.such"}}' % new_id().encode(),
            b"[" * 500 + b"]" * 500,
            b"7",
        ]
        message = wire.Submit("none", tuple(map(msgspec.Raw, (*bad, good))))
        answer = await client.post(wire.SUBMIT, content=msgspec.json.encode(message))
    assert answer.status_code == 200, answer.text
    outcomes = msgspec.json.decode(answer.content, type=wire.Outcomes).outcomes
    codes = [each.error.code if each.error else None for each in outcomes]
    assert codes[-1] is None
    assert codes[:2] == ["access-denied", "access-denied"]
    assert set(codes[2:-1]) <= {"invalid-syscall", "unknown-module"}


async def test_a_session_hears_of_its_own_agents_syscalls_alone(
    client: httpx.AsyncClient, http: Door, redis_url: str
) -> None:
    """Whoever knows the name of another's session can send nothing there."""
    async with (
        TinyWorker(redis_url, "tool"),
        http.agent("writer") as writer,
        http.agent("reader") as reader,
        client.stream("GET", wire.EVENTS) as answer,
    ):
        events = (line.removeprefix("data: ") async for line in answer.aiter_lines() if line)
        session = msgspec.json.decode(await anext(events), type=wire.Hello).session
        ours = Syscall(writer._ids.fresh(), "writer", ToolEcho("ours"))
        theirs = Syscall(reader._ids.fresh(), "reader", ToolEcho("theirs"))
        for syscall, token in ((theirs, http.token("reader")), (ours, http.token("writer"))):
            message = wire.Submit(session, (msgspec.Raw(encode_syscall(syscall)),))
            headers = {"authorization": f"Bearer {token}"}
            data = msgspec.json.encode(message)
            sent = await client.post(wire.SUBMIT, content=data, headers=headers)
            assert sent.json() == {"outcomes": [{}]}
            await wait_until_async(partial(is_finished, redis_url, syscall.id))
        heard = msgspec.json.decode(await anext(events))
    assert heard["id"] == ours.id


def is_finished(redis_url: str, syscall_id: str) -> bool:
    with redis.Redis.from_url(redis_url) as raw:
        return bool(raw.hget(f"rq:job:{syscall_id}", "status") == b"finished")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (wire.SUBMIT, b""),
        (wire.SUBMIT, b"{"),
        (wire.SUBMIT, b'{"session":"x","syscalls":[],"more":1}'),
        (wire.SUBMIT, b'{"session":"x","syscalls":[' + b"1," * 600 + b"1]}"),
        (wire.ATTACH, b'{"session":"x","asks":[{"id":"no id"}]}'),
        (wire.ATTACH, b'{"session":"x","asks":[{"id":"%s","heard":[-1,0]}]}' % (b"0" * 32)),
        (wire.CANCEL, b'{"ids":["%s"],"module":"nothing"}' % (b"0" * 32)),
        (wire.CANCEL, b'{"ids":["x y"],"module":"llm"}'),
        (wire.SUBMIT, b"[" * 100_000),
    ],
)
async def test_a_request_that_is_none_is_refused(
    client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    answer = await client.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] in ("invalid-syscall", "invalid-request")


async def test_what_nobody_knows_is_answered_so(client: httpx.AsyncClient) -> None:
    unknown = new_id()
    asked = wire.Attach("none", (wire.Ask(unknown), wire.Ask(unknown, "llm", (0, 0))))
    answer = await client.post(wire.ATTACH, content=msgspec.json.encode(asked))
    assert answer.json() == {"standings": [{}, {}]}
    asked_to_end = msgspec.json.encode(wire.Cancel((unknown,), "tool"))
    assert (await client.post(wire.CANCEL, content=asked_to_end)).json() == {"done": [False]}
    nothing = msgspec.json.encode(wire.Cancel((), "tool"))
    assert (await client.post(wire.CANCEL, content=nothing)).json() == {"done": []}
    assert (await client.get(wire.STATUS, params={"id": unknown})).json() is None
    assert (await client.get(wire.STATUS)).status_code == 400


LIGHT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"redis", "hiredis", "rq", "starlette", "uvicorn", "psycopg",
                                      "sqlalchemy", "numpy", "aios_kernel_api", "aios_workers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from aios_sdk import Agent
from aios_broker.contract.errors import InvalidConfig

with Agent("writer", url=sys.argv[1], token=sys.argv[2]) as me:
    print(me.tool.echo("from a light place").text)
try:
    Agent("writer", url="redis://127.0.0.1/0").open()
except InvalidConfig as error:
    print(error.remedy)
"""


async def test_it_needs_msgspec_and_httpx_alone(http: Door, redis_url: str) -> None:
    async with TinyWorker(redis_url, "tool"):
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", textwrap.dedent(LIGHT), http.url, http.token("writer")],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert ran.stdout.splitlines() == ["from a light place", "install 'aios-broker[redis]'"], (
        ran.stderr
    )


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "aios_broker.client.http_transport", raising=False)
    with pytest.raises(InvalidConfig, match="needs the package httpx") as caught:
        Agent("writer", url="http://127.0.0.1:1", token="t").open()
    assert caught.value.remedy == "install 'aios-broker[http]'"


async def test_a_wrong_argument_is_told_before_anything_is_sent(http: Door) -> None:
    async with http.agent("writer") as me:
        with pytest.raises(InvalidSyscall):
            await me.llm.chat("x", max_tokens=0)


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_closing_that_is_cancelled_closes_its_client(http: Door, turns: int) -> None:
    me = await http.agent("leaver").open()
    session = me._line.session
    transport = session._transport
    assert isinstance(transport, HttpTransport)
    leaving = asyncio.create_task(me.aclose())
    while not leaving.done():
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.cancel()
    assert transport._http.is_closed
