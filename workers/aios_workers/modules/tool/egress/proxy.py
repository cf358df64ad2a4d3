"""The proxy of one sandbox, on a socket that is there alone.

It takes one request per connection: `CONNECT` and TLS by a certificate of the sandbox's authority,
or a whole address over plain HTTP. Each is read, held against the rules, and asked of the host
anew; nothing is followed, so that a redirection comes back as another request.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from aios_broker.contract.tools import NetworkRule
from aios_workers.modules.tool.egress.addresses import Dialer, Streams
from aios_workers.modules.tool.egress.authority import Authority
from aios_workers.modules.tool.egress.message import (
    CHUNK_BYTES,
    Head,
    body_of,
    read_head,
)
from aios_workers.modules.tool.egress.rules import Origin, Refused, origin_of, rule_for
from aios_workers.modules.tool.egress.secrets import Placeholders, Scrubber

HEAD_LIMIT_S = 30.0
SILENCE_LIMIT_S = 120.0  # neither side says anything
LEAVE_LIMIT_S = 5.0
MOST_CONNECTIONS = 32
_PLAIN = (("Accept-Encoding", "identity"),)  # so that a key that is echoed is seen
_ENCODED = re.compile(rb"(?i)\r\ncontent-encoding:[ \t]*(?!identity[ \t]*\r\n)")

# What was asked for, and what became of it: origin, method, path, outcome, names of keys.
Note = Callable[[str, str, str, str, set[str]], None]


@dataclass(frozen=True, slots=True)
class Passage:
    """What one sandbox may do."""

    rules: Sequence[NetworkRule]
    placeholders: Placeholders
    note: Note


@dataclass(slots=True)
class _Asked:
    """What is known of a request, as far as it was read."""

    origin: Origin | None = None
    head: Head | None = None


class Proxy:
    """Serves the connections of one sandbox."""

    def __init__(self, passage: Passage, dialer: Dialer, authority: Authority) -> None:
        self._passage = passage
        self._dialer = dialer
        self._authority = authority
        self._serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the sandbox or the host has left, or the proxy ends
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(LEAVE_LIMIT_S):
                    await writer.wait_closed()
            writer.transport.abort()  # where the sandbox does not say that it has heard all
            self._serving.discard(task)

    async def close(self) -> None:
        """End all connections."""
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = _Asked()
        try:
            if len(self._serving) > MOST_CONNECTIONS:
                raise Refused(f"more than {MOST_CONNECTIONS} connections at once", 503)
            await self._pass(asked, reader, writer)
        except Refused as error:
            self._note(asked, str(error), set())
            writer.write(_refusal(error))
            await writer.drain()

    async def _pass(
        self, asked: _Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await self._head(asked, reader, writer)
        if head is None:
            return
        origin = asked.origin
        assert origin is not None
        path, _, _ = head.target.partition("?")
        rule = rule_for(self._passage.rules, origin, head.method, path)
        length = head.length()
        sent, known = self._passage.placeholders.replaced(head, origin, rule.secrets)
        other = await self._dialer.connect(origin)
        try:
            names = self._passage.placeholders.used(head)
            self._note(asked, "allowed", names)
            other[1].write(sent.sent(origin.authority, _PLAIN if known else ()))
            if head.values("expect"):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await _exchanged((reader, writer), other, length, Scrubber(known))
        finally:
            other[1].transport.abort()

    async def _head(
        self, asked: _Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Head | None:
        """Return the request that is meant, and note where it goes; None: nothing came."""
        head = asked.head = await _read_head(reader)
        if head is None:
            return None
        if head.method == "CONNECT":
            asked.origin = origin = origin_of("https", head.target)
            # A tunnel to where no rule leads is not begun.
            if not any(_leads(rule, origin) for rule in self._passage.rules):
                raise Refused(f"no rule of this tool names https://{origin.authority}")
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                await writer.start_tls(
                    self._authority.context(origin.host), ssl_handshake_timeout=HEAD_LIMIT_S
                )
            except (ssl.SSLError, ConnectionError) as error:
                raise ConnectionResetError from error
            head = asked.head = await _read_head(reader)
            if head is not None and not head.target.startswith("/"):
                raise Refused("the target of a request in a tunnel is a path", 400)
            return head
        asked.origin, asked.head = _whole(head)
        return asked.head

    def _note(self, asked: _Asked, outcome: str, keys: set[str]) -> None:
        origin, head = asked.origin, asked.head
        told = "" if head is None else head.target
        if origin is not None:
            told = f"{origin.scheme}://{origin.authority}"
        path = "" if head is None or head.method == "CONNECT" else head.target.partition("?")[0]
        self._passage.note(told, "" if head is None else head.method, path, outcome, keys)


def _leads(rule: NetworkRule, origin: Origin) -> bool:
    try:
        rule_for([rule], origin, rule.methods[0], rule.paths[0])
    except Refused:
        return False
    return True


def _whole(head: Head) -> tuple[Origin, Head]:
    """Return where a request with a whole address goes, and the request as that host reads it."""
    if not head.target.lower().startswith("http://"):
        raise Refused("ask for a whole address, http://HOST/PATH, or by CONNECT", 400)
    try:
        parts = urlsplit(head.target)
    except ValueError as error:
        raise Refused("this is no address", 400) from error
    origin = origin_of("http", parts.netloc)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return origin, Head(head.method, target, head.headers)


async def _read_head(reader: asyncio.StreamReader) -> Head | None:
    async with asyncio.timeout(HEAD_LIMIT_S):
        return await read_head(reader)


async def _exchanged(
    sandbox: Streams, host: Streams, length: int | None, scrubber: Scrubber
) -> None:
    """Pass the body on, and the answer back, until the host has said all or the sandbox leaves."""
    back = asyncio.create_task(_passed_back(host[0], sandbox[1], scrubber))
    there = asyncio.create_task(_passed_on(sandbox[0], host[1], length))
    left: asyncio.Task[bytes] | None = None
    try:
        await asyncio.wait((back, there), return_when=asyncio.FIRST_COMPLETED)
        if there.done() and not back.done():
            await there
            left = asyncio.create_task(sandbox[0].read(1))  # it asks for more, or leaves
            await asyncio.wait((back, left), return_when=asyncio.FIRST_COMPLETED)
        if back.done():
            await back
    finally:
        tasks = [task for task in (back, there, left) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _passed_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int | None
) -> None:
    async for data in body_of(reader, length):
        writer.write(data)
        async with asyncio.timeout(SILENCE_LIMIT_S):
            await writer.drain()


async def _passed_back(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scrubber: Scrubber
) -> None:
    if scrubber.seeks:
        writer.write(scrubber.feed(await _legible(reader)))
    while True:
        async with asyncio.timeout(SILENCE_LIMIT_S):
            data = await reader.read(CHUNK_BYTES)
            writer.write(scrubber.feed(data) if data else scrubber.rest())
            await writer.drain()
        if not data:
            return


async def _legible(reader: asyncio.StreamReader) -> bytes:
    """Return the head of an answer in which a key could be seen."""
    try:
        async with asyncio.timeout(SILENCE_LIMIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Refused("what the host says is no answer of HTTP", 502) from error
    if _ENCODED.search(head):
        raise Refused("the host compresses its answer although it was asked not to", 502)
    return head


def _refusal(error: Refused) -> bytes:
    text = f"the sandbox's way out: {error}\n".encode(errors="replace")
    head = (
        f"HTTP/1.1 {error.status} Refused\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"X-AIOS-Egress: refused\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text
