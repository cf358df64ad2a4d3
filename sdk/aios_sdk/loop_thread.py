"""One background thread with an event loop of its own: where a synchronous agent lives."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

from aios_broker.client.pending import forks, require_same_process
from aios_broker.contract.errors import Cancelled, KernelError

Answer = TypeVar("Answer")

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0


class LoopThread:
    """Runs coroutines for any number of other threads, one with a running loop included.

    An agent and its clones share one; it runs while they are open.
    """

    def __init__(self) -> None:
        self._fork = forks.count
        self._scheduling = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, name: str) -> None:
        """Start the thread."""
        if self._thread is not None:
            raise KernelError("the agent is open already", remedy="open it once")
        self._fork = forks.count
        started = threading.Event()
        thread = threading.Thread(target=self._serve, args=(started,), name=name, daemon=True)
        thread.start()
        if not started.wait(START_TIMEOUT_S):
            raise KernelError("the agent's thread did not start", remedy="open it again")
        self._thread = thread

    @property
    def is_running(self) -> bool:
        """Whether it runs, and in this process: not in one that this one was forked from."""
        return self._thread is not None and self._fork == forks.count

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine there and return its result; an interrupt here cancels it there."""
        if self._fork != forks.count:  # no thread of the parent lives here; its lock may be held
            work.close()
        require_same_process(self._fork)
        waiting, loop = _Waiting(work), self._loop
        try:
            with self._scheduling:  # what is scheduled before the stop is at least cancelled by it
                if (loop := self._loop) is None:
                    work.close()
                    raise KernelError(
                        "the agent is not open", remedy="use it inside its `with` block"
                    )
                loop.call_soon_threadsafe(waiting.begin)
            task = waiting.ended.get()
        except BaseException:
            waiting.leave_soon(loop)
            raise
        if task.cancelled():
            raise Cancelled("the agent was closed meanwhile")
        return task.result()

    def call(self, step: Callable[[], Answer]) -> Answer:
        """Call a function there."""

        async def called() -> Answer:
            return step()

        return self.run(called())

    def wait(self, step: Callable[[], Awaitable[Answer]]) -> Answer:
        """Call a function there and await what it returns."""

        async def awaited() -> Answer:
            return await step()

        return self.run(awaited())

    def iterate(self, source: AsyncIterator[Answer]) -> Iterator[Answer]:
        """Yield here what an asynchronous iterator yields there."""
        end = object()

        async def step() -> Answer | object:
            return await anext(source, end)

        while (item := self.run(step())) is not end:
            yield item  # type: ignore[misc]  # whatever is not `end` came from the source

    def stop(self) -> None:
        """End the loop and the thread. Safe to call twice. A child leaves the parent's alone."""
        thread, self._thread = self._thread, None
        if self._fork != forks.count:
            self._loop, self._scheduling = None, threading.Lock()
            self._fork = forks.count
            return
        with self._scheduling:
            loop, self._loop = self._loop, None
            if loop is not None:
                loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join(STOP_TIMEOUT_S)

    def _serve(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            loop = self._loop = runner.get_loop()
            loop.call_soon(started.set)
            loop.run_forever()


class _Waiting(Generic[Answer]):
    """A coroutine of the loop's, and a thread that waits for it: until it leaves, by Ctrl-C say.

    Without a lock that Python code holds: a Ctrl-C that comes as one is taken would keep it taken.
    """

    def __init__(self, work: Coroutine[Any, Any, Answer]) -> None:
        self._work = work
        self._task: asyncio.Task[Answer] | None = None
        self.ended: queue.SimpleQueue[asyncio.Task[Answer]] = queue.SimpleQueue()

    def begin(self) -> None:
        """Run it, in the loop."""
        self._task = asyncio.get_running_loop().create_task(self._work)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Answer]) -> None:
        if not task.cancelled():
            task.exception()  # who has left does not ask for it, and nobody is to be warned
        self.ended.put(task)

    def leave_soon(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have it cancelled, from the thread that waited: it has begun by then, or never does."""
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: what ran there was cancelled
                loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        if self._task is None:
            self._work.close()
        else:
            self._task.cancel()
