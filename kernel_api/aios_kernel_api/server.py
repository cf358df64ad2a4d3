"""The HTTP server: uvicorn with bounds on what a client may do to it without a token.

A head that is large or slow is refused before anything is asked; a client that does not read is cut
off; at a stop no new connection is taken, and what runs has its time to end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from itertools import chain
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from aios_broker.contract.errors import InvalidConfig
from aios_broker.retry import now_s
from aios_kernel_api.app import create_app
from aios_kernel_api.border import ABORT
from aios_kernel_api.config import ApiConfig
from aios_kernel_api.kernel import Kernel

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024  # method, path and headers of one request
MAX_HEADERS = 128
MAX_AHEAD = 8  # requests of one connection that wait for its answers: hardly a client sends so
MAX_FRAMING_BYTES = 64 * 1024  # of a body in chunks what is no body, and so much more:
FRAMING_RATE = 8  # a byte in a chunk of its own has six bytes around it
TOO_LARGE = b"431 Request Header Fields Too Large"
KEEP_ALIVE_S = 20
# A reader takes so much between two times that it is waited for (three quarters of what is sent on
# before it reads: asyncio's own bounds), and at least at such a rate.
READ_BYTES = 48 * 1024
LEAST_RATE = 32 * 1024  # bytes per s
TOLD_EVERY_S = 10.0
LAST_WORDS_S = 1.0  # for streams to say why they end, before what is left is cut
BACKLOG = 2_048


class WaitingConnections:
    """Connections that wait for their clients, each kind in the order in which they began to.

    When there are no places left, the oldest of them goes: first of those that have asked nothing
    yet, then of those that do not read what needs no token, then of those between two requests.
    """

    def __init__(self) -> None:
        self.silent: dict[BoundedProtocol, None] = {}
        self.unread: dict[BoundedProtocol, None] = {}
        self.idle: dict[BoundedProtocol, None] = {}
        self._told_s = -math.inf  # when the log was told last

    def take_out(self, connection: BoundedProtocol) -> None:
        """Let a connection be none of them."""
        for kind in (self.silent, self.unread, self.idle):
            kind.pop(connection, None)

    def drop_one(self) -> bool:
        """Close the first; False: there is none."""
        first = next(chain(self.silent, self.unread, self.idle), None)
        if first is None:
            return False
        if now_s() - self._told_s > TOLD_EVERY_S:
            self._told_s = now_s()
            logger.warning("no places are left: connections that ask nothing are closed")
        first.give_way()
        return True


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Its limits are those of the config that the server hands over."""

    slow_client_s = 30.0  # of the server's subclass
    waiting = WaitingConnections()  # this, too

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of the first request; others that wait make room."""
        super().connection_made(transport)
        most = self.limit_concurrency
        while most is not None and len(self.connections) >= most and self.waiting.drop_one():
            pass
        self.waiting.silent[self] = None
        self._head_bytes = 0
        self._framing_bytes = 0  # less FRAMING_RATE bytes for each of the body
        self._is_in_head = True
        self._is_refused = False
        self._slow_read: asyncio.TimerHandle | None = self._soon(self._head_is_late)
        self._slow_write: asyncio.TimerHandle | None = None
        self._patience_s = self.slow_client_s  # for the reader of this answer
        self._paused_s = 0.0  # since when it is waited for

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        super().connection_lost(exc)
        self.waiting.take_out(self)
        for clock in (self._slow_read, self._slow_write):
            if clock is not None:
                clock.cancel()

    def data_received(self, data: bytes) -> None:
        """Count what comes before a head has ended, and what stands around a body."""
        if self._is_refused:
            return  # it is being closed: what it had sent on is not looked at
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._slow_read is None:
                self._slow_read = self._soon(self._head_is_late)
        else:
            self._framing_bytes += len(data)
        super().data_received(data)
        if self._is_refused:
            return
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(TOO_LARGE)
        elif self._framing_bytes > MAX_FRAMING_BYTES:
            self._refuse(b"400 Bad Request")

    def on_message_begin(self) -> None:
        """Begin a request: this callback is in the head of one."""
        self._is_in_head = True
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"at_once": self.transport.abort}}

    def on_headers_complete(self) -> None:
        """End the head of a request, and see whether it may be served."""
        self._is_in_head = False
        self._head_bytes = self._framing_bytes = 0
        if self._slow_read is not None:
            self._slow_read.cancel()
            self._slow_read = None
        head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse(TOO_LARGE)
            raise ValueError("the head is too large")  # ends the parsing: nothing more is read
        self.waiting.take_out(self)
        super().on_headers_complete()
        if len(self.pipeline) > MAX_AHEAD:
            self._refuse(b"400 Bad Request")
            raise ValueError("too many requests at once")

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._framing_bytes -= len(body) * (1 + FRAMING_RATE)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Go on with the next request of the connection; what comes after all of them can wait."""
        super().on_response_complete()
        self._patience_s = self.slow_client_s
        if self.transport.is_closing():
            return
        if self.pipeline:
            self.flow.pause_reading()
        else:
            self.waiting.take_out(self)
            self.waiting.idle[self] = None

    def on_message_complete(self) -> None:
        """Wait for the head of the next request, without a clock: keep-alive has its own."""
        self._is_in_head = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Give a client that does not read what it has left of its time."""
        super().pause_writing()
        if self._slow_write is None:
            self._paused_s = self.loop.time()
            self._slow_write = self.loop.call_later(self._patience_s, self._reader_is_late)
        # The type leaves out that there is no scope before the first request.
        state = self.scope.get("state") if self.scope else None  # type: ignore[redundant-expr]
        if state is None or "caller" not in state:
            self.waiting.take_out(self)
            self.waiting.unread[self] = None

    def resume_writing(self) -> None:
        """It reads: what it has read is time for the rest."""
        super().resume_writing()
        if self._slow_write is not None:
            self._slow_write.cancel()
            self._slow_write = None
            left_s = self._patience_s - (self.loop.time() - self._paused_s)
            self._patience_s = min(left_s + READ_BYTES / LEAST_RATE, self.slow_client_s)
        if self.waiting.unread.pop(self, self) is None and self._is_between():
            self.waiting.idle[self] = None

    def _is_between(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.response_complete and not self.pipeline

    def give_way(self) -> None:
        """Close, for others; whoever has asked nothing is told why."""
        self.waiting.take_out(self)
        self.connections.discard(self)  # its place is free at once
        if self.flow.write_paused:
            self.transport.abort()
        else:
            self._refuse(b"503 Service Unavailable")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, unless its head was refused already."""
        if not self._is_refused:
            self._refuse(b"400 Bad Request")

    def _soon(self, late: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(self.slow_client_s, late)

    def _head_is_late(self) -> None:
        self._slow_read = None
        if not self.transport.is_closing():
            self._refuse(b"408 Request Timeout")

    def _reader_is_late(self) -> None:
        self._slow_write = None
        logger.warning("a client that does not read is cut off")
        self.transport.abort()

    def _refuse(self, status: bytes) -> None:
        """Answer without serving, and close; in the middle of another answer only close."""
        self._is_refused = True
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete:
            head = b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(head % status)
        self.transport.close()


class ApiServer(uvicorn.Server):
    """Serves one kernel until a signal; the kernel hears of the stop before anything is cut."""

    def __init__(self, kernel: Kernel) -> None:
        limits = kernel.config

        class Protocol(BoundedProtocol):
            slow_client_s = limits.api_slow_client_s
            waiting = WaitingConnections()

        super().__init__(
            uvicorn.Config(
                create_app(kernel),
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=limits.api_max_connections,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(limits.api_drain_s)),
                backlog=BACKLOG,
            )
        )
        self._kernel = kernel

    async def serve_without_signals(self, listening: socket.socket) -> None:
        """Serve until `should_exit` is set, in a loop that is not this server's alone."""
        await self._serve([listening])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let streams end, cut what is left."""
        self._kernel.stopping.set()
        loop = asyncio.get_running_loop()
        left_s = max(0.0, self._kernel.config.api_drain_s - LAST_WORDS_S)
        leaving = loop.call_later(left_s, self._kernel.leaving.set)
        try:
            await super().shutdown(sockets)
        finally:
            leaving.cancel()
            self._kernel.leaving.set()


def listen(config: ApiConfig) -> socket.socket:
    """Return a socket on the address of the settings.

    Raises:
        InvalidConfig: the address is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in config.api_host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.api_host, config.api_port))
    except OSError as error:
        listening.close()
        raise InvalidConfig(
            f"{config.api_host}, port {config.api_port} cannot be served: "
            f"{error.strerror or error}",
            field="AIOS_API_PORT",
            remedy="name another port, or an address of this machine as AIOS_API_HOST",
        ) from error
    listening.set_inheritable(False)
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the address that a socket is reached at."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(kernel: Kernel, listening: socket.socket) -> None:
    """Serve until a signal says stop."""
    logger.info("the API answers at %s", url_of(listening))
    await ApiServer(kernel).serve([listening])
    logger.info("the API left in good order")
