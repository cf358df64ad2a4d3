"""One background thread with an event loop of its own: where a synchronous agent lives."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from aios_broker.client.pending import fork_count, require_same_process
from aios_broker.contract.errors import Cancelled, KernelError

Answer = TypeVar("Answer")

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0


class LoopThread:
    """Runs coroutines for any number of other threads, one with a running loop included."""

    def __init__(self, name: str) -> None:
        self._fork = fork_count()
        self._started = threading.Event()
        self._scheduling = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise KernelError("the agent's thread did not start", remedy="open it again")

    @property
    def is_foreign(self) -> bool:
        """Whether it was started in a process that this one was forked from."""
        return self._fork != fork_count()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine there and return its result; an interrupt here cancels it there."""
        if self.is_foreign:  # no thread of the parent lives here, and its lock may be held for ever
            work.close()
        require_same_process(self._fork)
        with self._scheduling:  # what is scheduled before the stop is at least cancelled by it
            if self._loop is None:
                work.close()
                raise KernelError("the agent is not open", remedy="use it inside its `with` block")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise Cancelled("the agent was closed meanwhile") from error
        except BaseException:
            future.cancel()
            raise

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
        if self.is_foreign:
            return
        with self._scheduling:
            loop, self._loop = self._loop, None
            if loop is not None:
                loop.call_soon_threadsafe(loop.stop)
        self._thread.join(STOP_TIMEOUT_S)

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            loop = self._loop = runner.get_loop()
            loop.call_soon(self._started.set)
            loop.run_forever()


class Opens(Protocol):
    """What lives on a thread of its own while it is open: an asynchronous agent."""

    async def open(self) -> object:
        """Reach the kernel."""
        ...

    async def aclose(self) -> None:
        """Cancel what is left, and close."""
        ...


class Home:
    """The background thread of an agent and its clones, while it is open."""

    def __init__(self) -> None:
        self._thread: LoopThread | None = None

    @property
    def thread(self) -> LoopThread:
        """The thread of the open agent."""
        if self._thread is None:
            raise KernelError("the agent is not open", remedy="use it inside its `with` block")
        return self._thread

    def open(self, agent: Opens, name: str) -> None:
        """Start the thread and open the agent on it."""
        if self._thread is not None:
            raise KernelError("the agent is open already", remedy="open it once")
        thread = LoopThread(f"aios-{name}")
        try:
            thread.run(agent.open())
        except BaseException:
            thread.stop()
            raise
        self._thread = thread

    def close(self, agent: Opens) -> None:
        """Close the agent and end the thread. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None and not thread.is_foreign:
            try:
                thread.run(agent.aclose())
            finally:
                thread.stop()
