"""Periodic tasks: what a service does over and over, calm where a server is away.

An outage is said when it begins, once a minute while it lasts, and when it is over: not by every
task at every try.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from aios_broker.contract.errors import KernelError, Unavailable
from aios_broker.retry import Backoff

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.1  # after a failure; doubles ...
LONGEST_RETRY_S = 2.0  # ... up to this: how late the return of a server is noticed
REMINDER_S = 60.0

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
