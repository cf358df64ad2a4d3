"""Closed loops of clients, each on its own connection; what they cost is not what is measured."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aios_sdk import AsyncAgent
from benchmarks.api.standin import WORDS

QUESTION = "Say some words."
LIMIT_S = 60.0  # of one request


@dataclass
class Times:
    """What clients saw, in seconds."""

    whole_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)  # to the first piece of an answer
    seconds: float = 0.0


Ask = Callable[[], Awaitable[float | None]]  # returns when its first piece came


async def loops(asks: Sequence[Ask], requests: int) -> Times:
    """Let each client ask again as soon as it is answered, until so many are answered."""
    times, left = Times(), iter(range(requests))

    async def client(ask: Ask) -> None:
        for _ in left:
            began_s = time.perf_counter()
            first_s = await asyncio.wait_for(ask(), LIMIT_S)
            times.whole_s.append(time.perf_counter() - began_s)
            if first_s is not None:
                times.first_s.append(first_s - began_s)

    began_s = time.perf_counter()
    await asyncio.gather(*map(client, asks))
    times.seconds = time.perf_counter() - began_s
    return times


class Poster:
    """One connection that posts the same JSON again and again."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._request = request

    @classmethod
    async def to(cls, url: str, token: str, body: dict[str, Any]) -> Poster:
        """Connect."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        data = json.dumps(body).encode()
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        head = (
            f"POST {target} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        return cls(reader, writer, head.encode() + data)

    async def ask(self) -> None:
        """Post it, and read a whole answer."""
        await self._read_all()

    async def ask_stream(self) -> float:
        """Post it, and read a stream to its end; return when its first word came."""
        body, first_s = await self._read_all(look_for=WORDS[0].strip().encode())
        if first_s is None or WORDS[-1].strip().encode() not in body:
            raise SystemExit(f"a stream was not whole: {body[-300:]!r}")
        return first_s

    async def _read_all(self, look_for: bytes = b"") -> tuple[bytes, float | None]:
        self._writer.write(self._request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise SystemExit(f"it was refused: {head!r} {await self._reader.read(500)!r}")
        if b"chunked" not in head:
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            return await self._reader.readexactly(length), None
        body, first_s = b"", None
        while True:
            size = int(await self._reader.readline(), 16)
            body += (await self._reader.readexactly(size + 2))[:-2]
            if first_s is None and look_for in body:
                first_s = time.perf_counter()
            if not size:
                return body, first_s

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def echo(agent: AsyncAgent) -> None:
    """Have the kernel do nothing, by the SDK."""
    await agent.tool.echo("hello")


async def chat(agent: AsyncAgent) -> float:
    """Stream a chat by the SDK; return when its first word came."""
    first_s, text = None, ""
    stream = agent.llm.chat.stream(QUESTION, max_tokens=len(WORDS))
    async for piece in stream:
        text += piece
        if first_s is None and piece:
            first_s = time.perf_counter()
    if first_s is None or not text.endswith(WORDS[-1]):
        raise SystemExit(f"a stream was not whole: {text[-300:]!r}")
    return first_s
