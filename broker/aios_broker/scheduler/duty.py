"""What a service does over and over: one loop per duty, calm where a server is away.

An outage is said when it begins, once a minute while it lasts, and when it is over: not by every
duty at every try.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn

from aios_broker.contract.errors import InvalidConfig, Unavailable

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1  # after a failure; doubles ...
LAST_PAUSE_S = 2.0  # ... up to this: how late the return of a server is noticed
REMINDER_S = 60.0


@dataclass(frozen=True, slots=True)
class Duty:
    """A step that is repeated; it returns how many seconds to wait before the next time."""

    name: str
    step: Callable[[], Awaitable[float]]


@dataclass(slots=True)
class _Outage:
    since_s: float  # monotonic
    said_s: float
    duties: set[str] = field(default_factory=set)  # those that have not succeeded since


class Troubles:
    """What goes wrong now, told calmly."""

    def __init__(self) -> None:
        self._outages: dict[str, _Outage] = {}

    def begin(self, duty: str, what: str, error: Exception) -> None:
        """Note a failure of a duty; `what` is the same for all duties that one outage meets."""
        now_s = time.monotonic()
        outage = self._outages.get(what)
        if outage is None:
            outage = self._outages[what] = _Outage(now_s, now_s)
            self._say(error, "trying again")
        elif now_s - outage.said_s >= REMINDER_S:
            outage.said_s = now_s
            self._say(error, f"for {now_s - outage.since_s:.0f} s now; trying again")
        outage.duties.add(duty)

    def end(self, duty: str) -> None:
        """Note that a duty succeeded."""
        for what, outage in list(self._outages.items()):
            outage.duties.discard(duty)
            if not outage.duties:
                del self._outages[what]
                logger.info("%s: over after %.1f s", what, time.monotonic() - outage.since_s)

    def _say(self, error: Exception, how_long: str) -> None:
        if isinstance(error, Unavailable):
            logger.warning("%s; %s", error, how_long)
        else:  # not a condition but a defect: its traceback is needed
            logger.error("%s; %s", error, how_long, exc_info=error)


async def repeat(duty: Duty, troubles: Troubles) -> NoReturn:
    """Do a duty for ever, whatever happens to it.

    Raises:
        InvalidConfig: a setting that no waiting makes right.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            wait_s = await duty.step()
        except InvalidConfig:
            raise
        except Unavailable as error:
            troubles.begin(duty.name, error.code, error)
        except Exception as error:  # noqa: BLE001 - the border: one duty must not end the others
            troubles.begin(duty.name, f"{duty.name} fails: {type(error).__name__}", error)
        else:
            troubles.end(duty.name)
            pause_s = FIRST_PAUSE_S
            await asyncio.sleep(wait_s)
            continue
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)
