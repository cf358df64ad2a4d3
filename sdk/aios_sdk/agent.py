"""The synchronous agent: the same tree without `await`. A thin shell over `aagent`.

Everything happens in the asynchronous agent, on one background thread; these classes pass calls
over and wait. All of them may be used from any number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, NoReturn, ParamSpec, Self, TypeVar, Unpack, overload

from aios_broker.contract.errors import KernelError
from aios_broker.contract.llm import ContextBody, LlmChat, LlmEmbed
from aios_broker.contract.reply import (
    ChatResult,
    Chunk,
    ContextResult,
    EchoResult,
    EmbedResult,
    Reply,
    Result,
    Timings,
)
from aios_broker.contract.syscall import ToolEcho
from aios_sdk.aagent import AsyncAgent, AsyncVerbs, OptionChanges, not_built
from aios_sdk.call import Call, Stream
from aios_sdk.loop_thread import LoopThread
from aios_sdk.requests import Item, Options
from aios_sdk.transport import CallStatus

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)


class SyncCall(Generic[Answer]):
    """A syscall that was submitted: `Call` without `await`."""

    def __init__(self, call: Call[Answer], home: Home) -> None:
        self._call = call
        self._home = home

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
    """The text of an answer, piece by piece: `Stream` without `await`."""

    def __init__(self, stream: Stream[Answer], home: Home) -> None:
        self._stream = stream
        self._home = home
        self._texts = home.thread.iterate(aiter(stream))
        self.call = SyncCall(stream.call, home)

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
        if thread is not None:
            try:
                thread.run(agent.aclose())
            finally:
                thread.stop()


class Agent:
    """An agent's access to the kernel. Open it with `with`; leaving cancels what is left."""

    def __init__(
        self, name: str, *, url: str | None = None, program: str = "main",
        tenant: str = "default", token: str = "",
    ) -> None:  # fmt: skip
        """Name the agent; the arguments are those of `AsyncAgent`."""
        agent = AsyncAgent(name, url=url, program=program, tenant=tenant, token=token)
        self._bind(agent, Home())

    def _bind(self, agent: AsyncAgent, home: Home) -> None:
        self._agent = agent
        self._home = home
        self.llm = Llm(agent, home)
        self.context = Context(agent, home)
        self.tool = Tool(agent, home)

    @property
    def options(self) -> Options:
        """What holds for every call."""
        return self._agent.options

    def open(self) -> Self:
        """Reach the kernel: for notebooks; elsewhere `with` does it.

        Raises:
            KernelNotRunning, RedisUnavailable: at once, no kernel answers.
            InvalidConfig: the URL is none that this SDK can use.
        """
        self._home.open(self._agent)
        return self

    def close(self) -> None:
        """Cancel what is left, within 2 s, and close. Safe to call twice."""
        self._home.close(self._agent)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def with_options(self, **changes: Unpack[OptionChanges]) -> Agent:
        """Return a clone on the same connection whose calls differ in these options."""
        clone = object.__new__(Agent)
        clone._bind(self._agent.with_options(**changes), self._home)
        return clone

    @overload
    def submit(self, body: LlmChat) -> SyncCall[ChatResult]: ...
    @overload
    def submit(self, body: LlmEmbed) -> SyncCall[EmbedResult]: ...
    @overload
    def submit(self, body: ContextBody) -> SyncCall[ContextResult]: ...
    @overload
    def submit(self, body: ToolEcho) -> SyncCall[EchoResult]: ...
    def submit(self, body: Any) -> SyncCall[Any]:
        """Submit any body of the contract."""
        return SyncCall(self._home.thread.call(lambda: self._agent.submit(body)), self._home)

    def call(self, syscall_id: str) -> SyncCall[Result]:
        """Attach to a syscall by its id, for instance after a crash of this program."""
        return SyncCall(self._home.thread.call(lambda: self._agent.call(syscall_id)), self._home)

    @property
    def memory(self) -> NoReturn:
        """Not built in this version."""
        raise not_built("memory")

    @property
    def storage(self) -> NoReturn:
        """Not built in this version."""
        raise not_built("storage")

    @property
    def access(self) -> NoReturn:
        """Not built in this version."""
        raise not_built("access")


class Llm:
    """Generation and embeddings."""

    def __init__(self, agent: AsyncAgent, home: Home) -> None:
        self.chat = Verbs(agent.llm.chat, home)
        self.embed = Verbs(agent.llm.embed, home)


class Context:
    """Conversations that the kernel keeps."""

    def __init__(self, agent: AsyncAgent, home: Home) -> None:
        self.get = Verbs(agent.context.get, home)
        self.set = Verbs(agent.context.set, home)
        self.clear = Verbs(agent.context.clear, home)
        self.expand = Verbs(agent.context.expand, home)
        self.summarise = Verbs(agent.context.summarise, home)


class Tool:
    """Tools."""

    def __init__(self, agent: AsyncAgent, home: Home) -> None:
        self.echo = Verbs(agent.tool.echo, home)
