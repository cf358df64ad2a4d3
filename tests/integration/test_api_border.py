"""What a client may do to the API: bodies, heads, slowness, numbers; nobody else pays for it."""

import asyncio
import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from aios_broker.contract.syscall import MAX_LEVELS
from aios_kernel_api import server
from tests.api_scene import ApiScene, bearer, serving
from tests.integration.test_api_syscalls import SLOW, echo, problem
from tests.waiting import wait_until_async

MEBIBYTE = 1024 * 1024


@contextmanager
def raw(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        yield connection


def said(connection: socket.socket) -> bytes:
    """Read until the server closes, or cuts it off."""
    data = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            data += part
    return data


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b'"text"', "body"),
        (b"[]", "body"),
        (b"{}", "body"),
        (b'{"body":{}}', "body.type"),
        (b'{"body":{"type":"tool.echo","txt":"x"}}', "body.txt"),
        (b'{"body":{"type":"tool.echo","text":7}}', "body.text"),
        (b'{"body":{"type":"tool.echo"},"agent":"boss"}', "agent"),
        (b'{"body":{"type":"tool.echo"},"nice":99}', "nice"),
        (b'{"body":{"type":"tool.echo"},"deadline_s":0}', "deadline_s"),
        (b'{"body":{"type":"tool.echo"},"program":"a b"}', "program"),
        (b'{"body":{"type":"tool.echo","text":"\\u0000"}}', "body.text"),
        (b'{"body":{"type":"tool.echo","text":"\\ud800"}}', "body"),
    ],
)
def test_what_is_no_syscall_is_refused_with_its_place(
    api: ApiScene, body: bytes, field: str
) -> None:
    with api.client(api.agent) as client:
        found = problem(client.post("/v1/syscalls", content=body), 400, "invalid-syscall")
    assert found["field"].startswith(field), found
    assert found["remedy"]


def test_an_unknown_kind_is_named_also_in_a_list(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        for asked in ({"body": {"type": "tool.fly"}}, [echo(), {"body": {"type": "tool.fly"}}]):
            found = problem(client.post("/v1/syscalls", json=asked), 400, "unknown-module")
            assert "tool.fly" in found["detail"]


def test_a_body_that_is_nested_too_deeply_is_refused(api: ApiScene) -> None:
    deep = b'{"body":{"type":"tool.echo","text":' + b"[" * (MAX_LEVELS + 1)
    with api.client(api.agent) as client:
        problem(client.post("/v1/syscalls", content=deep + b"1"), 400, "invalid-syscall")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("wait_s=soon", "query.wait_s"),
        ("wait_s=-1", "query.wait_s"),
        ("wait_s=nan", "query.wait_s"),
        ("wait_s=1&wait_s=2", "query.wait_s"),
        ("wait=1", "query.wait"),
    ],
)
def test_a_wrong_query_is_refused(api: ApiScene, query: str, field: str) -> None:
    with api.client(api.agent) as client:
        answer = client.post(f"/v1/syscalls?{query}", json=echo())
        assert problem(answer, 400, "invalid-request")["field"] == field


