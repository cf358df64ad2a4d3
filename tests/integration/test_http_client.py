"""A connection that is lost as soon as it is made, in both event loops: who asked hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import anyio
import httpx
import pytest
import uvloop

from aios_broker.client.http_transport import HttpTransport
from aios_broker.contract.errors import ApiUnavailable, CoreError
from aios_broker.http_client import HttpClient
from aios_workers.llm.cores.openai.client import Client, Limits
from aios_workers.llm.cores.sglang.client import EngineClient, EngineFailure
from tests.openai_endpoint import OpenAIEndpoint

LIMITS = Limits(5.0, 5.0, 5.0)
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def endpoint() -> Iterator[OpenAIEndpoint]:
    with OpenAIEndpoint().running() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is gone before anybody asks anything of it."""
    connect = anyio.connect_tcp

    async def lost(*where: object, **options: object) -> object:
        stream = await connect(*where, **options)  # type: ignore[call-overload]
        await stream.aclose()
        return stream

    monkeypatch.setattr(anyio, "connect_tcp", lost)


async def by_httpx(url: str) -> None:
    async with HttpClient() as client:
        with pytest.raises(httpx.TransportError):
            await client.get(url)


async def by_an_endpoints_core(url: str) -> None:
    client = Client("one", url, None, LIMITS)
    assert not await client.answers()
    with pytest.raises(CoreError, match="cannot be used"):
        await client.get("models")
    await client.aclose()


async def by_an_engines_core(url: str) -> None:
    client = EngineClient(url)
    with pytest.raises(EngineFailure):
        await client.get("/server_info")
    await client.close()


async def by_the_sdk(url: str) -> None:
    transport = HttpTransport(url, "ada", "")
    with pytest.raises(ApiUnavailable):
        await transport.open()
    await transport.aclose()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("asks", [by_httpx, by_an_endpoints_core, by_an_engines_core, by_the_sdk])
def test_who_asks_hears_that_nobody_is_there(
    endpoint: OpenAIEndpoint, asks: Callable[[str], Awaitable[None]], loop: Loop
) -> None:
    async def ask() -> None:
        await asks(endpoint.url)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(ask())


async def test_a_fault_of_ours_stays_one() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AttributeError(name=request.url.host, obj=None)

    async with HttpClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(AttributeError):
            await client.get("http://somewhere")
