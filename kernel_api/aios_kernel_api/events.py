"""Server-sent events: what is heard of a syscall, numbered so that a reader can go on elsewhere.

The number of an event is a place in the text, `ANSWER-REASONING` in characters, and `end` with the
reply: the kernel keeps the text, so any process of the API can go on from any place of it. The
chunks that a reader gets, over all its connections, add up to the text of the result.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, suppress

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aios_broker.client.http_messages import KEEP_ALIVE_S
from aios_broker.client.pending import Pending
from aios_broker.client.transport import Attached
from aios_broker.contract.errors import ApiUnavailable, InvalidRequest, KernelError
from aios_broker.contract.reply import ChatResult, Chunk, Heard, Part, Reply, encode
from aios_broker.retry import now_s
from aios_kernel_api.bodies import ClientGone, unless_left
from aios_kernel_api.identity import identify
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.problems import problem_of, told, told_reply

END = "end"  # the number of the reply
KEEP_ALIVE = b": waiting\n\n"
RETRY = b"retry: 1000\n\n"  # ms until a browser comes again
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_PLACE = re.compile(r"(\d{1,12})-(\d{1,12})")
_PARTS: tuple[Part, ...] = ("reasoning", "answer")

Event = Chunk | Reply
Source = AsyncGenerator[bytes, None]


class EventStream(Response):
    """An answer that goes on for as long as there is something to tell, and somebody who reads."""

    def __init__(
        self,
        source: Source,
        held: AbstractContextManager[object],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send what comes of `source`; `held` is let go when the answer ends, however it does."""
        super().__init__(None, 200, {**HEADERS, **(headers or {})}, "text/event-stream")
        del self.headers["content-length"]
        self._source = source
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._held, suppress(ClientGone):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_left(Request(scope, receive), self._send(send))

    async def _send(self, send: Send) -> None:
        async with aclosing(self._source) as source:
            async for data in source:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: bytes, name: str = "", number: str = "") -> bytes:
    """Return one event; `data` is JSON, which has no line of its own."""
    head = f"id: {number}\n" if number else ""
    if name:
        head += f"event: {name}\n"
    return head.encode() + b"data: " + data + b"\n\n"


async def follow(
    kernel: Kernel, pending: Pending, heard: Heard | None = None, *, idle_s: float = KEEP_ALIVE_S
) -> AsyncIterator[Sequence[Event]]:
    """Yield what comes of a syscall, from a place of its text on, and at last its reply.

    An empty batch says that nothing came for `idle_s`. Whoever follows holds the syscall
    (`Kernel.holding`).

    Raises:
        ApiUnavailable: the process is told to stop; the reader can go on from another one.
    """
    seen, heard = 0, heard or Heard()
    while True:
        news, batch = pending.news(), list[Event]()
        for chunk in pending.chunks[seen:]:
            if (new := _beyond(chunk, heard)) is not None:
                batch.append(new)
                heard = _moved(heard, new)
        seen = len(pending.chunks)
        if pending.reply is not None:
            yield [*batch, *_unsent(pending.reply, heard), pending.reply]
            return
        if batch:
            yield batch
        elif kernel.router.is_stopping:
            raise ApiUnavailable(
                "this process of the API stops",
                remedy="go on from the last event",
                retry_after_s=1.0,
            )
        elif not await kernel.router.hears(news, idle_s):
            yield ()


async def told_of(request: Request, pending: Pending, heard: Heard) -> Source:
    """Yield the events of a syscall from a place on, as they are sent."""
    guard = Guard(request)
    yield RETRY
    try:
        async for batch in follow(kernel_of(request), pending, heard):
            await guard.check()
            if batch and pending.state in (
                "lost",
                "refused",
            ):  # this client gave up, not the kernel
                _given_up(pending)
            data, heard = numbered(batch, heard)
            yield data or KEEP_ALIVE
    except KernelError as error:
        yield failed(error)


async def all_told(attached: Attached, reply: Reply, heard: Heard) -> Source:
    """Yield the events of a syscall that has ended, from a place on."""
    place = heard
    for chunk in attached.missing:
        place = _moved(place, chunk)
    yield numbered([*attached.missing, *_unsent(reply, place), reply], heard)[0]


def numbered(events: Sequence[Event], heard: Heard) -> tuple[bytes, Heard]:
    """Return events as they are sent, and the place behind them."""
    parts = []
    for each in events:
        told_as: Event = each
        if isinstance(each, Chunk):
            heard = _moved(heard, each)
            number, name = f"{heard.answer}-{heard.reasoning}", "chunk"
        else:
            number, name = END, "reply"
            told_as = told_reply(each)
        parts.append(event(encode(told_as), name, number))
    return b"".join(parts), heard


def failed(error: KernelError) -> bytes:
    """Return the event that ends a stream before its time. It has no number: it can be resumed."""
    return event(msgspec.json.encode(problem_of(told(error))), "error")


def place_of(request: Request) -> Heard | None:
    """Return from where a reader goes on; None: it has heard all.

    Raises:
        InvalidRequest: `Last-Event-ID` is no number of ours.
    """
    last = request.headers.get("last-event-id", "").strip()
    if not last:
        return Heard()
    if last == END:
        return None
    place = _PLACE.fullmatch(last)
    if place is None:
        raise InvalidRequest(
            "it is the number of no event",
            field="last-event-id",
            remedy="send the `id` of the last event that came, or leave it out",
        )
    return Heard(int(place[1]), int(place[2]))


class Guard:
    """Looks again and again whether the token that a stream was opened with is still good."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._next_s = now_s() + KEEP_ALIVE_S

    async def check(self) -> None:
        """Return at once, nearly always.

        Raises:
            KernelError: the token was revoked, has expired, or its agent is suspended.
        """
        if now_s() >= self._next_s:
            self._next_s = now_s() + KEEP_ALIVE_S
            await identify(self._request.headers, kernel_of(self._request))


def _given_up(pending: Pending) -> None:
    """Raise why this process waits no more."""
    assert pending.reply is not None
    pending.reply.unwrap()


def _beyond(chunk: Chunk, heard: Heard) -> Chunk | None:
    """Return what of a chunk is new."""
    have: int = getattr(heard, chunk.part)
    if chunk.offset + len(chunk.text) <= have:
        return None
    if chunk.offset >= have:
        return chunk
    return Chunk(chunk.id, have, chunk.text[have - chunk.offset :], chunk.part)


def _moved(heard: Heard, chunk: Chunk) -> Heard:
    """Return the place behind a chunk."""
    have = chunk.offset + len(chunk.text)
    return Heard(have, heard.reasoning) if chunk.part == "answer" else Heard(heard.answer, have)


def _unsent(reply: Reply, heard: Heard) -> list[Chunk]:
    """Return what of a result's text has not been sent."""
    result = reply.result
    if not isinstance(result, ChatResult):
        return []
    texts = {"reasoning": result.reasoning, "answer": result.text}
    rests = ((part, getattr(heard, part), texts[part]) for part in _PARTS)
    return [Chunk(reply.id, have, text[have:], part) for part, have, text in rests if text[have:]]
