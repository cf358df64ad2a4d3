"""The handles of the synchronous agent: calls, streams and verbs without `await`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, ParamSpec, Self, TypeVar

from aios_broker.client.transport import CallStatus
from aios_broker.contract.errors import KernelError
from aios_broker.contract.reply import Chunk, Reply, Result, Timings
from aios_sdk.call import Call, Stream
from aios_sdk.loop_thread import LoopThread
from aios_sdk.requests import Item
from aios_sdk.verbs import AsyncVerbs

if TYPE_CHECKING:
    from aios_sdk.aagent import AsyncAgent

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)


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
        self._stream.leave()

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


class Verbs(Generic[Arguments, Answer]):
    """One syscall of the tree."""

    def __repr__(self) -> str:
        return repr(self._verbs)

    def __init__(self, verbs: AsyncVerbs[Arguments, Answer], home: Home) -> None:
        self._verbs = verbs
        self._home = home
        functools.update_wrapper(self, verbs)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        """Submit, and return the result."""
        return self._home.thread.wait(lambda: self._verbs(*args, **kwargs))

    def start(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> SyncCall[Answer]:
        """Submit, and return the handle."""
        call = self._home.thread.call(lambda: self._verbs.start(*args, **kwargs))
        return SyncCall(call, self._home)

    def stream(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> SyncStream[Answer]:
        """Submit, and return the text piece by piece; `.result` is there at the end."""
        stream = self._home.thread.call(lambda: self._verbs.stream(*args, **kwargs))
        return SyncStream(stream, self._home)

    def map(
        self, items: Iterable[Item], *, concurrency: int | None = None, return_errors: bool = False
    ) -> list[Answer]:
        """Submit one call per item, in one batch; return the results, in the items' order.

        The first error ends the map and cancels its other calls; with `return_errors` errors
        stand among the results instead. At most `concurrency` are under way; None: all at once.
        """
        return self._home.thread.wait(lambda: self._verbs.map(
            items, concurrency=concurrency, return_errors=return_errors
        ))  # fmt: skip


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

    def open(self, agent: AsyncAgent) -> None:
        """Start the thread and open the agent on it."""
        if self._thread is not None:
            raise KernelError("the agent is open already", remedy="open it once")
        thread = LoopThread(f"aios-{agent.options.agent}")
        try:
            thread.run(agent.open())
        except BaseException:
            thread.stop()
            raise
        self._thread = thread

    def close(self, agent: AsyncAgent) -> None:
        """Close the agent and end the thread. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None and not thread.is_foreign:
            try:
                thread.run(agent.aclose())
            finally:
                thread.stop()
