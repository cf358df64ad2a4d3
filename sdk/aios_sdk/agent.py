"""The synchronous agent: the same tree without `await`. A thin shell over `aagent`.

Everything happens in the asynchronous agent, on one background thread; these classes pass calls
over and wait. All of them may be used from any number of threads.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, Unpack, overload

from aios_broker.contract.llm import ContextBody, LlmChat, LlmCount, LlmEmbed
from aios_broker.contract.reply import (
    ChatResult,
    ContextResult,
    CountResult,
    EchoResult,
    EmbedResult,
    Result,
)
from aios_broker.contract.syscall import StateBody, ToolEcho
from aios_sdk.aagent import AsyncAgent, OptionChanges
from aios_sdk.requests import Options
from aios_sdk.state_sync import Access, Memory, Storage
from aios_sdk.verbs_sync import Home, SyncCall, Verbs


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
        self.memory = Memory(agent.memory, home)
        self.storage = Storage(agent.storage, home)
        self.access = Access(agent.access, home)

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

    def __repr__(self) -> str:
        return f"<Agent {repr(self._agent).partition(' ')[2]}"

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
    def submit(self, body: LlmCount) -> SyncCall[CountResult]: ...
    @overload
    def submit(self, body: ContextBody) -> SyncCall[ContextResult]: ...
    @overload
    def submit(self, body: ToolEcho) -> SyncCall[EchoResult]: ...
    @overload
    def submit(self, body: StateBody) -> SyncCall[Result]: ...
    def submit(self, body: Any) -> SyncCall[Any]:
        """Submit any body of the contract."""
        return SyncCall(self._home.thread.call(lambda: self._agent.submit(body)), self._home)

    def call(self, syscall_id: str) -> SyncCall[Result]:
        """Attach to a syscall by its id, for instance after a crash of this program."""
        return SyncCall(self._home.thread.call(lambda: self._agent.call(syscall_id)), self._home)


class Llm:
    """Generation, embeddings, counts of tokens."""

    def __init__(self, agent: AsyncAgent, home: Home) -> None:
        self.chat = Verbs(agent.llm.chat, home)
        self.embed = Verbs(agent.llm.embed, home)
        self.count = Verbs(agent.llm.count, home)


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