def test_routes_and_methods_that_are_not_there(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        problem(client.get("/v1/nothing"), 404, "not-found")
        problem(client.get("/v1/syscalls/"), 404, "not-found")
        answer = client.delete("/v1/syscalls")
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == "GET, HEAD, POST"  # of all routes at this path
        problem(client.get("/v1/syscalls/nope"), 400, "invalid-syscall")
        problem(client.get("/v1/syscalls/" + "0" * 32), 404, "unknown-syscall")


def endless() -> Iterator[bytes]:
    for _ in range(64):
        yield b" " * MEBIBYTE


@pytest.mark.parametrize("body", [b" " * (16 * MEBIBYTE + 1), endless()], ids=["declared", "not"])
def test_a_body_over_the_limit_is_refused(api: ApiScene, body: bytes | Iterator[bytes]) -> None:
    with api.client(api.agent) as client:
        try:
            answer = client.post("/v1/syscalls", content=body)
        except (httpx.WriteError, httpx.ReadError):
            return  # it was answered and closed before all was sent
    problem(answer, 413, "request-too-large")
    assert answer.headers["connection"] == "close"


def test_one_syscall_over_its_own_limit_is_refused(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        answer = client.post("/v1/syscalls", json=echo("x" * 4 * MEBIBYTE))
        problem(answer, 400, "invalid-syscall")


def test_a_compressed_body_is_refused_before_it_is_unpacked(api: ApiScene) -> None:
    bomb = gzip.compress(json.dumps(echo("x" * 3 * MEBIBYTE)).encode())
    with api.client(api.agent) as client:
        headers = {"content-encoding": "gzip"}
        answer = client.post("/v1/syscalls", content=bomb, headers=headers)
        problem(answer, 415, "unsupported-media")


def test_a_head_that_is_too_large_is_refused(api: ApiScene) -> None:
    for head in (b"x: " + b"y" * 70_000, b"\r\n".join(b"h%d: v" % n for n in range(200))):
        with raw(api.url) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n")
            assert said(connection).startswith(b"HTTP/1.1 431 ")
    with raw(api.url) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall(b"GET /" + b"y" * 64 * MEBIBYTE)  # one that never ends


def test_what_is_no_http_is_refused(api: ApiScene) -> None:
    for garbage in (
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ):
        with raw(api.url) as connection:
            connection.sendall(garbage)
            assert said(connection).startswith(b"HTTP/1.1 400 ")


def test_who_sends_ahead_without_end_is_cut_off(api: ApiScene) -> None:
    """Each request that was read is work for the loop that all are served by."""
    request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer aios_nobody\r\n\r\n"
    with raw(api.url) as connection:
        connection.sendall(request * 5 + b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert said(connection).count(b"HTTP/1.1 ") == 6
    with raw(api.url) as connection:
        connection.sendall(request * 40)
        assert said(connection).count(b"HTTP/1.1 ") < 20


def test_chunks_that_hold_nothing_are_not_read_for_ever(api: ApiScene) -> None:
    head = (
        b"POST /v1/syscalls HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        b"content-type: application/json\r\nauthorization: Bearer " + api.agent.encode() + b"\r\n"
    )
    with raw(api.url) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall(head + b"\r\n5;" + b"x" * 64 * MEBIBYTE)
    body = json.dumps(echo("x" * 50_000)).encode()
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    with raw(api.url) as connection:
        connection.sendall(head + b"connection: close\r\n\r\n" + chunks)
        assert said(connection).startswith(b"HTTP/1.1 20")


def test_a_header_cannot_bring_another_into_the_answer(api: ApiScene) -> None:
    with raw(api.url) as connection:
        connection.sendall(
            b"GET /v1/syscalls/a%0d%0aset-cookie:%20x=1 HTTP/1.1\r\nhost: x\r\n"
            b"x-request-id: evil\r\nauthorization: Bearer " + api.agent.encode() + b"\r\n"
            b"idempotency-key: a\x0bb\r\nconnection: close\r\n\r\n"
        )
        head = said(connection).partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head
    assert b"evil" not in head


def test_no_origin_is_let_in(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = client.options("/v1/syscalls", headers=headers)
        assert answer.status_code == 405
        sent = client.post("/v1/syscalls", json=echo(), headers=headers)
    for each in (answer, sent):
        assert not [name for name in each.headers if name.startswith("access-control")]


async def test_a_head_that_does_not_come_is_not_waited_for(api: ApiScene) -> None:
    async with serving(api.redis_url, api.database_url, api_slow_client_s=0.3) as served:
        for sent in (b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"):
            reader, writer = await asyncio.open_connection(*where(served.url))
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer.startswith(b"HTTP/1.1 408 ")
            writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(api: ApiScene) -> None:
    async with serving(api.redis_url, api.database_url, api_slow_client_s=0.3) as served:
        reader, writer = await asyncio.open_connection(*where(served.url))
        writer.write(
            b"POST /v1/syscalls HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
            b"authorization: Bearer " + api.agent.encode() + b"\r\n\r\n{"
        )
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 5)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request-timeout" in answer
        writer.close()
        assert served.kernel.room.free_bytes == served.kernel.config.api_max_body_bytes


async def test_who_leaves_in_the_middle_of_a_body_leaves_nothing(api: ApiScene) -> None:
    async with serving(api.redis_url, api.database_url) as served:
        _, writer = await asyncio.open_connection(*where(served.url))
        writer.write(
            b"POST /v1/syscalls HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
            b"authorization: Bearer " + api.agent.encode() + b"\r\n\r\n{"
        )
        await wait_until_async(
            lambda: served.kernel.room.free_bytes < served.kernel.config.api_max_body_bytes
        )
        writer.close()
        await wait_until_async(
            lambda: served.kernel.room.free_bytes == served.kernel.config.api_max_body_bytes
        )


async def test_all_bodies_together_have_a_bound(api: ApiScene) -> None:
    async with (
        serving(api.redis_url, api.database_url, api_max_body_bytes=MEBIBYTE) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(api.agent)) as client,
    ):
        answer = await client.post("/v1/syscalls", json=echo("x" * (MEBIBYTE + 1)))
        found = problem(answer, 503, "queue-full")
        assert found["retryable"]
        assert answer.headers["retry-after"] == "1"
        assert served.kernel.room.free_bytes == MEBIBYTE


async def ending(client: httpx.AsyncClient, place: str) -> httpx.Response:
    """Wait for a syscall as soon as its agent may."""
    while True:
        answer = await client.get(f"{place}/wait", params={"wait_s": 20})
        if answer.status_code != 429:
            return answer


async def refusal(client: httpx.AsyncClient, place: str) -> httpx.Response | None:
    answer = await client.get(place)
    return answer if answer.status_code == 429 else None


async def accepted(client: httpx.AsyncClient, place: str) -> bool:
    return (await client.get(place)).status_code == 200


async def test_connections_that_ask_nothing_make_room_for_those_that_do(api: ApiScene) -> None:
    """The oldest goes first: whoever has just come has its time to ask."""
    async with serving(api.redis_url, api.database_url, api_max_connections=3) as served:
        silent = [await asyncio.open_connection(*where(served.url)) for _ in range(6)]
        async with httpx.AsyncClient(base_url=served.url) as client:
            assert (await client.get("/healthz")).status_code == 200
            told = await asyncio.wait_for(asyncio.gather(*(r.read() for r, _ in silent[:5])), 10)
            assert all(each.startswith(b"HTTP/1.1 503 ") for each in told)
            reader, writer = silent[5]
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200 ")
            # The client keeps its connection between two requests: so it makes room, too.
            more = [await asyncio.open_connection(*where(served.url)) for _ in range(3)]
            assert (await client.get("/healthz")).status_code == 200
        for _, writer in (*silent, *more):
            writer.close()


async def test_beyond_so_many_requests_it_says_that_it_is_busy(api: ApiScene) -> None:
    token = api.token()
    async with (
        serving(api.redis_url, api.database_url, api_max_connections=3) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client,
    ):
        place = (
            f"/v1/syscalls/{(await client.post('/v1/syscalls', json={'body': SLOW})).json()['id']}"
        )
        waiting = [asyncio.create_task(ending(client, place)) for _ in range(2)]
        await wait_until_async(lambda: len(served.server.server_state.tasks) == 2)

        async def healthz() -> int:
            async with httpx.AsyncClient(base_url=served.url) as other:
                return (await other.get("/healthz")).status_code

        assert await healthz() == 503
        waiting[0].cancel()

        async def is_free() -> bool:
            return await healthz() == 200

        await wait_until_async(is_free)
        await client.post(f"{place}/cancel")
        await waiting[1]


def where(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def test_one_agent_has_so_many_requests_open_and_no_more(api: ApiScene) -> None:
    token = api.token()
    async with (
        serving(api.redis_url, api.database_url, api_max_requests=2) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client,
    ):
        taken = await client.post("/v1/syscalls", json={"body": SLOW})
        place = f"/v1/syscalls/{taken.json()['id']}"
        waiting = [asyncio.create_task(ending(client, place)) for _ in range(2)]
        refused = await wait_until_async(lambda: refusal(client, place))
        assert refused is not None
        found = problem(refused, 429, "quota-exceeded")
        assert (found["field"], found["retryable"]) == ("requests", True)
        async with httpx.AsyncClient(base_url=served.url, headers=bearer(api.agent)) as other:
            assert (await other.get("/readyz")).status_code == 200
            assert (await other.post("/v1/syscalls", json=echo())).is_success
        waiting[0].cancel()  # its client leaves: its place is free
        await wait_until_async(lambda: accepted(client, place))
        await client.post(f"{place}/cancel")
        assert (await waiting[1]).json()["state"] == "cancelled"


async def test_a_client_that_does_not_read_is_cut_off(api: ApiScene) -> None:
    token = api.token()
    async with (
        serving(api.redis_url, api.database_url, api_slow_client_s=0.5) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token)) as client,
    ):
        asked = [echo("x" * 900_000) for _ in range(16)]
        sent = msgspec.json.encode(asked)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # only before it connects
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where(served.url))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        writer.write(
            b"POST /v1/syscalls?wait_s=20 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            + token.encode()
            + b"\r\ncontent-length: %d\r\n\r\n" % len(sent)
            + sent
        )
        await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)
        await wait_until_async(lambda: not served.server.server_state.connections)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(16 * 900_000)
        writer.close()
        assert (await client.post("/v1/syscalls", json=echo())).is_success


async def test_a_client_that_reads_too_slowly_is_cut_off_although_it_reads(
    api: ApiScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is counted in all: it does not begin anew with each piece that was read."""
    monkeypatch.setattr(server, "LEAST_RATE", 1e12)  # what is read is worth no time
    sent = msgspec.json.encode([echo("x" * 900_000) for _ in range(16)])
    async with serving(api.redis_url, api.database_url, api_slow_client_s=1.0) as served:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # only before it connects
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where(served.url))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        writer.write(
            b"POST /v1/syscalls?wait_s=20 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            + api.token().encode()
            + b"\r\ncontent-length: %d\r\n\r\n" % len(sent)
            + sent
        )
        size_bytes = 0
        with suppress(ConnectionError):
            while part := await asyncio.wait_for(reader.read(65_536), 25):
                size_bytes += len(part)
                await asyncio.sleep(0.02)  # a pace, and no wait for anything
        writer.close()
    assert 0 < size_bytes < 16 * 900_000
