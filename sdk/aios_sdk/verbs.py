"""The four verbs that each kind of syscall has: submitted by a call, and by its three others.

An exec session that an agent has opened has them too, with its facts and a block that closes it:

async with me.exec.open("python") as box:
    print((await box.run("1 + 1")).value)
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    overload,
)

from msgspec import structs

from aios_broker.contract.errors import (
    InvalidSyscall,
    KernelError,
    SessionLost,
    UnknownSession,
    WaitTimeout,
)
from aios_broker.contract.exec import (
    ExecChanges,
    ExecClose,
    ExecCommit,
    ExecDiscard,
    ExecInterrupt,
    ExecOutcome,
    ExecReset,
    ExecRun,
    ExecSession,
)
from aios_broker.contract.ids import Ids
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.contract.workspace import WorkspaceChanges
from aios_sdk.call import Batch, Call, Stream, SyncCall, SyncStream
from aios_sdk.help_text import help_text
from aios_sdk.loop_thread import LoopThread
from aios_sdk.openai_words import STREAM
from aios_sdk.requests import Item, Options, RawBody, build_syscall, call_body, item_body

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)


class Submitter(Protocol):
    """The agent in whose name the verbs submit."""

    @property
    def options(self) -> Options:
        """What holds for every call."""
        ...

    @property
    def _ids(self) -> Ids:
        """What makes the ids of its syscalls."""
        ...

    def _start(self, syscall: Syscall) -> Call[Any]:
        """Submit."""
        ...


class AsyncVerbs(Generic[Arguments, Answer]):
    """One syscall of the tree. All verbs submit when they are called, not when awaited."""

    def __init__(
        self, agent: Submitter, path: str, build: Callable[Arguments, RawBody | Body]
    ) -> None:
        self._agent = agent
        self._path = path  # such as `memory.search`
        self._build = build
        functools.update_wrapper(self, build)
        self.__name__ = self.__qualname__ = path
        self.__doc__ = help_text(path, build)

    def __repr__(self) -> str:
        return f"<{self._path} of {self._agent!r}>"

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Call[Answer]:
        """Submit; `await` what is returned for the result."""
        if kwargs.get("stream"):
            raise InvalidSyscall("it returns an answer whole", field="body.stream", remedy=STREAM)
        return self.start(*args, **kwargs)

    def start(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Call[Answer]:
        """Submit, and return the handle."""
        body = call_body(self._path, self._build, *args, **kwargs)
        agent = self._agent
        return agent._start(build_syscall(agent.options, body, agent._ids))

    def stream(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Stream[Answer]:
        """Submit, and return the text piece by piece; `.result` is there at the end."""
        body = call_body(self._path, self._build, *args, **kwargs)
        agent = self._agent
        syscall = build_syscall(agent.options, body, agent._ids, stream=True)
        return Stream(agent._start(syscall))

    def map(
        self, items: Iterable[Item], *, concurrency: int | None = None, return_errors: bool = False
    ) -> asyncio.Task[list[Answer]]:
        """Submit one call per item, in batches; await the results, in the items' order.

        The first error ends the map and cancels its other calls; with `return_errors` errors
        stand among the results instead. At most `concurrency` are under way; None: all at once.
        """
        options, ids = self._agent.options, self._agent._ids
        bodies = [item_body(self._path, self._build, item) for item in items]
        syscalls = [build_syscall(options, body, ids, index=at) for at, body in enumerate(bodies)]
        if concurrency is not None and concurrency < 1:
            raise InvalidSyscall(
                f"{concurrency} is too few", field="concurrency", remedy="give 1 or more, or None"
            )
        batch = Batch(
            self._agent._start, syscalls, at_once=concurrency, return_errors=return_errors
        )
        return asyncio.ensure_future(batch.results())


class Verbs(Generic[Arguments, Answer]):
    """One syscall of the tree."""

    def __repr__(self) -> str:
        return repr(self._verbs)

    def __init__(self, verbs: AsyncVerbs[Arguments, Answer], thread: LoopThread) -> None:
        self._verbs = verbs
        self._thread = thread
        functools.update_wrapper(self, verbs)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        """Submit, and return the result."""
        return self._thread.wait(lambda: self._verbs(*args, **kwargs))

    def start(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> SyncCall[Answer]:
        """Submit, and return the handle."""
        call = self._thread.call(lambda: self._verbs.start(*args, **kwargs))
        return SyncCall(call, self._thread)

    def stream(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> SyncStream[Answer]:
        """Submit, and return the text piece by piece; `.result` is there at the end."""
        stream = self._thread.call(lambda: self._verbs.stream(*args, **kwargs))
        return SyncStream(stream, self._thread)

    def map(
        self, items: Iterable[Item], *, concurrency: int | None = None, return_errors: bool = False
    ) -> list[Answer]:
        """Submit one call per item, in batches; return the results, in the items' order.

        The first error ends the map and cancels its other calls; with `return_errors` errors
        stand among the results instead. At most `concurrency` are under way; None: all at once.
        """
        return self._thread.wait(
            lambda: self._verbs.map(items, concurrency=concurrency, return_errors=return_errors)
        )


class SessionKind(Generic[Arguments, Answer]):
    """One kind of syscall of a session: `session.run(...)` is `me.exec.run(session.id, ...)`."""

    def __init__(
        self, build: Callable[Concatenate[str, Arguments], RawBody | Body], answer: type[Answer]
    ) -> None:
        self._build = build  # `answer` is for type checkers alone

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, session: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, session: "AsyncOpenSession", owner: type
    ) -> AsyncVerbs[Arguments, Answer]: ...
    @overload
    def __get__(self, session: "OpenSession", owner: type) -> Verbs[Arguments, Answer]: ...
    def __get__(
        self, session: "AsyncOpenSession | OpenSession | None", owner: type
    ) -> Self | AsyncVerbs[Arguments, Answer] | Verbs[Arguments, Answer]:
        """Return the verbs of this kind, made when they are first asked for."""
        if session is None:
            return self
        build = functools.partial(self._build, session.id)
        build.__doc__ = self._build.__doc__
        kept = session.__dict__
        verbs: AsyncVerbs[Arguments, Answer] = AsyncVerbs(
            kept["_agent"], f"exec.{self._name}", build
        )
        thread: LoopThread | None = kept["_thread"]
        made = kept[self._name] = verbs if thread is None else Verbs(verbs, thread)
        return made


class _Session(ExecSession, frozen=True, dict=True):
    """A session as it was when it was opened, and what its agent may do with it."""

    run = SessionKind(ExecRun, ExecOutcome)
    interrupt = SessionKind(ExecInterrupt, ExecSession)
    reset = SessionKind(ExecReset, ExecSession)
    close = SessionKind(ExecClose, ExecSession)
    changes = SessionKind(ExecChanges, WorkspaceChanges)
    commit = SessionKind(ExecCommit, WorkspaceChanges)
    discard = SessionKind(ExecDiscard, WorkspaceChanges)

    @classmethod
    def of(cls, session: ExecSession, agent: Submitter, thread: LoopThread | None = None) -> Self:
        """Return a session with its verbs, which submit as this agent."""
        found = cls(**structs.asdict(session))
        found.__dict__.update(_agent=agent, _thread=thread)
        return found

    def _note(self, failed: KernelError, error: BaseException | None) -> None:
        """Tell that it was not closed beside the error that its block was left with.

        Raises:
            KernelError: There was none.
        """
        if error is None:
            raise failed
        error.add_note(f"the exec session {self.id} was not closed: {failed}")


class AsyncOpenSession(_Session, frozen=True, dict=True):
    """A session of an asynchronous agent; leaving its block closes it, whatever runs there."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with contextlib.suppress(SessionLost, UnknownSession):  # it has ended already
                await self.close()
        except KernelError as failed:
            self._note(failed, error)


