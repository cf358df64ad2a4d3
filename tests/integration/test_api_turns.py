"""Bodies that take long to read go by tenant in turns, by whichever door they come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import Syscall, ToolEcho, encode_syscall
from aios_kernel_api import bodies, large_work
from aios_kernel_api.large_work import LargeWork
from tests.api_scene import ServedApi, bearer, serving
from tests.integration.test_api_process import ADA, token_of
from tests.integration.test_api_syscalls import echo
from tests.tiny_worker import TinyWorker

MANY = [0] * 60_000  # 120 KB: a second of it would be some five million values
EVE = Owner("globex", "eve")
CHAT = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "metadata": {"many": MANY}}
RPC = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "x", "many": MANY}}
DOORS: dict[str, Any] = {
    "/v1/syscalls": {"body": {"type": "tool.echo", "many": MANY}},
    "/v1/session/submit": {"session": "none", "syscalls": [{"many": MANY}]},
    "/v1/session/attach": {"session": "none", "asks": [], "many": MANY},
    "/v1/session/cancel": {"module": "llm", "ids": [], "many": MANY},
    f"/v1/approvals/{'a' * 32}/deny": {"reason": "", "many": MANY},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "x", "prompt": "hi", "many": MANY},
    "/v1/embeddings": {"model": "x", "input": "hi", "many": MANY},
    "/v1/responses": {"model": "x", "input": "hi", "stream_options": {"many": MANY}},
    "/v1/responses/input_tokens": {"model": "x", "input": "hi", "many": MANY},
    "/v1/messages": CHAT | {"max_tokens": 5},
    "/v1/messages/count_tokens": CHAT,
    "/a2a": RPC,
}


@asynccontextmanager
async def flooded(redis_url: str, owner: Owner = ADA) -> AsyncIterator[tuple[ServedApi, Any]]:
    """Serve a kernel whose answers nobody waits for: syscalls are queued, and cancelled."""
    token = await token_of(redis_url, owner)
    headers = {**bearer(token), "content-type": "application/json", "a2a-version": "1.0"}
    async with (
        serving(redis_url) as served,
        httpx.AsyncClient(base_url=served.url, headers=headers, timeout=30) as client,
    ):
        yield served, client


async def sent(client: httpx.AsyncClient, path: str, body: object) -> None:
    """Send a body, and do not wait for what it asks for: that it was read is enough."""
    with contextlib.suppress(httpx.ReadTimeout):  # of a chat, which no core answers here
        await client.post(path, content=msgspec.json.encode(body), timeout=3)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose tenants had a turn, in their order."""
    had: list[str] = []
    enter = LargeWork.enter

    async def noting(self: LargeWork, holder: Any, turn: Any) -> None:  # noqa: ANN401
        had.append(holder.tenant)
        await enter(self, holder, turn)

    monkeypatch.setattr(LargeWork, "enter", noting)
    return had


@pytest.mark.parametrize("path", DOORS)
async def test_a_body_of_many_values_takes_a_turn_of_its_tenant(
    redis_url: str, turns: list[str], path: str
) -> None:
    async with flooded(redis_url) as (_, client):
        await sent(client, path, DOORS[path])
    assert turns
    assert set(turns) == {ADA.tenant}


async def test_a_form_of_many_fields_takes_a_turn(redis_url: str, turns: list[str]) -> None:
    token = await token_of(redis_url, ADA)
    async with flooded(redis_url) as (_, client):
        form = {"content-type": "application/x-www-form-urlencoded"}
        cookies = {"cookie": f"aios_page={token}"}
        await client.post("/logout", content=b"a=b&" * 40_000, headers=form | cookies)
        assert turns == [ADA.tenant]
        large = await client.post("/login", content=b"token=" + b"x" * 20_000, headers=form)
        assert large.status_code == 413, "who has no token sends no more than one"


@pytest.mark.parametrize("path", ["/v1/syscalls", "/v1/chat/completions", "/a2a"])
async def test_bodies_of_many_values_are_read_one_at_a_time_with_others_in_between(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Of eight each has a turn to be read in, and rests before the next one has its own."""
    ticks, turns = 0, 0
    read_at: list[tuple[int, int]] = []
    read_plain, enter = bodies.read_plain, LargeWork.enter

    def noting(data: bytes) -> Any:  # noqa: ANN401
        read_at.append((turns, ticks))
        return read_plain(data)

    async def counting_turns(self: LargeWork, holder: Any, turn: Any) -> None:  # noqa: ANN401
        nonlocal turns
        await enter(self, holder, turn)
        turns += 1

    monkeypatch.setattr(LargeWork, "enter", counting_turns)

    for module in ("bodies", "a2a.rpc", "gateway.asking"):
        monkeypatch.setattr(f"aios_kernel_api.{module}.read_plain", noting)

    async def beside() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async with flooded(redis_url) as (_, client):
        counting = asyncio.create_task(beside())
        body = {**DOORS[path], "method": "none", "model": 5}  # refused, once it was read
        await asyncio.gather(*(sent(client, path, body) for _ in range(8)))
        counting.cancel()
    assert [turn for turn, _ in read_at] == list(range(1, 9))
    assert all(before < after for (_, before), (_, after) in itertools.pairwise(read_at))


async def test_a_small_call_goes_while_anothers_large_work_has_the_turn(redis_url: str) -> None:
    eve_token = await token_of(redis_url, EVE)
    async with (
        flooded(redis_url) as (served, client),
        TinyWorker(redis_url, "tool"),
        httpx.AsyncClient(base_url=served.url, headers=bearer(eve_token), timeout=20) as eve,
        served.kernel.large_work.of(ADA) as large,
    ):
        await large.before(large_work.PIECE_BYTES + 1)
        waiting = asyncio.ensure_future(sent(client, "/v1/syscalls", DOORS["/v1/syscalls"]))
        for _ in range(3):
            answer = await eve.post("/v1/syscalls", params={"wait_s": 10}, json=echo("hi"))
            assert answer.json()["result"]["text"] == "hi"
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


# One thing said twice, in a session of the SDK.


def written(served: ServedApi, end: str) -> bytes:
    syscall = Syscall(served.kernel.session.ids(ADA).fresh(), "ada", ToolEcho("x"), tenant="acme")
    return encode_syscall(syscall)[:-1] + end.encode()


async def test_a_syscall_of_a_session_that_says_a_thing_twice_is_refused_alone(
    redis_url: str,
) -> None:
    async with flooded(redis_url) as (served, client):
        twice = written(served, ',"agent":"ada"}')
        data = b'{"session":"none","syscalls":[%s,%s]}' % (twice, written(served, "}"))
        answer = await client.post("/v1/session/submit", content=data)
        refused, taken = answer.json()["outcomes"]
    assert refused["error"]["code"] == "invalid-syscall"
    assert refused["error"]["field"] == "agent"
    assert taken == {}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("submit", '{"session":"a","syscalls":[],"session":"b"}'),
        ("attach", f'{{"session":"a","asks":[{{"id":"{"a" * 32}","id":"{"b" * 32}"}}]}}'),
        ("cancel", '{"module":"llm","module":"tool","ids":[]}'),
    ],
)
async def test_a_message_of_a_session_that_says_a_thing_twice_is_refused(
    redis_url: str, path: str, text: str
) -> None:
    async with flooded(redis_url) as (_, client):
        answer = await client.post(f"/v1/session/{path}", content=text)
    assert answer.status_code == 400
    assert "twice" in answer.json()["detail"]
