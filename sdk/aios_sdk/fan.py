"""Many calls at once, awaited as one: no task, no timer and no future of its own for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from aios_broker.contract.errors import KernelError
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_sdk.call import Call, Waiting, waiting_of

Answer = TypeVar("Answer", bound=Result)
PORTION = 200  # calls that are started in one turn of the loop: what one submit carries


class Fan(Generic[Answer]):
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
