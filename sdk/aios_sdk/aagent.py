"""The asynchronous agent: a tree of syscalls, four verbs on each."""

from __future__ import annotations

from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack, overload
from urllib.parse import urlsplit

from aios_broker.client.session import Session
from aios_broker.client.transport import open_transport
from aios_broker.contract.errors import (
    InvalidSyscall,
    KernelError,
    KernelNotRunning,
    RedisUnavailable,
)
from aios_broker.contract.llm import ContextBody, LlmChat, LlmCount, LlmEmbed
from aios_broker.contract.reply import (
    ChatResult,
    ContextResult,
    CountResult,
    EchoResult,
    EmbedResult,
    Result,
)
from aios_broker.contract.syscall import Body, StateBody, Syscall, ToolEcho
from aios_sdk.call import Call
from aios_sdk.config import REMEDY, find_kernel
from aios_sdk.requests import (
    Options,
    answer_of,
    build_syscall,
    chat_body,
    check_id,
    check_options,
    context_clear_body,
    context_expand_body,
    context_get_body,
    context_set_body,
    context_summarise_body,
    count_body,
    echo_body,
    embed_body,
)
from aios_sdk.state import AsyncAccess, AsyncMemory, AsyncStorage
from aios_sdk.verbs import AsyncVerbs

Answer = TypeVar("Answer", bound=Result)

GRACE_S = 15.0  # beyond a syscall's deadline: by then the kernel has said that it is over


class OptionChanges(TypedDict, total=False):
    """What `with_options` changes; `Options` says what each means."""

    program: str
    nice: int
    timeout_s: float | None
    deadline_s: float | None
    key: str | None
    core: str | None


class Line:
    """An agent's line to the kernel, shared by all its clones; open for one `with` block."""

    def __init__(self, url: str | None) -> None:
        self._url = url
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
        transport = open_transport(kernel.url, agent, key_prefix=kernel.key_prefix)
        session = Session(transport)
        try:
            await session.open()
        except RedisUnavailable as error:
            await transport.aclose()
            if kernel.record_path is None:
                raise
            raise KernelNotRunning(
                f"the kernel of {kernel.record_path} does not answer: {error.message}",
                remedy=REMEDY,
            ) from error
        except BaseException:
            await transport.aclose()
            raise
        self._session = session

    async def close(self) -> None:
        """Cancel what is left and close. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()


class AsyncAgent:
    """An agent's access to the kernel. Open it with `async with`; leaving cancels what is left."""

    def __init__(
        self, name: str, *, url: str | None = None, program: str = "main",
        tenant: str = "default", token: str = "",
    ) -> None:  # fmt: skip
        """Name the agent.

        Args:
            name: of the agent, as the kernel knows it.
            url: of the kernel; else AIOS_REDIS_URL, else the kernel that runs on this machine.
            program: one run of the agent towards one task; what the scheduler is fair to.
            tenant: the owner of the agent.
            token: the agent's secret, where the kernel asks for one.
        """
        self._bind(Line(url), check_options(Options(name, program, tenant, token)))

    def _bind(self, line: Line, options: Options) -> None:
        self._line = line
        self.options = options
        self.llm = AsyncLlm(self)
        self.context = AsyncContext(self)
        self.tool = AsyncTool(self)
        self.memory = AsyncMemory(self)
        self.storage = AsyncStorage(self)
        self.access = AsyncAccess(self)

    async def open(self) -> Self:
        """Reach the kernel: for notebooks; elsewhere `async with` does it.

        Raises:
            KernelNotRunning, RedisUnavailable: at once, no kernel answers.
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

    @overload
    def submit(self, body: LlmChat) -> Call[ChatResult]: ...
    @overload
    def submit(self, body: LlmEmbed) -> Call[EmbedResult]: ...
    @overload
    def submit(self, body: LlmCount) -> Call[CountResult]: ...
    @overload
    def submit(self, body: ContextBody) -> Call[ContextResult]: ...
    @overload
    def submit(self, body: ToolEcho) -> Call[EchoResult]: ...
    @overload
    def submit(self, body: StateBody) -> Call[Result]: ...
    def submit(self, body: Body) -> Call[Any]:
        """Submit any body of the contract."""
        return self._start(build_syscall(self.options, body), answer_of(body))

    def call(self, syscall_id: str) -> Call[Result]:
        """Attach to a syscall by its id, for instance after a crash of this program.

        Awaiting it raises UnknownSyscall when the kernel does not know it, or its reply expired.
        """
        pending = self._line.session.attach(check_id(syscall_id))
        wait_s = self.options.timeout_s or build_syscall(self.options, echo_body()).deadline_s
        return Call(self._line.session, pending, None, wait_s)

    def _start(self, syscall: Syscall, answer: type[Answer] | None) -> Call[Answer]:
        session = self._line.session
        wait_s = self.options.timeout_s or syscall.deadline_s + GRACE_S
        return Call(session, session.submit(syscall), answer, wait_s)


class AsyncLlm:
    """Generation, embeddings, counts of tokens."""

    def __init__(self, agent: AsyncAgent) -> None:
        self.chat = AsyncVerbs(agent, chat_body, ChatResult)
        self.embed = AsyncVerbs(agent, embed_body, EmbedResult)
        self.count = AsyncVerbs(agent, count_body, CountResult)


class AsyncContext:
    """Conversations that the kernel keeps."""

    def __init__(self, agent: AsyncAgent) -> None:
        self.get = AsyncVerbs(agent, context_get_body, ContextResult)
        self.set = AsyncVerbs(agent, context_set_body, ContextResult)
        self.clear = AsyncVerbs(agent, context_clear_body, ContextResult)
        self.expand = AsyncVerbs(agent, context_expand_body, ContextResult)
        self.summarise = AsyncVerbs(agent, context_summarise_body, ContextResult)


class AsyncTool:
    """Tools."""

    def __init__(self, agent: AsyncAgent) -> None:
        self.echo = AsyncVerbs(agent, echo_body, EchoResult)
