"""A small asyncio client for Redis: every command of one loop tick leaves in one write.

redis.asyncio costs 57 us of CPU per concurrent command, this 2 (docs/decisions/0002). It does
what the kernel's hot path needs and no more: commands and replies in order on one connection,
a time limit on each, and a new connection when the old one is gone. Commands that were under
way when a connection broke fail with RedisUnavailable: whether they ran is not known, and every
function of ours may be sent again.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from aios_broker.contract.errors import InvalidConfig, RedisUnavailable

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 15.0
DEFAULT_PORT = 6379
_PASSWORD = re.compile(r"(://[^:@/]*:).*@")  # of a URL that may be malformed
# Refusals of a server that starts, fails over, or is held up by another's script.
NOT_NOW = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "BUSY ")

Argument = bytes | str | int | float
Answer = Any  # what hiredis parses: bytes, int, None, or lists of them


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is, read from a URL."""

    path: str = ""  # unix socket; empty: TCP
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tls: bool = False
    username: str = ""
    password: str = ""
    db: int = 0


def parse_url(url: str) -> Address:
    """Read `redis://`, `rediss://` and `unix://` URLs as redis-py writes them.

    Raises:
        InvalidConfig: another scheme, a port or database that is no number.
    """
    try:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme == "unix":
            return Address(
                path=unquote(parts.path),
                username=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                db=int(query.get("db", 0)),
            )
        if parts.scheme in ("redis", "rediss"):
            db = parts.path.strip("/") or query.get("db", "0")
            return Address(
                host=parts.hostname or "127.0.0.1",
                port=parts.port or DEFAULT_PORT,
                tls=parts.scheme == "rediss",
                username=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                db=int(db),
            )
    except ValueError as error:
        raise _bad_url(url, str(error)) from error
    raise _bad_url(url, f"the scheme {parts.scheme!r} is not known")


def _bad_url(url: str, why: str) -> InvalidConfig:
    return InvalidConfig(
        f"{_without_password(url)!r} is not the URL of a Redis: {why}",
        field="AIOS_REDIS_URL",
        remedy="write redis://host:port/db, rediss://..., or unix:///path/to/socket?db=0",
    )


def _broken(cause: Exception) -> RedisUnavailable:
    return RedisUnavailable(
        f"the connection to Redis broke: {cause}",
        remedy="it may or may not have run; send it again with the same id",
    )


def _refusal(answer: hiredis.ReplyError) -> Exception:
    """Return the error for a refusal; one that passes by itself is no fault of the command."""
    if not str(answer).startswith(NOT_NOW):
        return answer
    return RedisUnavailable(
        f"Redis cannot serve now: {answer}",
        remedy="nothing was changed; send it again",
        retry_after_s=1.0,
    )


class _Protocol(asyncio.Protocol):
    """One TCP or unix connection: packs commands, parses replies, keeps them in order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=hiredis.ReplyError)
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.lost: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asserted: the transports of uvloop are no subclasses of it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or exc or ConnectionResetError("the server closed the connection")
        self._outgoing.clear()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(_broken(self.lost))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                self._settle(answer)
        except hiredis.ProtocolError as error:
            self.lost = self.lost or ConnectionAbortedError(f"what answers is no Redis: {error}")
            self.close()

    def _settle(self, answer: Answer) -> None:
        if not self._waiting:
            return
        future = self._waiting.popleft()
        if future.done():
            return
        if isinstance(answer, hiredis.ReplyError):
            future.set_exception(_refusal(answer))
        else:
            future.set_result(answer)

    def send(self, arguments: Sequence[Argument]) -> asyncio.Future[Answer]:
        """Queue a command; it leaves with all others of this loop tick."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self.lost is not None:
            future.set_exception(_broken(self.lost))
            return future
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        packed = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]
        self._outgoing.append(packed)
        self._waiting.append(future)
        return future

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None and self.lost is None:
            self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()

    def close(self) -> None:
        """Close at once; what waits fails."""
        if self.lost is None:  # the transport says so one turn of the loop later: too late
            self.lost = ConnectionAbortedError("it was given up")
        if self._transport is not None:
            self._transport.abort()


