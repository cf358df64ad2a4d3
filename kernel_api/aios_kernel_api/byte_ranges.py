"""Content as HTTP gives it out: whole or a range of it, under a tag that names the content."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from aios_broker.contract.errors import InvalidRange

_RANGE = re.compile(r"bytes=([0-9]{1,18})?-([0-9]{1,18})?\Z")
_PIECE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:[0-9]{1,18}|\*)\Z")
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')

BYTES = "application/octet-stream"
# What agents wrote is nothing that a browser shows or runs as ours.
SAFE = {
    "content-disposition": "attachment",
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "cache-control": "private, no-cache",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class ByteSource:
    """Something that can be read in parts."""

    size_bytes: int
    tag: str  # of exactly this content, in quotes
    pieces: Callable[[int, int], AsyncIterator[bytes]]  # from, to (not with it)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes from `first` on, up to `end`, which is not one of them."""

    first: int
    end: int


def asked_part(header: str, size_bytes: int) -> Part | None:
    """Return the one range that a header asks for; None: all, as for several, or what is no range.

    Raises:
        InvalidRange: it lies behind the end.
    """
    found = _RANGE.match(header.strip())
    if found is None or found.groups() == (None, None):
        return None
    first, last = (None if each is None else int(each) for each in found.groups())
    if first is None:  # the last so many
        part = Part(max(size_bytes - (last or 0), 0), size_bytes)
    elif last is not None and last < first:
        return None
    else:
        part = Part(first, size_bytes if last is None else min(last + 1, size_bytes))
    if part.first >= part.end:
        raise InvalidRange(
            f"it has {size_bytes} bytes", field="range", remedy="ask for bytes that it has"
        )
    return part


def sent_piece(header: str) -> Part | None:
    """Return which bytes a body is (`Content-Range`); None: it says nothing that can be read."""
    found = _PIECE.match(header.strip())
    if found is None:
        return None
    first, last = map(int, found.groups())
    return Part(first, last + 1) if first <= last else None


def names(header: str, tag: str) -> bool:
    """Tell whether `If-Match` or `If-None-Match` names a content; `*` names any."""
    return header.strip() == "*" or tag in _TAG.findall(header)


async def answer(headers: Headers, stored: ByteSource, *, only_head: bool) -> Response:
    """Return the content, or the range of it that is asked for.

    The first piece is read before anything is answered: what fails then is told with its status.

    Raises:
        InvalidRange: the range lies behind the end.
    """
    told = {**SAFE, "etag": stored.tag, "accept-ranges": "bytes"}
    if "if-none-match" in headers and names(headers["if-none-match"], stored.tag):
        return Response(None, 304, told)
    part, status = Part(0, stored.size_bytes), 200
    if "range" in headers and headers.get("if-range", stored.tag) == stored.tag:
        asked = asked_part(headers["range"], stored.size_bytes)
        if asked is not None:
            part, status = asked, 206
            told["content-range"] = f"bytes {part.first}-{part.end - 1}/{stored.size_bytes}"
    told["content-length"] = str(part.end - part.first)
    if only_head or part.first == part.end:
        return Response(None, status, told, BYTES)
    pieces = stored.pieces(part.first, part.end)
    first = await anext(pieces)
    return StreamingResponse(_joined(first, pieces), status, told, BYTES)


async def _joined(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in pieces:
        yield piece
