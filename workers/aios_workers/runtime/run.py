"""One leased job on this worker, and what a handler makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from prometheus_client.core import Metric

from aios_broker.contract.reply import Result, Timings
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.records import Lease

StopReason = Literal["lost", "stopped", "drain"]
# lost: the lease is gone, write nothing. stopped: a tool wants it to end, its caller hears so.
# drain: this worker leaves and can wait no longer, another one starts it again.
SuspendReason = Literal["yield", "hold", "drain"]


@dataclass(frozen=True, slots=True)
class Done:
    """The handler has the result."""

    result: Result


@dataclass(frozen=True, slots=True)
class Suspended:
    """The handler stopped half-way; `snapshot` is all that is needed to go on."""

    snapshot: bytes | None
    reason: SuspendReason


@dataclass(frozen=True, slots=True)
class Parked:
    """A person has to decide first: it leaves the worker, and begins anew when it comes back."""


Outcome = Done | Suspended | Parked


@dataclass(frozen=True, slots=True)
class Use:
    """What a run has used since its claim."""

    ran_s: float
    tokens: int  # output
    prompt_tokens: int


class Run:
    """The time between a claim and its ending: the lease, what it used, how it is told to stop."""

    __slots__ = (
        "_clock",
        "_interrupt",
        "_prompt_tokens",
        "_started_s",
        "_tokens",
        "lease",
        "stopping",
        "suspending",
        "task",
    )

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.stopping: StopReason | None = None
        self.suspending: SuspendReason | None = None
        self.task: asyncio.Task[object] | None = None
        self._clock = asyncio.get_running_loop().time
        self._started_s = self._clock()
        self._tokens = 0
        self._prompt_tokens = 0
        self._interrupt: Callable[[SuspendReason], None] | None = None

    def count_tokens(self, count: int) -> None:
        """Note output tokens that were generated."""
        self._tokens += count

    def count_prompt(self, count: int) -> None:
        """Note how long the prompt is; it is charged once per syscall."""
        self._prompt_tokens = count

    def use(self) -> Use:
        """Return what was used since the claim: totals, which may be told more than once."""
        return Use(self._clock() - self._started_s, self._tokens, self._prompt_tokens)

    def timings(self) -> Timings:
        """Return where the time went so far, earlier slices included."""
        lease = self.lease
        return Timings(
            queued_s=lease.queued_s,
            ran_s=round(lease.ran_s + self._clock() - self._started_s, 6),
            slices=lease.slices + 1,
            suspensions=lease.suspensions,
            attempts=lease.attempt,
        )

    def on_suspend(self, interrupt: Callable[[SuspendReason], None]) -> None:
        """Tell how this run is suspended; called at once if it already should be."""
        self._interrupt = interrupt
        if self.suspending is not None:
            interrupt(self.suspending)

    def suspend(self, reason: SuspendReason) -> None:
        """Ask the handler to stop half-way. One that cannot goes on to its end."""
        if self.suspending is None:
            self.suspending = reason
            if self._interrupt is not None:
                self._interrupt(reason)

    def stop(self, reason: StopReason) -> None:
        """Cancel the handler; the first reason counts."""
        if self.stopping is None:
            self.stopping = reason
            if self.task is not None:
                self.task.cancel()


class Handler(Protocol):
    """A module's code: what runs a syscall. Built in main, one per worker process."""

    @property
    def capacity(self) -> int:
        """How many syscalls it runs at the same time."""
        ...

    @property
    def cores(self) -> tuple[str, ...]:
        """Model names it serves; only the llm module has them."""
        ...

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run one syscall.

        Raises KernelError for what the caller is to know; anything else becomes ModuleError.
        Cancelled when the run has to stop at once.
        """
        ...

    async def close(self) -> None:
        """Free what it holds. Safe to call twice."""
        ...


@runtime_checkable
class Measured(Protocol):
    """A part of a worker that has numbers of its own for the worker's page of metrics."""

    def metrics(self) -> Iterable[Metric]:
        """Yield them; called from another thread."""
        ...


@runtime_checkable
class PromptHandler(Protocol):
    """A handler that has some answers ready: they need no task, no timer, no turn of the loop."""

    def answer_at_once(self, run: Run, syscall: Syscall) -> Done | None:
        """Return the result where nothing has to be waited for; None: `run` answers it.

        Takes some microseconds at the most: the worker's loop stands still meanwhile. Raises as
        `run` does.
        """
        ...
