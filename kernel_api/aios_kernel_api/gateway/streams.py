"""Answers that come in pieces, as server-sent events, and clients that leave before they are there.

Every stream here goes the same way: the kernel takes the syscall; what is heard of it first decides
whether the answer is a stream or an error with its own status; while it is queued, comments keep
the connection alive; a client that leaves takes its syscall with it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aios_broker.client.pending import REPLY_GRACE_S, Pending
from aios_broker.contract.errors import KernelError, KernelNotRunning, WaitTimeout, from_wire
from aios_broker.contract.reply import Chunk, Reply, failure
from aios_kernel_api.bodies import left
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.problems import told_body

KEEP_ALIVE = b": waiting\n\n"
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
T = TypeVar("T")

Event = Chunk | Reply
# What came since the last look, in order; nothing: it was quiet for so long.
Events = Sequence[Event]
Hearing = AsyncGenerator[Events, None]
Source = AsyncGenerator[bytes, None]


class ClientGone(Exception):
    """The client has left: nobody reads an answer."""


@contextmanager
def waiting(kernel: Kernel, pending: Pending) -> Iterator[None]:
    """Count as one who waits; where the last of them leaves before the end, it is cancelled."""
    pending.waiters += 1
    try:
        yield
    finally:
        kernel.session.leave(pending, abandon=True)


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """Return what comes of `work`, which ends when the client leaves.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def reply_of(kernel: Kernel, pending: Pending) -> Reply:
    """Return the reply of a syscall that succeeded, once it is there.

    Raises:
        KernelError: it did not.
    """
    async with aclosing(heard(kernel, pending)) as hearing:
        async for events in hearing:
            if events and isinstance(last := events[-1], Reply):
                return _succeeded(last)
    raise AssertionError("a syscall ended without a reply")


async def heard(kernel: Kernel, pending: Pending) -> Hearing:
    """Yield what is heard of a syscall, its reply as the last; nothing: it was quiet for so long.

    A process that is told to stop ends it with an error that may be tried again.
    """
    seen, quiet_s = 0, kernel.config.api_keep_alive_s
    leaving = asyncio.ensure_future(kernel.leaving.wait())
    until_s = _limit_s(kernel, pending)
    try:
        while True:
            news = pending.news()
            events: list[Event] = list(pending.chunks[seen:])
            seen += len(events)
            if pending.reply is not None:
                yield [*events, _as_told(pending.reply)]
                return
            if events:
                yield events
                continue
            if leaving.done() or kernel.session.now_s() > until_s:
                yield [failure(pending.id, _cut(kernel))]
                return
            await asyncio.wait(
                (news, leaving), timeout=quiet_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not news.done() and not leaving.done():
                yield ()
    finally:
        leaving.cancel()


async def begun(hearing: Hearing) -> Events:
    """Return what is heard first: it decides how the answer begins; nothing: it is queued.

    Raises:
        KernelError: it failed before anything of it was there.
    """
    first = await anext(hearing)
    if first and isinstance(reply := first[0], Reply) and reply.error is not None:
        await hearing.aclose()
        _succeeded(reply)
    return first


async def source_of(hearing: Hearing, first: Events, told: Callable[[Events], bytes]) -> Source:
    """Yield what goes out for what is heard, from the first of it on."""
    async with aclosing(hearing):
        yield told(first)
        async for events in hearing:
            yield told(events)


class EventStream(Response):
    """Server-sent events from a source of bytes, for as long as the client reads them."""

    def __init__(
        self,
        request: Request,
        source: Source,
        headers: Mapping[str, str],
        held: AbstractContextManager[object],
    ) -> None:
        """`held`: what is let go when the stream is over, or was left."""
        super().__init__(None, 200, {**STREAM_HEADERS, **headers}, "text/event-stream")
        del self.headers["content-length"]
        self._request = request
        self._source = source
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        with self._held, contextlib.suppress(ClientGone):
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            await unless_left(self._request, self._send(send))

    async def _send(self, send: Send) -> None:
        async with aclosing(self._source) as source:
            async for data in source:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: bytes, name: str = "") -> bytes:
    """Return one event; `data` is JSON, which has no line of its own."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + data + b"\n\n"


def error_of(reply: Reply) -> KernelError | None:
    """Return the error of a reply."""
    if reply.error is None:
        return None
    error = from_wire(reply.error)
    error.syscall_id = reply.id
    return error


def _succeeded(reply: Reply) -> Reply:
    if (error := error_of(reply)) is not None:
        raise error
    return reply


def _as_told(reply: Reply) -> Reply:
    if reply.error is None:
        return reply
    return Reply(reply.id, error=told_body(reply.error), timings=reply.timings)


def _limit_s(kernel: Kernel, pending: Pending) -> float:
    deadline_s = pending.syscall.deadline_s if pending.syscall is not None else 0.0
    return kernel.session.now_s() + deadline_s + REPLY_GRACE_S


def _cut(kernel: Kernel) -> KernelError:
    if kernel.leaving.is_set():
        return KernelNotRunning("this process of the API stops", remedy="send it again")
    return WaitTimeout("no answer came within its deadline", remedy="give it a longer one")
