"""Go on when a server is away: try again, ever less often, until it is back or a limit is over.

Periodic tasks, what a service does over and over, stay calm then: an outage is said when it begins,
once a minute while it lasts, and when it is over, not by every task at every try.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from aios_broker.contract.errors import KernelError, Unavailable

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0  # a server that is back is noticed within this time
# Of a periodic task after a failure; doubles up to how late the return of a server is noticed.
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 2.0
REMINDER_S = 60.0

Answer = TypeVar("Answer")


class Backoff:
    """Waits longer after each failure, with jitter so that a fleet does not come in step."""

    def __init__(self, first_s: float = FIRST_WAIT_S, *, longest_s: float = LONGEST_WAIT_S) -> None:
        self._first_s = self._next_s = first_s
        self._longest_s = longest_s

    @property
    def calm(self) -> bool:
        """True until the first failure after a success."""
        return self._next_s == self._first_s

    def reset(self) -> None:
        """Start again with the shortest wait: it worked."""
        self._next_s = self._first_s

    async def wait(self) -> None:
        """Wait after a failure."""
        wait_s, self._next_s = self._next_s, min(self._longest_s, self._next_s * 2)
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))


def now_s() -> float:
    """Return the running loop's time."""
    return asyncio.get_running_loop().time()


async def patiently(
    step: Callable[[], Awaitable[Answer]], patience_s: float | None = None
) -> Answer:
    """Do what may be done twice, again and again until a server that is away answers.

    Raises:
        Unavailable: it did not for `patience_s`; None: no limit.
    """
    until_s = None if patience_s is None else now_s() + patience_s
    backoff = Backoff()
    while True:
        try:
            return await step()
        except Unavailable as error:
            if until_s is not None and now_s() > until_s:
                raise
            if backoff.calm:
                logger.warning("waiting for a server: %s", error)
        await backoff.wait()


Step = Callable[[], Awaitable[float]]  # returns how many seconds to wait before the next time


@dataclass(slots=True)
class _Outage:
    since_s: float  # monotonic
    said_s: float
    tasks: set[str] = field(default_factory=set)  # those that have not succeeded since


class Outages:
    """What goes wrong now; one for all tasks that an outage of one server meets."""

    def __init__(self, trouble: str = "") -> None:
        self._head = f"{trouble}: " if trouble else ""  # what it means for those outside
        self._outages: dict[str, _Outage] = {}

    def begin(self, task: str, error: Exception) -> None:
        """Note a failure of a task."""
        own = f"{task} fails: {type(error).__name__}"
        what, now_s = error.code if isinstance(error, Unavailable) else own, time.monotonic()
        outage = self._outages.get(what)
        if outage is None:
            outage = self._outages[what] = _Outage(now_s, now_s)
            self._say(error, "trying again")
        elif now_s - outage.said_s >= REMINDER_S:
            outage.said_s = now_s
            self._say(error, f"for {now_s - outage.since_s:.0f} s now; trying again")
        outage.tasks.add(task)

    def end(self, task: str) -> None:
        """Note that a task succeeded."""
        for what, outage in list(self._outages.items()):
            outage.tasks.discard(task)
            if not outage.tasks:
                del self._outages[what]
                logger.info("%s: over after %.1f s", what, time.monotonic() - outage.since_s)

    def _say(self, error: Exception, how_long: str) -> None:
        if isinstance(error, KernelError):
            logger.warning("%s%s; %s", self._head, error, how_long)
        else:  # not a condition but a defect: its traceback is needed
            logger.error("%s%s; %s", self._head, error, how_long, exc_info=error)


async def repeat(
    name: str,
    step: Step,
    outages: Outages,
    *,
    wake: asyncio.Event | None = None,
    ended_by: tuple[type[Exception], ...] = (),
) -> NoReturn:
    """Take a step for ever, whatever happens to it; `wake` ends a pause early.

    Raises:
        Exception: one of `ended_by`, which no waiting makes right.
    """
    backoff = Backoff(FIRST_RETRY_S, longest_s=LONGEST_RETRY_S)
    while True:
        if wake is not None:
            wake.clear()
        try:
            pause_s = await step()
        except ended_by:
            raise
        except Exception as error:  # noqa: BLE001 - the border: one task must not end the others
            outages.begin(name, error)
            await backoff.wait()
        else:
            outages.end(name)
            backoff.reset()
            await _pause(pause_s, wake)


@asynccontextmanager
async def periodic_task(
    name: str, step: Step, trouble: str, *, wake: asyncio.Event | None = None
) -> AsyncIterator[None]:
    """Take a step again and again for as long as the context is open.

    `trouble` says what an outage means: it stands before the error in the log.
    """
    task = asyncio.create_task(repeat(name, step, Outages(trouble), wake=wake), name=name)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _pause(pause_s: float, wake: asyncio.Event | None) -> None:
    if wake is None:
        await asyncio.sleep(pause_s)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await wake.wait()
