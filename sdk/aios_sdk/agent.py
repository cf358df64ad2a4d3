"""The agents: a tree of syscalls, four verbs on each; `Agent` is `AsyncAgent` without `await`.

Everything happens in the asynchronous agent. The synchronous one passes calls over to it, on one
background thread, and waits; it may be used from any number of threads.
"""

from __future__ import annotations

from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import urlsplit

from aios_broker.client.pending import REPLY_GRACE_S
from aios_broker.client.session import Session
from aios_broker.client.transport import open_transport
from aios_broker.contract.errors import (
    InvalidSyscall,
    KernelError,
    KernelNotRunning,
    RedisUnavailable,
)
from aios_broker.contract.ids import Ids
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import DEFAULT_DEADLINE_S, Body, Syscall
from aios_sdk.call import Call, SyncCall
from aios_sdk.config import REMEDY, find_kernel
from aios_sdk.loop_thread import LoopThread
from aios_sdk.requests import Options, build_syscall, check_id, check_options
from aios_sdk.tree import Asynchronous, Synchronous, Trees


class OptionChanges(TypedDict, total=False):
    """What `with_options` changes; `Options` says what each means."""

    program: str
    nice: int
    timeout_s: float | None
    deadline_s: float | None
    key: str | None
    core: str | None
    traceparent: str | None


class Line:
    """An agent's line to the kernel, shared by all its clones; open for one `with` block."""

    def __init__(self, url: str | None, token: str) -> None:
        self._url = url
        self._token = token
        self._address = ""
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The open session."""
        if self._session is None:
            raise KernelError("the agent is not open", remedy="use it inside its `with` block")
        return self._session

    @property
    def where(self) -> str:
        """Whether it is open, and to which kernel; without the secrets that a URL may hold."""
        if self._session is None:
            return "not open"
        place = urlsplit(self._address)
        server = f"{place.hostname or ''}{f':{place.port}' if place.port else ''}"
        return f"open to {place.scheme}://{server}{place.path}"

    async def open(self, agent: str) -> None:
        """Find the kernel and reach it, or raise at once."""
        if self._session is not None:
            raise KernelError("the agent is open already", remedy="open it once")
        kernel = find_kernel(self._url)
        self._address = kernel.url.partition(",")[0]
        session = Session(
            open_transport(kernel.url, agent, key_prefix=kernel.key_prefix, token=self._token)
        )
        try:
            await session.open()
        except RedisUnavailable as error:
            if kernel.record_path is None:
                raise
            raise KernelNotRunning(
                f"the kernel of {kernel.record_path} does not answer: {error.message}",
                remedy=REMEDY,
            ) from error
        self._session = session

    async def close(self) -> None:
        """Cancel what is left and close. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()


