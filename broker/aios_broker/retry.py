"""Go on when a server is away: try again, ever less often, until it is back or a limit is over."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aios_broker.contract.errors import Unavailable

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0  # a server that is back is noticed within this time

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
