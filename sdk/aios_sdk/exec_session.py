"""An exec session that an agent has opened: its facts, its verbs, and the block that closes it.

async with me.exec.open("python") as box:
    print((await box.run("1 + 1")).value)
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from msgspec import structs

from aios_broker.contract.errors import KernelError, SessionLost, UnknownSession, WaitTimeout
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
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body
from aios_broker.contract.workspace import WorkspaceChanges
from aios_sdk.call import Call
from aios_sdk.loop_thread import LoopThread
from aios_sdk.requests import RawBody, build_syscall
from aios_sdk.verbs import AsyncVerbs, Submitter, Verbs

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)


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