class AsyncAgent(Trees[Asynchronous]):
    """An agent's access to the kernel. Open it with `async with`; leaving cancels what is left."""

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        program: str = "main",
        tenant: str = "default",
        token: str = "",
    ) -> None:
        """Name the agent.

        Args:
            name: of the agent, as the kernel knows it.
            url: of the kernel: of its API (`http://...`, with a token), or of its Redis; else
                AIOS_REDIS_URL, else the kernel that runs on this machine.
            program: one run of the agent towards one task; what the scheduler is fair to.
            tenant: the owner of the agent.
            token: the agent's secret: the API always asks for it.
        """
        self._bind(Line(url, token), check_options(Options(name, program, tenant, token)))

    def _bind(self, line: Line, options: Options) -> None:
        self._line = line
        self.options = options
        super().__init__(self, None)

    async def open(self) -> Self:
        """Reach the kernel: for notebooks; elsewhere `async with` does it.

        Raises:
            KernelNotRunning, RedisUnavailable, ApiUnavailable: at once, no kernel answers.
            AccessDenied: the API knows no such token.
            InvalidConfig: the URL is none that this SDK can use.
        """
        await self._line.open(self.options.agent)
        return self

    async def aclose(self) -> None:
        """Cancel what is left, within 2 s, and close. Safe to call twice."""
        await self._line.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        options = self.options
        return (
            f"<{type(self).__name__} {options.agent!r}, tenant {options.tenant!r}, "
            f"program {options.program!r}, {self._line.where}>"
        )

    def with_options(self, **changes: Unpack[OptionChanges]) -> AsyncAgent:
        """Return a clone on the same connection whose calls differ in these options."""
        try:
            options = replace(self.options, **changes)
        except TypeError as error:
            known = ", ".join(field.name for field in fields(self.options))
            raise InvalidSyscall(
                f"no such option: {error}", field="options", remedy=f"use some of: {known}"
            ) from error
        clone = object.__new__(AsyncAgent)
        clone._bind(self._line, check_options(options))
        return clone

    def submit(self, body: Body) -> Call[Result]:
        """Submit any body of the contract."""
        return self._start(build_syscall(self.options, body, self._ids))

    def call(self, syscall_id: str) -> Call[Result]:
        """Attach to a syscall of this agent by its id, for instance after a crash of this program.

        Awaiting it raises UnknownSyscall when the kernel does not know it, or its reply expired,
        or it is another agent's.
        """
        pending = self._line.session.attach(check_id(syscall_id), self.options.owner)
        wait_s = self.options.timeout_s or self.options.deadline_s or DEFAULT_DEADLINE_S
        return Call(self._line.session, pending, wait_s)

    @property
    def _ids(self) -> Ids:
        return self._line.session.ids(self.options.owner)

    def _start(self, syscall: Syscall) -> Call[Any]:
        """Submit a syscall that was built and checked."""
        session = self._line.session
        wait_s = self.options.timeout_s or syscall.deadline_s + REPLY_GRACE_S
        return Call(session, session.submit(syscall), wait_s)


class Agent(Trees[Synchronous]):
    """An agent's access to the kernel. Open it with `with`; leaving cancels what is left."""

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        program: str = "main",
        tenant: str = "default",
        token: str = "",
    ) -> None:
        """Name the agent; the arguments are those of `AsyncAgent`."""
        agent = AsyncAgent(name, url=url, program=program, tenant=tenant, token=token)
        self._bind(agent, LoopThread())

    def _bind(self, agent: AsyncAgent, thread: LoopThread) -> None:
        self._agent = agent
        self._thread = thread
        super().__init__(agent, thread)

    @property
    def options(self) -> Options:
        """What holds for every call."""
        return self._agent.options

    def open(self) -> Self:
        """Reach the kernel: for notebooks; elsewhere `with` does it.

        Raises:
            KernelNotRunning, RedisUnavailable, ApiUnavailable: at once, no kernel answers.
            AccessDenied: the API knows no such token.
            InvalidConfig: the URL is none that this SDK can use.
        """
        self._thread.start(f"aios-{self.options.agent}")
        try:
            self._thread.run(self._agent.open())
        except BaseException:
            self.close()  # a Ctrl-C may come when it is open, and nobody has it yet
            raise
        return self

    def close(self) -> None:
        """Cancel what is left, within 2 s, and close. Safe to call twice."""
        try:
            if self._thread.is_running:
                self._thread.run(self._agent.aclose())
        finally:
            self._thread.stop()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Agent {repr(self._agent).partition(' ')[2]}"

    def with_options(self, **changes: Unpack[OptionChanges]) -> Agent:
        """Return a clone on the same connection whose calls differ in these options."""
        clone = object.__new__(Agent)
        clone._bind(self._agent.with_options(**changes), self._thread)
        return clone

    def submit(self, body: Body) -> SyncCall[Result]:
        """Submit any body of the contract."""
        return SyncCall(self._thread.call(lambda: self._agent.submit(body)), self._thread)

    def call(self, syscall_id: str) -> SyncCall[Result]:
        """Attach to a syscall by its id, for instance after a crash of this program."""
        return SyncCall(self._thread.call(lambda: self._agent.call(syscall_id)), self._thread)
