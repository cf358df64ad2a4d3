"""The four verbs that each syscall of the tree has."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall
from aios_sdk.call import Call, Stream
from aios_sdk.fan import Fan
from aios_sdk.requests import Item, RawBody, build_syscall, call_body, item_body

if TYPE_CHECKING:
    from aios_sdk.aagent import AsyncAgent

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)


class AsyncVerbs(Generic[Arguments, Answer]):
    """One syscall of the tree. All verbs submit when they are called, not when awaited."""

    def __init__(
        self, agent: AsyncAgent, build: Callable[Arguments, RawBody | Body], answer: type[Answer]
    ) -> None:
        self._agent = agent
        self._build = build
        self._answer = answer
        functools.update_wrapper(self, build)

    def __repr__(self) -> str:
        config = getattr(self._build, "__struct_config__", None)
        named = self._build.__name__.removesuffix("_body") if config is None else config.tag
        return f"<{named} of {self._agent!r}>"

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Call[Answer]:
        """Submit; `await` what is returned for the result."""
        body = call_body(self._build, *args, **kwargs)
        return self._start(build_syscall(self._agent.options, body))

    def start(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Call[Answer]:
        """Submit, and return the handle."""
        return self(*args, **kwargs)

    def stream(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Stream[Answer]:
        """Submit, and return the text piece by piece; `.result` is there at the end."""
        body = call_body(self._build, *args, **kwargs)
        return Stream(self._start(build_syscall(self._agent.options, body, stream=True)))

    def map(
        self, items: Iterable[Item], *, concurrency: int | None = None, return_errors: bool = False
    ) -> asyncio.Task[list[Answer]]:
        """Submit one call per item, in batches; await the results, in the items' order.

        The first error ends the map and cancels its other calls; with `return_errors` errors
        stand among the results instead. At most `concurrency` are under way; None: all at once.
        """
        options = self._agent.options
        bodies = [item_body(self._build, item) for item in items]
        syscalls = [build_syscall(options, body, index=at) for at, body in enumerate(bodies)]
        if concurrency is not None and concurrency < 1:
            raise InvalidSyscall(f"{concurrency} is too few", field="concurrency",
                                 remedy="give 1 or more, or None")  # fmt: skip
        fan = Fan(self._start, syscalls, at_once=concurrency, return_errors=return_errors)
        return asyncio.ensure_future(fan.results())

    def _start(self, syscall: Syscall) -> Call[Answer]:
        return self._agent._start(syscall, self._answer)
