"""The four verbs that each kind of syscall has: submitted by a call, and by its three others."""

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.ids import Ids
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall
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
