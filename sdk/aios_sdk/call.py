"""Syscalls under way: the handle of one, its text as a stream, and many of them at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from aios_broker.client.pending import Pending
from aios_broker.client.session import Session
from aios_broker.client.transport import CallStatus
from aios_broker.contract.errors import KernelError, WaitTimeout
from aios_broker.contract.reply import Chunk, Reply, Result, Timings
from aios_broker.contract.syscall import Syscall
from aios_sdk.loop_thread import LoopThread

Answer = TypeVar("Answer", bound=Result)

PORTION = 200  # calls that are started in one turn of the loop: what one submit carries


class Handle(Generic[Answer]):
    """What is known of a syscall without waiting."""

    __slots__ = ("_pending",)

    def __init__(self, pending: Pending) -> None:
        self._pending = pending

    def __repr__(self) -> str:
        syscall = self._pending.syscall
        kind = "attached to by id" if syscall is None else syscall.kind
        return f"<{type(self).__name__} {self.id} ({kind}): {self._pending.state}>"

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

    def unwrap(self) -> Answer:
        """Return the result of a call that is done, or raise its error."""
        if self._pending.reply is None:
            raise KernelError("it has not ended yet", remedy="await it", syscall_id=self.id)
        return self._pending.reply.unwrap()  # type: ignore[return-value]  # as its kind says


class Call(Handle[Answer]):
    """A syscall that was submitted. `await` it for its result, as often as you like.

    A task that is cancelled while it waits takes the syscall with it, unless another waits too
    or the handle came from `me.call(id)`.
    """

    __slots__ = ("_session", "_until_s")

    def __init__(self, session: Session, pending: Pending, wait_s: float) -> None:
        super().__init__(pending)
        self._session = session
        self._until_s = session.now_s() + wait_s

    def __await__(self) -> Generator[Any, None, Answer]:
        return self.result().__await__()

    async def result(self, timeout_s: float | None = None) -> Answer:
        """Return the result, or raise the error that stands in its place.

        Raises:
            WaitTimeout: not within `timeout_s`, or else within the call's own time. The syscall
                goes on, and may be waited for again.
        """
        if self._pending.reply is None:
            await self._wait_for_end(timeout_s)
        return self.unwrap()

    async def accepted(self, timeout_s: float | None = None) -> None:
        """Return when the kernel has acknowledged it: from then on, it gets its answer.

        Raises:
            Rejected: the kernel refused it, for instance with QueueFull.
        """
        await self._wait(self._pending.accepted, timeout_s)
        if not self._pending.was_accepted:
            self.unwrap()

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
            await self._wait(news)

    def _limit_s(self, timeout_s: float | None) -> float:
        return self._until_s if timeout_s is None else self._session.now_s() + timeout_s

    def _leave(self, *, abandon: bool) -> None:
        """Wait no more; `abandon`: it is cancelled, unless another waits for it."""
        self._session.leave(self._pending, abandon=abandon)

    def _out_of_time(self) -> WaitTimeout:
        return WaitTimeout(
            "no answer in the time given; the syscall itself goes on",
            remedy=f"wait again: call.result(timeout_s=...); elsewhere me.call({self.id!r})",
            syscall_id=self.id,
        )

    async def _wait_for_end(self, timeout_s: float | None) -> None:
        """Wait for the reply without a task or a shield: it is what every call does."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        timer = loop.call_at(self._limit_s(timeout_s), wake)
        self._pending.waiters += 1
        self._pending.when_ended(wake)
        cancelled = True
        try:
            await waiter
            cancelled = False
        finally:
            timer.cancel()
            self._pending.unhook(wake)
            self._leave(abandon=cancelled)
        if self._pending.reply is None:
            raise self._out_of_time()

    async def _wait(self, future: asyncio.Future[None], timeout_s: float | None = None) -> None:
        if future.done():
            return
        self._pending.waiters += 1
        cancelled = False
        try:
            async with asyncio.timeout_at(self._limit_s(timeout_s)):
                await asyncio.shield(future)
        except TimeoutError as error:
            raise self._out_of_time() from error
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            self._leave(abandon=cancelled)


class Stream(Handle[Answer]):
    """The text of an answer, piece by piece; together the pieces are the whole text.

    Leaving it early cancels the generation, unless somebody waits for the call or reads another
    stream of it: use it as a context manager, `async with`, to be sure of that. One that was read
    and is dropped is left, too, as soon as Python finalises it.
    """

    def __init__(self, call: Call[Answer]) -> None:
        super().__init__(call._pending)
        self.call = call
        self._events = call.events()
        self._is_read = False
        self._is_left = False
        call._pending.waiters += 1  # until it is left

    @property
    def result(self) -> Answer:
        """The whole result, once the stream has ended."""
        return self.unwrap()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        self._is_read = True
        try:
            event = await anext(self._events)
            while isinstance(event, Chunk) and event.part != "answer":  # reasoning: `call.events`
                event = await anext(self._events)
        except asyncio.CancelledError:
            self.leave()
            raise
        if isinstance(event, Chunk):
            return event.text
        self.unwrap()
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