class OpenSession(_Session, frozen=True, dict=True):
    """A session of an agent; leaving its block closes it, whatever runs there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with contextlib.suppress(SessionLost, UnknownSession):  # it has ended already
                self.close()
        except KernelError as failed:
            self._note(failed, error)


class Opening(Call[ExecSession]):
    """A session that is being opened: `await` it for the session, or open a block with it.

    Who is cancelled while waiting could not close it: then it is closed, should it open.
    """

    __slots__ = ("_agent", "_opened")

    def __init__(self, call: Call[ExecSession], agent: Submitter) -> None:
        super().__init__(call._session, call._pending, 0.0)
        self._until_s = call._until_s
        self._agent = agent
        self._opened: AsyncOpenSession | None = None

    def __await__(self) -> Generator[Any, None, AsyncOpenSession]:
        return self.result().__await__()

    def unwrap(self) -> AsyncOpenSession:
        """Return the session, or raise the error that stands in its place."""
        return AsyncOpenSession.of(super().unwrap(), self._agent)

    async def result(self, timeout_s: float | None = None) -> AsyncOpenSession:
        """Return the session; raise as `Call.result` does."""
        try:
            await super().result(timeout_s)
        except asyncio.CancelledError:
            if not self._pending.waiters:
                self._close()
            raise
        return self.unwrap()

    async def __aenter__(self) -> AsyncOpenSession:
        try:
            self._opened = await self.result()
        except WaitTimeout:
            await self.cancel()
            self._close()
            raise
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(kind, error, traceback)

    def _close(self) -> None:
        """Have it closed without waiting for that: its id is this syscall's."""
        agent = self._agent
        with contextlib.suppress(KernelError):  # the agent leaves: then all that is its own ends
            agent._start(build_syscall(agent.options, ExecClose(self.id), agent._ids))


class AsyncOpen(AsyncVerbs[Arguments, ExecSession]):
    """`exec.open` of an asynchronous agent."""

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Opening:
        """Submit; `await` what is returned, or open a block with it: `async with`."""
        return Opening(super().__call__(*args, **kwargs), self._agent)


class Open(Verbs[Arguments, ExecSession]):
    """`exec.open` of an agent."""

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> OpenSession:
        """Open a session, and return it; `with` closes it again."""
        return OpenSession.of(super().__call__(*args, **kwargs), self._verbs._agent, self._thread)
