"""Answers that come in pieces, as server-sent events, and clients that leave before they are there.

Every stream here goes the same way: the kernel takes the syscall; what is heard of it first decides
whether the answer is a stream or an error with its own status; while it is queued, comments keep
the connection alive; a client that leaves takes its syscall with it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager

from starlette.requests import Request
from starlette.responses import Response

from aios_broker.client.pending import REPLY_GRACE_S, Pending
from aios_broker.contract.errors import KernelError, KernelNotRunning, WaitTimeout, from_wire
from aios_broker.contract.reply import ChatResult, Reply, failure
from aios_kernel_api.bodies import unless_left
from aios_kernel_api.events import Event, EventStream, Source
from aios_kernel_api.gateway.asking import Ask
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.problems import told_body

# What came since the last look, in order; nothing: it was quiet for so long.
Events = Sequence[Event]
Hearing = AsyncGenerator[Events, None]


@contextmanager
def waiting(kernel: Kernel, pending: Pending) -> Iterator[None]:
    """Count as one who waits; where the last of them leaves before the end, it is cancelled."""
    pending.waiters += 1
    try:
        yield
    finally:
        kernel.session.leave(pending, abandon=True)


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


async def streamed(
    request: Request, ask: Ask, pending: Pending, held: ExitStack, told: Callable[[Events], bytes]
) -> Response:
    """Return an answer in pieces; what is held goes with it, and is let go when it ends.

    Raises:
        KernelError: it failed before anything of it was there.
    """
    hearing = heard(ask.kernel, pending)
    first = await unless_left(request, begun(hearing))
    return EventStream(source_of(hearing, first, told), held.pop_all(), ask.headers(pending))


async def source_of(hearing: Hearing, first: Events, told: Callable[[Events], bytes]) -> Source:
    """Yield what goes out for what is heard, from the first of it on."""
    async with aclosing(hearing):
        yield told(first)
        async for events in hearing:
            yield told(events)


def chat_result_of(reply: Reply) -> ChatResult:
    """Return the result of a chat.

    Raises:
        KernelError: it failed, or has none.
    """
    result = _succeeded(reply).result
    if not isinstance(result, ChatResult):
        raise KernelError("the reply holds no answer", syscall_id=reply.id)
    return result


def _succeeded(reply: Reply) -> Reply:
    if reply.error is None:
        return reply
    error = from_wire(reply.error)
    error.syscall_id = reply.id
    raise error


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