class SyncCall(Handle[Answer]):
    """A syscall that was submitted: `Call` without `await`."""

    def __init__(self, call: Call[Answer], thread: LoopThread) -> None:
        super().__init__(call._pending)
        self._call = call
        self._thread = thread

    def result(self, timeout_s: float | None = None) -> Answer:
        """Return the result, or raise the error that stands in its place."""
        if self.done:
            return self.unwrap()
        return self._thread.run(self._call.result(timeout_s))

    def accepted(self, timeout_s: float | None = None) -> None:
        """Return when the kernel has acknowledged it; raise where it was refused."""
        self._thread.run(self._call.accepted(timeout_s))

    def status(self) -> CallStatus:
        """Ask the kernel where it stands: state, place in the queue, slices, waits."""
        return self._thread.run(self._call.status())

    def cancel(self) -> bool:
        """End it, waiting or running; return False if it has ended already."""
        return self._thread.run(self._call.cancel())

    def events(self) -> Iterator[Chunk | Reply]:
        """Yield the chunks, from the first one, and then the reply."""
        return self._thread.iterate(self._call.events())


class SyncStream(Handle[Answer]):
    """The text of an answer, piece by piece: `Stream` without `await`.

    Leaving it early cancels the generation: `with` makes sure of it, see `Stream`.
    """

    def __init__(self, stream: Stream[Answer], thread: LoopThread) -> None:
        super().__init__(stream._pending)
        self._stream = stream
        self._thread = thread
        self._texts = thread.iterate(aiter(stream))
        self.call = SyncCall(stream.call, thread)

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
    def result(self) -> Answer:
        """The whole result, once the stream has ended."""
        return self.unwrap()

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


class Batch(Generic[Answer]):
    """Starts calls in order, at most so many at a time, and gathers what comes of them.

    Used once. The first error ends it; with `return_errors` errors stand among the results.
    """

    def __init__(
        self,
        start: Callable[[Syscall], Call[Answer]],
        syscalls: Sequence[Syscall],
        *,
        at_once: int | None,
        return_errors: bool,
    ) -> None:
        self._start = start
        self._syscalls = syscalls
        self._at_once = len(syscalls) if at_once is None else at_once
        self._return_errors = return_errors
        self._calls: list[Call[Answer]] = []
        self._under_way: set[int] = set()
        self._late: dict[int, KernelError] = {}
        self._oldest = 0  # no call before it is under way; they run out of time in order
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def results(self) -> list[Answer]:
        """Run them all; return the results in order."""
        try:
            for _ in range(0, len(self._syscalls), PORTION):
                if self._over.done():
                    break  # by an error: what has not begun is not begun any more
                if self._begin(PORTION):
                    await asyncio.sleep(0)  # these leave while the next ones are made
            self._watch_time()
            if self._calls:
                await self._over
            return [self._result(at) for at in range(len(self._calls))]
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for at in self._under_way:
                self._calls[at]._leave(abandon=True)
            self._under_way.clear()

    def _begin(self, most: int) -> bool:
        """Start up to `most` calls; return whether there is room for more of them."""
        for _ in range(most):
            if len(self._under_way) >= self._at_once or len(self._calls) == len(self._syscalls):
                return False
            at = len(self._calls)
            call = self._start(self._syscalls[at])
            self._calls.append(call)
            self._under_way.add(at)
            call._pending.waiters += 1
            call._pending.when_ended(partial(self._on_end, at))
        return True

    def _on_end(self, at: int) -> None:
        if at not in self._under_way:  # it was late, or all is over
            return
        self._under_way.remove(at)
        pending = self._calls[at]._pending
        pending.waiters -= 1
        reply = pending.reply
        if reply is not None and reply.error is not None and not self._return_errors:
            self._finish(at)
        else:
            self._go_on()

    def _go_on(self) -> None:
        try:
            if len(self._calls) < len(self._syscalls):
                self._begin(1)  # one has ended
        except KernelError as error:  # the agent was closed meanwhile
            if not self._over.done():
                self._over.set_exception(error)
            return
        if not self._under_way and not self._over.done():
            self._over.set_result(None)

    def _finish(self, at: int) -> None:
        if self._over.done():
            return
        try:
            self._result(at)
        except KernelError as error:
            self._over.set_exception(error)

    def _watch_time(self) -> None:
        """Give up those whose time is over; look again when the next one's is."""
        loop = asyncio.get_running_loop()
        while self._oldest < len(self._calls):
            at = self._oldest
            if at in self._under_way:
                until_s = self._calls[at]._until_s
                if until_s > loop.time():
                    self._timer = loop.call_at(until_s, self._watch_time)
                    return
                self._give_up(at)
            self._oldest += 1

    def _give_up(self, at: int) -> None:
        self._under_way.remove(at)
        self._calls[at]._leave(abandon=False)
        self._late[at] = self._calls[at]._out_of_time()
        if self._return_errors:
            self._go_on()
        else:
            self._finish(at)

    def _result(self, at: int) -> Answer:
        try:
            if at in self._late:
                raise self._late[at]
            return self._calls[at].unwrap()
        except KernelError as error:
            if not self._return_errors:
                raise
            return error  # type: ignore[return-value]  # as the caller asked for
