"""The four verbs that each syscall of the tree has, with and without `await`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Generic, ParamSpec, Protocol, TypeVar

from aios_broker.contract.errors import InvalidSyscall, KernelError
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall
from aios_sdk.call import Call, Stream, SyncCall, SyncStream, Waiting, waiting_of
from aios_sdk.loop_thread import Home
from aios_sdk.requests import Item, Options, RawBody, build_syscall, call_body, item_body

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)

PORTION = 200  # calls that are started in one turn of the loop: what one submit carries


class Submitter(Protocol):
    """The agent in whose name the verbs submit."""

    @property
    def options(self) -> Options:
        """What holds for every call."""
        ...

    def _start(self, syscall: Syscall, answer: type[Answer] | None) -> Call[Answer]:
        """Submit."""
        ...


class AsyncVerbs(Generic[Arguments, Answer]):
    """One syscall of the tree. All verbs submit when they are called, not when awaited."""

    def __init__(
        self, agent: Submitter, build: Callable[Arguments, RawBody | Body], answer: type[Answer]
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
            raise InvalidSyscall(
                f"{concurrency} is too few", field="concurrency", remedy="give 1 or more, or None"
            )
        fan = Batch(self._start, syscalls, at_once=concurrency, return_errors=return_errors)
        return asyncio.ensure_future(fan.results())

    def _start(self, syscall: Syscall) -> Call[Answer]:
        return self._agent._start(syscall, self._answer)


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
        return self._home.thread.wait(
            lambda: self._verbs.map(items, concurrency=concurrency, return_errors=return_errors)
        )


class Batch(Generic[Answer]):
    """Starts calls in order, at most so many at a time, and gathers what comes of them.

    Used once. The first error ends it; with `return_errors` errors stand among the results.
    """

    def __init__(
        self,
        start: Callable[[Syscall], Call[Answer]],
        syscalls: Sequence[Syscall],
        *,
        at_once: int | None,
        return_errors: bool,
    ) -> None:
        self._start = start
        self._syscalls = syscalls
        self._at_once = len(syscalls) if at_once is None else at_once
        self._return_errors = return_errors
        self._calls: list[Call[Answer]] = []
        self._waits: list[Waiting] = []
        self._under_way: set[int] = set()
        self._late: dict[int, KernelError] = {}
        self._oldest = 0  # no call before it is under way; they run out of time in order
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def results(self) -> list[Answer]:
        """Run them all; return the results in order."""
        try:
            for _ in range(0, len(self._syscalls), PORTION):
                if self._begin(PORTION) and not self._over.done():
                    await asyncio.sleep(0)  # these leave while the next ones are made
            self._watch_time()
            if self._calls:
                await self._over
            return [self._result(at) for at in range(len(self._calls))]
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for at in self._under_way:
                self._waits[at].leave(abandon=True)
            self._under_way.clear()

    def _begin(self, most: int) -> bool:
        """Start up to `most` calls; return whether there is room for more of them."""
        for _ in range(most):
            if len(self._under_way) >= self._at_once or len(self._calls) == len(self._syscalls):
                return False
            at = len(self._calls)
            call = self._start(self._syscalls[at])
            self._calls.append(call)
            self._waits.append(waiting_of(call))
            self._under_way.add(at)
            self._waits[at].join(partial(self._on_end, at))
        return True

    def _on_end(self, at: int) -> None:
        if at not in self._under_way:  # it was late, or all is over
            return
        self._under_way.remove(at)
        self._waits[at].leave()
        if self._waits[at].failed and not self._return_errors:
            self._finish(at)
        else:
            self._go_on()

    def _go_on(self) -> None:
        try:
            self._begin(1)  # one has ended
        except KernelError as error:  # the agent was closed meanwhile
            if not self._over.done():
                self._over.set_exception(error)
            return
        if not self._under_way and not self._over.done():
            self._over.set_result(None)

    def _finish(self, at: int) -> None:
        if self._over.done():
            return
        try:
            self._result(at)
        except KernelError as error:
            self._over.set_exception(error)

    def _watch_time(self) -> None:
        """Give up those whose time is over; look again when the next one's is."""
        loop = asyncio.get_running_loop()
        while self._oldest < len(self._calls):
            at = self._oldest
            if at in self._under_way:
                until_s = self._waits[at].until_s
                if until_s > loop.time():
                    self._timer = loop.call_at(until_s, self._watch_time)
                    return
                self._give_up(at)
            self._oldest += 1

    def _give_up(self, at: int) -> None:
        self._under_way.remove(at)
        self._waits[at].leave()
        self._late[at] = self._waits[at].out_of_time()
        if self._return_errors:
            self._go_on()
        else:
            self._finish(at)

    def _result(self, at: int) -> Answer:
        try:
            if at in self._late:
                raise self._late[at]
            return self._calls[at].unwrap()
        except KernelError as error:
            if not self._return_errors:
                raise
            return error  # type: ignore[return-value]  # as the caller asked for
