"""What the API holds for its clients is bounded, whatever they ask for and do not read."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from aios_broker.client import http_messages as wire
from aios_broker.client import redis_transport
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import ChatResult, EchoResult, Result, decode_reply
from aios_broker.contract.syscall import Syscall, ToolEcho, encode_syscall
from aios_kernel_api import kernel, large_work, router
from aios_kernel_api.rest import session, syscall_lists, syscalls
from aios_kernel_api.room import Room
from aios_sdk import AsyncAgent
from tests.api_scene import ServedApi, bearer, serving
from tests.integration.test_api_process import ADA, token_of
from tests.integration.test_api_syscalls import echo
from tests.tiny_worker import MODEL, Emit, TinyWorker
from tests.waiting import wait_until_async

LARGE = "x" * 400_000
MIB = 1024 * 1024


async def verbose(_syscall: Syscall, _emit: Emit) -> Result:
    return EchoResult(LARGE)


@asynccontextmanager
async def served_to(
    redis_url: str, owner: Owner = ADA
) -> AsyncIterator[tuple[ServedApi, httpx.AsyncClient]]:
    token = await token_of(redis_url, owner)
    async with (
        serving(redis_url) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token), timeout=20) as client,
    ):
        yield served, client


def asked_of(served: ServedApi, count: int, owner: Owner = ADA) -> list[Syscall]:
    ids = served.kernel.session.ids(owner)
    return [
        Syscall(ids.fresh(), owner.agent, ToolEcho("x"), tenant=owner.tenant) for _ in range(count)
    ]


async def posted(client: httpx.AsyncClient, path: str, message: msgspec.Struct) -> Any:  # noqa: ANN401
    answer = await client.post(path, content=msgspec.json.encode(message))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def submitted(
    client: httpx.AsyncClient, name: str, asked: Sequence[Syscall]
) -> list[dict[str, Any]]:
    raws = tuple(msgspec.Raw(encode_syscall(each)) for each in asked)
    found: list[dict[str, Any]] = (await posted(client, wire.SUBMIT, wire.Submit(name, raws)))[
        "outcomes"
    ]
    return found


async def events_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ").encode()


async def test_a_list_that_would_be_too_large_leaves_results_out(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscall_lists, "MOST_ANSWER_BYTES", MIB)
    async with served_to(redis_url) as (_, client), TinyWorker(redis_url, "tool", verbose):
        answer = await client.post(
            "/v1/syscalls", params={"wait_s": 20}, json=[echo() for _ in range(5)]
        )
        assert answer.status_code == 200
        shown = answer.json()
        left_out = [each for each in shown if each.get("left_out", False)]
        assert len(left_out) == 3, "those that ended first are there"
        assert all(("result" in each) != (each in left_out) for each in shown)
        assert {each["state"] for each in shown} == {"finished"}
        rest = await client.get(f"/v1/syscalls/{left_out[-1]['id']}")
        assert rest.json()["result"]["text"] == LARGE


async def test_a_large_list_is_published_in_pieces_and_answered_whole(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of its own would have to wait for no more than a piece of another's list."""
    monkeypatch.setattr(syscalls, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(large_work, "PIECE_BYTES", 10_000)
    steps: list[int] = []
    submit = redis_transport.RedisTransport.submit

    async def noting(
        self: redis_transport.RedisTransport, asked: Sequence[Syscall]
    ) -> Sequence[Any]:
        steps.append(len(asked))
        return await submit(self, asked)

    monkeypatch.setattr(redis_transport.RedisTransport, "submit", noting)
    texts = [f"{number} " + "x" * 3_000 for number in range(20)]
    asked: list[dict[str, Any]] = [echo(text) for text in texts]
    async with served_to(redis_url) as (_, client), TinyWorker(redis_url, "tool"):
        answer = await client.post("/v1/syscalls", params={"wait_s": 20}, json=asked)
        assert [each["result"]["text"] for each in answer.json()] == texts
        assert (max(steps), sum(steps)) == (3, 20)
        asked[13] = {"body": {"type": "tool.echo", "txt": "x"}}
        refused = await client.post("/v1/syscalls", json=asked)
        assert (refused.status_code, refused.json()["field"]) == (400, "[13].body.txt")
        many = await client.post("/v1/syscalls", json=[echo("x" * 30)] * 501)
        assert many.status_code == 400
    assert sum(steps) == 20, "what is refused is not published in part"


async def test_what_is_too_large_for_one_answer_comes_in_several(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MOST_ANSWER_BYTES", MIB)
    monkeypatch.setattr(session, "ASKED_AT_ONCE", 2)
    async with served_to(redis_url) as (served, client), TinyWorker(redis_url, "tool", verbose):
        token = client.headers["authorization"].removeprefix("Bearer ")
        shown = await client.post(
            "/v1/syscalls", params={"wait_s": 20}, json=[echo() for _ in range(9)]
        )
        ids = [each["id"] for each in shown.json()]
        asks = tuple(wire.Ask(each) for each in ids)
        found = await posted(client, wire.ATTACH, wire.Attach("none", asks))
        assert [each["state"] for each in found["standings"]] == ["finished"] * 4
        async with AsyncAgent("ada", tenant="acme", url=served.url, token=token) as me:
            texts = await asyncio.gather(*(me.call(each).result() for each in ids))
    assert texts == [EchoResult(LARGE)] * 9


async def test_replies_that_come_with_a_submit_are_bounded_and_asked_for_later(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_transport, "MOST_REPLY_BYTES", MIB)
    async with served_to(redis_url) as (served, client), TinyWorker(redis_url, "tool", verbose):
        asked = asked_of(served, 4)
        await submitted(client, "none", asked)
        for each in asked:
            await client.get(f"/v1/syscalls/{each.id}/wait", params={"wait_s": 20})
        again = [msgspec.structs.replace(each, deadline_s=50.0) for each in asked]
        standings = [each["standing"] for each in await submitted(client, "none", again)]
    assert [each["state"] for each in standings] == ["finished"] * 4
    assert ["reply" in each for each in standings] == [True, True, False, False]


async def test_a_client_that_does_not_read_loses_its_session_and_nothing_else(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The box is closed once, says so once, and takes nothing more; all is asked for by id."""
    monkeypatch.setattr(router, "MOST_WAITING_BYTES", 4 * MIB)
    async with served_to(redis_url) as (served, client), TinyWorker(redis_url, "tool", verbose):
        asked = asked_of(served, 80)  # 32 MB: beyond what lies in sockets on the way
        async with client.stream("GET", wire.EVENTS) as answer:
            events = events_of(answer)
            name = msgspec.json.decode(await anext(events), type=wire.Hello).session
            with caplog.at_level(logging.WARNING):
                await submitted(client, name, asked)
                await wait_until_async(lambda: "does not read" in caplog.text)
                for each in asked:
                    await client.get(f"/v1/syscalls/{each.id}/wait", params={"wait_s": 20})
            told = [event async for event in events]  # it ends
        assert len(told) < len(asked)
        assert caplog.text.count("does not read") == 1
        asks = tuple(wire.Ask(each.id) for each in asked)
        found = (await posted(client, wire.ATTACH, wire.Attach("none", asks)))["standings"]
    assert [each["reply"]["result"]["text"] for each in found] == [LARGE] * 80


async def test_all_clients_together_are_bounded_and_the_fullest_goes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(router, "MOST_TOGETHER_BYTES", 4 * MIB)
    eve = Owner("globex", "eve")
    reader_token = await token_of(redis_url, eve)
    async with (
        served_to(redis_url) as (served, client),
        TinyWorker(redis_url, "tool", verbose),
        AsyncAgent("eve", tenant="globex", url=served.url, token=reader_token) as reader,
        client.stream("GET", wire.EVENTS) as answer,
    ):
        events = events_of(answer)
        name = msgspec.json.decode(await anext(events), type=wire.Hello).session
        with caplog.at_level(logging.WARNING):
            await submitted(client, name, asked_of(served, 80))
            await wait_until_async(lambda: "does not read" in caplog.text)
        assert "a client of ada" in caplog.text
        assert (await reader.tool.echo("still here")).text == LARGE


async def test_the_boxes_of_one_tenant_leave_room_for_others(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Eve, who reads a little late, keeps her box while Ada's many are closed, and has room."""
    monkeypatch.setattr(router, "MOST_TOGETHER_BYTES", 8 * MIB)
    free_bytes: list[int] = []
    add = Room.add

    def noted(room: Room, tenant: str, size_bytes: int) -> None:
        add(room, tenant, size_bytes)
        free_bytes.append(room.free_bytes)

    monkeypatch.setattr(Room, "add", noted)
    eve = Owner("globex", "eve")
    async with served_to(redis_url) as (served, client):
        box = served.kernel.router.begin(eve)
        box.put(b"x" * 3 * MIB)  # Ada's boxes are smaller, each
        async with TinyWorker(redis_url, "tool", verbose), AsyncExitStack() as streams:
            for _ in range(4):
                stream = client.stream("GET", wire.EVENTS)
                events = events_of(await streams.enter_async_context(stream))
                name = msgspec.json.decode(await anext(events), type=wire.Hello).session
                with caplog.at_level(logging.WARNING):
                    await submitted(client, name, asked_of(served, 40))
            await wait_until_async(lambda: "a client of ada" in caplog.text)
        assert "a client of eve" not in caplog.text
        assert not box.is_closed
        assert min(free_bytes) > 1.5 * MIB  # Ada has half of what Eve left, and a reply or two
        served.kernel.router.end(box)


# Answers that are not read.


class UnreadAnswer:
    """A connection that asks for all of some replies, and reads them when it is told to."""

    def __init__(self, url: str, token: str, ids: Sequence[str]) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(30)
        address = urlsplit(url)
        self._socket.connect((address.hostname, address.port))
        body = msgspec.json.encode(wire.Attach("none", tuple(map(wire.Ask, ids))))
        head = (
            f"POST {wire.ATTACH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body)

    async def read(self) -> int:
        """Return how many bytes come before the connection ends."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> int:
        size_bytes = 0
        with contextlib.suppress(ConnectionResetError):
            while part := self._socket.recv(1 << 20):
                size_bytes += len(part)
        self._socket.close()
        return size_bytes


async def test_a_tenants_answers_that_are_not_read_have_a_bound_and_the_slowest_is_cut_off(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of 8 MB find room; whoever reads least makes place for the next, and hears no more."""
    monkeypatch.setattr(kernel, "MOST_ANSWER_BYTES", 36 * MIB)
    eve = Owner("globex", "eve")
    eve_token = await token_of(redis_url, eve)
    async with (
        served_to(redis_url) as (served, client),
        TinyWorker(redis_url, "tool", verbose),
        httpx.AsyncClient(base_url=served.url, headers=bearer(eve_token), timeout=20) as other,
    ):
        asked = asked_of(served, 20)
        await submitted(client, "none", asked)
        for each in asked:
            await client.get(f"/v1/syscalls/{each.id}/wait", params={"wait_s": 20})
        ids = [each.id for each in asked]
        room = served.kernel.answers.room
        token = client.headers["authorization"].removeprefix("Bearer ")
        unread = []
        connections = served.server.server_state.connections
        with caplog.at_level(logging.WARNING):
            for number in range(3):
                open_before = len(connections)
                unread.append(UnreadAnswer(served.url, token, ids))
                least_bytes = min(number + 1, 2) * 8_000_000

                def is_held(least_bytes: int = least_bytes) -> bool:
                    return room.taken_bytes > least_bytes

                await wait_until_async(is_held)
            await wait_until_async(lambda: "cut off" in caplog.text)
        assert room.taken_bytes < 18 * MIB
        # Its connection is gone at once: what it held is free, not only counted so.
        await wait_until_async(lambda: len(connections) == open_before)
        hers = asked_of(served, 1, eve)
        await submitted(other, "none", hers)
        answer = await other.get(f"/v1/syscalls/{hers[0].id}/wait", params={"wait_s": 20})
        assert answer.json()["result"]["text"] == LARGE
        read = [await each.read() for each in unread]
        assert read[0] < 8_000_000
        assert min(read[1:]) > 8_000_000
        await wait_until_async(lambda: room.taken_bytes == 0)


async def test_a_list_leaves_out_what_its_tenant_has_no_room_for(redis_url: str) -> None:
    async with served_to(redis_url) as (served, client), TinyWorker(redis_url, "tool", verbose):
        room = served.kernel.answers.room
        held_bytes = room.free_bytes // 2 - MIB
        room.add(ADA.tenant, held_bytes)
        asked = [echo() for _ in range(5)]
        answer = await client.post("/v1/syscalls", params={"wait_s": 20}, json=asked)
        left_out = [each.get("left_out", False) for each in answer.json()]
        assert sum(left_out) == 3
        room.add(ADA.tenant, -held_bytes)
        answer = await client.post("/v1/syscalls", params={"wait_s": 20}, json=asked)
        assert all(each["result"]["text"] == LARGE for each in answer.json())
        await wait_until_async(lambda: room.taken_bytes == 0)


async def test_nothing_of_anothers_syscall_comes_to_a_session_not_even_for_a_moment(
    redis_url: str,
) -> None:
    words = [f"word{number} " for number in range(3_000)]
    is_asked = asyncio.Event()

    async def talkative(_syscall: Syscall, emit: Emit) -> Result:
        offset = 0
        await is_asked.wait()
        for word in words:
            await emit(offset, word)
            offset += len(word)
        return ChatResult("".join(words), "stop", MODEL)

    eve_token = await token_of(redis_url, Owner("globex", "eve"))
    async with (
        served_to(redis_url) as (served, client),
        TinyWorker(redis_url, "llm", talkative),
        AsyncAgent(
            "ada",
            tenant="acme",
            url=served.url,
            token=client.headers["authorization"].removeprefix("Bearer "),
        ) as ada,
        httpx.AsyncClient(base_url=served.url, headers=bearer(eve_token), timeout=20) as eve,
        eve.stream("GET", wire.EVENTS) as answer,
    ):
        events = events_of(answer)
        name = msgspec.json.decode(await anext(events), type=wire.Hello).session
        call = ada.llm.chat.start("a story", stream=True)
        await call.accepted()
        asked = wire.Attach(name, (wire.Ask(call.id, "llm"),) * 50)
        answer_of_ada = asyncio.ensure_future(call.result())
        tries = 0
        while not answer_of_ada.done():  # words are on their way whenever she asks
            found = await posted(eve, wire.ATTACH, asked)
            assert found["standings"] == [{}] * 50
            is_asked.set()
            tries += 1
        assert answer_of_ada.result().text == "".join(words)
        assert tries > 5
        own = asked_of(served, 1, Owner("globex", "eve"))
        await submitted(eve, name, own)
        async with TinyWorker(redis_url, "tool"):
            heard = decode_reply(await anext(events))  # what comes first is its own
    assert heard.id == own[0].id