class Connection:
    """One connection to Redis, opened when first used and opened again when it broke.

    For one event loop. Blocking commands need a connection of their own. Cancelling a
    coroutine that waits for a reply does not disturb the others; the reply is dropped.
    """

    def __init__(
        self, url: str, *, name: str = "aios", timeout_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        self.url = url
        self._address = parse_url(url)
        self._name = name
        self._timeout_s = timeout_s
        self._protocol: _Protocol | None = None
        self._opening: asyncio.Lock = asyncio.Lock()
        self._refusals = 0  # attempts to open it that failed
        self._why = ""  # the last one did
        self._closed = False

    async def execute(self, *arguments: Argument, timeout_s: float | None = None) -> Answer:
        """Send one command and return its reply.

        Raises:
            RedisUnavailable: no connection, a broken one, or no reply in time.
            hiredis.ReplyError: Redis refused the command.
        """
        protocol = self._protocol
        if protocol is None or protocol.lost is not None:
            protocol = await self._open()
        future = protocol.send(arguments)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await future
        except TimeoutError as error:
            protocol.close()  # replies come in order: one that is late would delay all others
            raise RedisUnavailable(
                f"Redis did not answer {arguments[0]!r} within {limit_s:g} s",
                remedy="see `aios doctor`; it may or may not have run",
            ) from error

    async def _open(self) -> _Protocol:
        refusals = self._refusals
        async with self._opening:
            if self._closed:
                raise RedisUnavailable("this connection was closed", remedy="open a new client")
            if self._protocol is not None and self._protocol.lost is None:
                return self._protocol
            if self._refusals != refusals:  # all who waited for that attempt share its failure
                raise self._not_there()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    protocol = await self._connect_and_greet()
            except (OSError, TimeoutError, hiredis.ReplyError) as error:
                self._refusals += 1
                self._why = str(error) or "no answer in time"
                raise self._not_there() from error
            self._protocol = protocol
            return protocol

    def _not_there(self) -> RedisUnavailable:
        return RedisUnavailable(
            f"no Redis at {_without_password(self.url)}: {self._why}",
            field="AIOS_REDIS_URL",
            remedy="start it, or correct the URL",
            retry_after_s=1.0,
        )

    async def _connect_and_greet(self) -> _Protocol:
        protocol = await self._connect()
        try:
            await self._greet(protocol)
            if self._closed:
                raise RedisUnavailable("this connection was closed", remedy="open a new client")
        except BaseException:  # cancelled, too: nobody else knows of this connection
            protocol.close()
            raise
        return protocol

    async def _connect(self) -> _Protocol:
        loop = asyncio.get_running_loop()
        at = self._address
        if at.path:
            _, protocol = await loop.create_unix_connection(_Protocol, at.path)
        else:
            _, protocol = await loop.create_connection(
                _Protocol, at.host, at.port, ssl=at.tls or None
            )
        return protocol

    async def _greet(self, protocol: _Protocol) -> None:
        at = self._address
        if at.password:
            credentials = (at.username, at.password) if at.username else (at.password,)
            await protocol.send(("AUTH", *credentials))
        if at.db:
            await protocol.send(("SELECT", at.db))
        try:
            await protocol.send(("CLIENT", "SETNAME", self._name))
        except hiredis.ReplyError as error:
            if str(error).startswith("NOAUTH"):  # it wants a password, and the URL has none
                raise
            # A name is a courtesy to CLIENT LIST.

    async def aclose(self) -> None:
        """Close; what waits fails. Safe to call twice."""
        self._closed = True
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None
            await asyncio.sleep(0)  # the transport closes at the loop's next turn: let it come


def _without_password(url: str) -> str:
    return _PASSWORD.sub(r"\1***@", url)
