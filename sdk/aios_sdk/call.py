"""The handle of a syscall under way, and its text as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from aios_broker.client.pending import Pending
from aios_broker.client.session import Session
from aios_broker.client.transport import CallStatus
from aios_broker.contract.errors import InvalidSyscall, KernelError, WaitTimeout
from aios_broker.contract.reply import Chunk, Reply, Result, Timings
from aios_sdk.loop_thread import Home

Answer = TypeVar("Answer", bound=Result)


class Waiting:
    """Waiting for a syscall: who begins, who ends it, and until when."""

    __slots__ = ("_pending", "_session", "until_s")

    def __init__(self, session: Session, pending: Pending, until_s: float) -> None:
        self.until_s = until_s  # by the loop's clock
        self._session = session
        self._pending = pending

    @property
    def failed(self) -> bool:
        """Whether the reply is here, and is an error."""
        return self._pending.reply is not None and self._pending.reply.error is not None

    def join(self, listener: Callable[[], None]) -> None:
        """Count as one who waits for it; `listener` is called as soon as it has ended."""
        self._pending.waiters += 1
        self._pending.when_ended(listener)

    def leave(self, *, abandon: bool = False) -> None:
        """Wait no more; `abandon`: it is cancelled, unless another waits for it."""
        self._session.leave(self._pending, abandon=abandon)

    def out_of_time(self) -> WaitTimeout:
        """Return the error for who has waited long enough."""
        return WaitTimeout(
            "no answer in the time given; the syscall itself goes on",
            remedy="wait again, or attach to it by its id",
            syscall_id=self._pending.id,
        )


class Call(Generic[Answer]):
    """A syscall that was submitted. `await` it for its result, as often as you like.

    A task that is cancelled while it waits takes the syscall with it, unless another waits too
    or the handle came from `me.call(id)`.
    """

    __slots__ = ("_answer", "_pending", "_session", "_waiting")

    def __init__(
        self, session: Session, pending: Pending, answer: type[Answer] | None, wait_s: float
    ) -> None:
        self._session = session
        self._pending = pending
        self._answer = answer
        until_s = asyncio.get_running_loop().time() + wait_s
        self._waiting = Waiting(session, pending, until_s)

    def __repr__(self) -> str:
        syscall = self._pending.syscall
        kind = "attached to by id" if syscall is None else syscall.kind
        return f"<Call {self.id} ({kind}): {self._pending.state}>"

    @property
    def id(self) -> str:
        """The syscall's id: what `me.call` takes, in this process or another."""
        return self._pending.id

    @property
    def done(self) -> bool:
        """Whether the reply is here."""
        return self._pending.reply is not None

    @property
    def timings(self) -> Timings | None:
        """How long it was queued and ran, in how many slices; None until the reply is here."""
        return self._pending.reply.timings if self._pending.reply else None

    def __await__(self) -> Generator[Any, None, Answer]:
        return self.result().__await__()

    async def result(self, timeout_s: float | None = None) -> Answer:
        """Return the result, or raise the error that stands in its place.

        Raises:
            WaitTimeout: not within `timeout_s`, or else within the call's own time. The syscall
                goes on, and may be waited for again.
        """
        if self._pending.reply is None:
            await self._wait_for_end(self._until_s(timeout_s))
        return self._unwrap(self._reply())

    async def accepted(self, timeout_s: float | None = None) -> None:
        """Return when the kernel has acknowledged it: from then on, it gets its answer.

        Raises:
            Rejected: the kernel refused it, for instance with QueueFull.
        """
        await self._wait(self._pending.accepted, self._until_s(timeout_s))
        if not self._pending.was_accepted:
            self._reply().unwrap()

    async def status(self) -> CallStatus:
        """Ask the kernel where it stands: state, place in the queue, slices, waits."""
        return await self._session.status(self._pending)

    async def cancel(self) -> bool:
        """End it, waiting or running; return False if it has ended already."""
        return await self._session.cancel(self._pending)

    async def events(self) -> AsyncIterator[Chunk | Reply]:
        """Yield the chunks, from the first one, and then the reply. Errors are replies, too."""
        seen = 0
        while True:
            news = self._pending.news()
            while seen < len(self._pending.chunks):
                yield self._pending.chunks[seen]
                seen += 1
            if self._pending.reply is not None:
                yield self._pending.reply
                return
            await self._wait(news, self._waiting.until_s)

    def unwrap(self) -> Answer:
        """Return the result of a call that is done, or raise its error."""
        return self._unwrap(self._reply())

    def _until_s(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self._waiting.until_s
        return asyncio.get_running_loop().time() + timeout_s

    async def _wait_for_end(self, until_s: float) -> None:
        """Wait for the reply without a task or a shield: it is what every call does."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        timer = loop.call_at(until_s, wake)
        self._waiting.join(wake)
        cancelled = True
        try:
            await waiter
            cancelled = False
        finally:
            timer.cancel()
            self._pending.unhook(wake)
            self._waiting.leave(abandon=cancelled)
        if self._pending.reply is None:
            raise self._waiting.out_of_time()

    async def _wait(self, future: asyncio.Future[None], until_s: float) -> None:
        if future.done():
            return
        self._pending.waiters += 1
        cancelled = False
        try:
            async with asyncio.timeout_at(until_s):
                await asyncio.shield(future)
        except TimeoutError as error:
            raise self._waiting.out_of_time() from error
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            self._waiting.leave(abandon=cancelled)

    def _reply(self) -> Reply:
        if self._pending.reply is None:
            raise KernelError("it has not ended yet", remedy="await it", syscall_id=self.id)
        return self._pending.reply

    def _unwrap(self, reply: Reply) -> Answer:
        result = reply.unwrap()
        if self._answer is not None and not isinstance(result, self._answer):
            raise InvalidSyscall(
                f"this key stands for another syscall, whose answer is a {type(result).__name__}",
                field="key",
                remedy="give each step a key of its own",
                syscall_id=self.id,
            )
        return cast("Answer", result)


def waiting_of(call: Call[Answer]) -> Waiting:
    """Return how a map waits for one of its calls."""
    return call._waiting


class Stream(Generic[Answer]):
    """The text of an answer, piece by piece; together the pieces are the whole text.

    Leaving it early cancels the generation, unless somebody waits for the call or reads another
    stream of it: use it as a context manager, `async with`, to be sure of that. One that was read
    and is dropped is left, too, as soon as Python finalises it.
    """

    def __init__(self, call: Call[Answer]) -> None:
        self.call = call
        self._events = call.events()
        self._is_read = False
        self._is_left = False
        call._pending.waiters += 1  # until it is left

    def __repr__(self) -> str:
        return f"<Stream of {self.call!r}>"

    @property
    def id(self) -> str:
        """The syscall's id."""
        return self.call.id

    @property
    def result(self) -> Answer:
        """The whole result, once the stream has ended."""
        return self.call.unwrap()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        self._is_read = True
        try:
            event = await anext(self._events)
        except asyncio.CancelledError:
            self.leave()
            raise
        if isinstance(event, Chunk):
            return event.text
        self.call.unwrap()
        raise StopAsyncIteration

    async def cancel(self) -> bool:
        """End the syscall; what was streamed so far is all there will be."""
        return await self.call.cancel()

    def leave(self) -> None:
        """Read no more: the call is cancelled, unless it has ended or somebody waits for it."""
        self._leave(abandon=True)

    def _leave(self, *, abandon: bool) -> None:
        if not self._is_left:
            self._is_left = True
            self.call._session.leave_soon(self.call._pending, abandon=abandon)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def __del__(self) -> None:
        self._leave(abandon=self._is_read)  # else somebody may have taken its `call` alone


class SyncCall(Generic[Answer]):
    """A syscall that was submitted: `Call` without `await`."""

    def __init__(self, call: Call[Answer], home: Home) -> None:
        self._call = call
        self._home = home

    def __repr__(self) -> str:
        return f"<Sync{repr(self._call)[1:]}"

    @property
    def id(self) -> str:
        """The syscall's id: what `me.call` takes, in this process or another."""
        return self._call.id

    @property
    def done(self) -> bool:
        """Whether the reply is here."""
        return self._call.done

    @property
    def timings(self) -> Timings | None:
        """How long it was queued and ran, in how many slices; None until the reply is here."""
        return self._call.timings

    def result(self, timeout_s: float | None = None) -> Answer:
        """Return the result, or raise the error that stands in its place."""
        if self._call.done:
            return self._call.unwrap()
        return self._home.thread.run(self._call.result(timeout_s))

    def accepted(self, timeout_s: float | None = None) -> None:
        """Return when the kernel has acknowledged it; raise where it was refused."""
        self._home.thread.run(self._call.accepted(timeout_s))

    def status(self) -> CallStatus:
        """Ask the kernel where it stands: state, place in the queue, slices, waits."""
        return self._home.thread.run(self._call.status())

    def cancel(self) -> bool:
        """End it, waiting or running; return False if it has ended already."""
        return self._home.thread.run(self._call.cancel())

    def events(self) -> Iterator[Chunk | Reply]:
        """Yield the chunks, from the first one, and then the reply."""
        return self._home.thread.iterate(self._call.events())


class SyncStream(Generic[Answer]):
    """The text of an answer, piece by piece: `Stream` without `await`.

    Leaving it early cancels the generation: `with` makes sure of it, see `Stream`.
    """

    def __init__(self, stream: Stream[Answer], home: Home) -> None:
        self._stream = stream
        self._home = home
        self._texts = home.thread.iterate(aiter(stream))
        self.call = SyncCall(stream.call, home)

    def __repr__(self) -> str:
        return f"<SyncStream of {self.call!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    @property
    def id(self) -> str:
        """The syscall's id."""
        return self._stream.id

    @property
    def result(self) -> Answer:
        """The whole result, once the stream has ended."""
        return self._stream.result

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._texts)

    def cancel(self) -> bool:
        """End the syscall; what was streamed so far is all there will be."""
        return self.call.cancel()

    def leave(self) -> None:
        """Read no more: the call is cancelled, unless it has ended or somebody waits for it."""
        self._stream.leave()
