"""HTTP/1.1 as the proxy reads it: strictly, so that nobody behind it reads another request.

Source: RFC 9112. What may be read in two ways is refused.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from aios_workers.modules.tool.egress.rules import Refused

MOST_HEAD_BYTES = 64 * 1024
MOST_HEADERS = 128
CHUNK_BYTES = 64 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(r"[!-\"$-~]{1,16384}")  # no blanks, no fragment
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
# What is between two neighbours, and what would make another request of it behind them.
_DROPPED = frozenset(
    [
        "connection",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
    ]
)


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a request."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        """Return what a header says, each time that it is there."""
        return [value for key, value in self.headers if key.lower() == name]

    def length(self) -> int | None:
        """Return how many bytes its body has; None: it comes in chunks.

        Raises:
            Refused: Nobody can say.
        """
        lengths, codings = self.values("content-length"), self.values("transfer-encoding")
        if codings:
            if lengths or [each.lower() for each in codings] != ["chunked"]:
                raise Refused("the length of the body can be read in two ways", 400)
            return None
        if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
            raise Refused("the length of the body can be read in two ways", 400)
        return int(lengths[0]) if lengths else 0

    def sent(self, authority: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
        """Return it as it goes on to a host."""
        named = {
            each.strip().lower() for value in self.values("connection") for each in value.split(",")
        }
        replaced = {name.lower() for name, _ in more}
        dropped = _DROPPED | replaced | (named - {"content-length", "transfer-encoding"})
        kept = [(name, value) for name, value in self.headers if name.lower() not in dropped]
        lines = [("Host", authority), *kept, *more, ("Connection", "close")]
        text = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"{self.method} {self.target} HTTP/1.1\r\n{text}\r\n".encode("latin-1")


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """Return the head of a request; None: nothing came.

    Raises:
        Refused: It is none, or too large.
    """
    try:
        data = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise Refused("the request is not whole", 400) from error
    except asyncio.LimitOverrunError as error:
        raise Refused("the head of the request is too large", 431) from error
    first, *lines = data[:-4].decode("latin-1").split("\r\n")
    method, target = _request_line(first)
    if len(lines) > MOST_HEADERS:
        raise Refused("the request has too many headers", 431)
    return Head(method, target, tuple(map(_header, lines)))


def _request_line(line: str) -> tuple[str, str]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused("this is no request of HTTP/1.1", 400)
    method, target, _ = parts
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise Refused("this is no request of HTTP/1.1", 400)
    return method, target


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise Refused("a header of the request is none", 400)
    return name, value


async def body_of(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    """Yield the body of a request as it goes on: in chunks, where it came so.

    Raises:
        Refused: It is not whole, or its chunks are none.
    """
    try:
        if length is not None:
            async for data in _exactly(reader, length):
                yield data
            return
        while size := await _chunk_size(reader):
            yield b"%x\r\n" % size
            async for data in _exactly(reader, size):
                yield data
            if await reader.readexactly(2) != b"\r\n":
                raise Refused("a chunk of the body is none", 400)
            yield b"\r\n"
        for _ in range(MOST_HEADERS):
            if await reader.readuntil(b"\r\n") == b"\r\n":
                yield b"0\r\n\r\n"
                return
            # What follows the last chunk is not passed on.
        raise Refused("the request has too many headers", 431)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Refused("the body is not whole", 400) from error


async def _exactly(reader: asyncio.StreamReader, length: int) -> AsyncIterator[bytes]:
    while length:
        data = await reader.read(min(length, CHUNK_BYTES))
        if not data:
            raise Refused("the body is not whole", 400)
        length -= len(data)
        yield data


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    found = _CHUNK.fullmatch(await reader.readuntil(b"\r\n"))
    if found is None:
        raise Refused("a chunk of the body is none", 400)
    return int(found[1], 16)
