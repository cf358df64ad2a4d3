"""HTTP with an SGLang server: connections are reused, and every wait has a limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.sglang.failure import EngineFailure
from aios_workers.llm.cores.sglang.wire import (
    Embedding,
    Event,
    decode_embeddings,
    decode_line,
    is_done,
)

CONNECT_LIMIT_S = 5.0
CALL_LIMIT_S = 10.0  # of a call that generates nothing
MAX_LINE_BYTES = 64 * 1024 * 1024  # an event repeats all ids and log-probabilities so far
SAID_CHARACTERS = 300
_KEPT_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How long a stream may be silent."""

    first_s: float
    next_s: float


class EngineClient:
    """Talks to one server. Every failure is an `EngineFailure`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            self._http = self._open(api_key)
        except (httpx.InvalidURL, ValueError) as error:
            raise InvalidConfig(
                f"{url!r} is not an address: {error}", field="AIOS_SGLANG_URL", remedy="correct it"
            ) from error

    def _open(self, api_key: str | None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        return httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            # Streams have their own limits, by the kind of silence.
            timeout=httpx.Timeout(CALL_LIMIT_S, connect=CONNECT_LIMIT_S, read=None, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS),
            trust_env=False,  # a proxy for the web is no way to a server of our own
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def get(self, path: str, *, limit_s: float = CALL_LIMIT_S) -> dict[str, Any]:
        """Return the object that stands at a path."""
        data = await self._call("GET", path, None, limit_s)
        try:
            found = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise EngineFailure(f"the SGLang server's {path} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise EngineFailure(f"the SGLang server's {path} is not an object")
        return found

    async def health(self, *, limit_s: float) -> None:
        """Return when the server can generate."""
        await self._call("GET", "/health", None, limit_s)

    async def abort(self, rid: str) -> None:
        """End the request of that id. An unknown one is ignored."""
        await self._call("POST", "/abort_request", {"rid": rid}, CALL_LIMIT_S)

    async def embed(self, ids: Sequence[Sequence[int]], limit_s: float) -> list[Embedding]:
        """Return the vectors of texts, in their order."""
        data = await self._call("POST", "/encode", {"input_ids": ids}, limit_s)
        with _translated():
            found = decode_embeddings(data)
        if len(found) != len(ids):
            raise EngineFailure(f"the SGLang server made {len(found)} vectors of {len(ids)} texts")
        return found

    async def generate(
        self, body: dict[str, Any], limits: StreamLimits
    ) -> AsyncGenerator[Event, None]:
        """Stream a generation; ends only after the server said that it is complete."""
        complete = False
        with _translated():
            async with self._http.stream(
                "POST",
                "/generate",
                content=msgspec.json.encode(body),
                headers={"Content-Type": "application/json"},
            ) as response:
                if response.status_code != httpx.codes.OK:
                    async with asyncio.timeout(CALL_LIMIT_S):
                        raise refusal(response.status_code, await response.aread())
                async with contextlib.aclosing(_lines(response, limits)) as lines:
                    async for line in lines:
                        event = decode_line(line)
                        if event is not None:
                            yield event
                        complete = complete or is_done(line)  # read on: then it is used again
        if not complete:
            raise EngineFailure("the SGLang server's stream was cut off")

    async def _call(self, method: str, path: str, body: object, limit_s: float) -> bytes:
        content = None if body is None else msgspec.json.encode(body)
        with _translated(f"the SGLang server did not answer {path} within {limit_s:g} s"):
            async with asyncio.timeout(limit_s):
                response = await self._http.request(
                    method, path, content=content, headers={"Content-Type": "application/json"}
                )
        if response.status_code != httpx.codes.OK:
            raise refusal(response.status_code, response.content)
        return response.content


def refusal(status: int, body: bytes) -> EngineFailure:
    """Return what an answer other than 200 means. What we did wrong does not make it sick."""
    said = body.decode("utf-8", "replace").strip()[:SAID_CHARACTERS]
    remedy = None
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        remedy = "set AIOS_SGLANG_API_KEY to the server's key"
    elif status == httpx.codes.NOT_FOUND:
        remedy = "see whether AIOS_SGLANG_URL is the address of an SGLang server"
    server_error = status >= httpx.codes.INTERNAL_SERVER_ERROR
    return EngineFailure(
        f"the SGLang server answered {status}: {said}", sick=server_error, remedy=remedy
    )


async def _lines(response: httpx.Response, limits: StreamLimits) -> AsyncGenerator[bytes, None]:
    """Split a stream into lines. Silence beyond the limits is a failure."""
    rest = b""
    chunks = response.aiter_bytes()
    limit_s = limits.first_s
    while (chunk := await _next_chunk(chunks, limit_s)) is not None:
        limit_s = limits.next_s
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise EngineFailure(f"the SGLang server sent a line of over {MAX_LINE_BYTES} bytes")
        for line in whole:
            yield line.rstrip(b"\r")


async def _next_chunk(chunks: AsyncIterator[bytes], limit_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(limit_s):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise EngineFailure(f"the SGLang server made no step for {limit_s:g} s") from error


@contextlib.contextmanager
def _translated(when_late: str = "the SGLang server did not answer in time") -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise EngineFailure(when_late) from error
    except httpx.ConnectError as error:
        raise EngineFailure(f"the SGLang server cannot be reached: {error}") from error
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        raise EngineFailure(f"the connection to the SGLang server failed: {what}") from error
    except msgspec.DecodeError as error:
        raise EngineFailure(f"the SGLang server sent what is not an event: {error}") from error
