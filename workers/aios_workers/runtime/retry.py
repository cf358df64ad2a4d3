"""Go on when Redis is away: try again until it is back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aios_broker.contract.errors import Unavailable

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0  # a server that is back is noticed within this time

T = TypeVar("T")


class Backoff:
    """Waits longer after each failure, with jitter so that a fleet does not come in step."""

    def __init__(self) -> None:
        self._next_s = FIRST_WAIT_S

    @property
    def calm(self) -> bool:
        """True until the first failure after a success."""
        return self._next_s == FIRST_WAIT_S

    def reset(self) -> None:
        """Start again with the shortest wait: it worked."""
        self._next_s = FIRST_WAIT_S

    async def wait(self) -> None:
        """Wait after a failure."""
        wait_s, self._next_s = self._next_s, min(LONGEST_WAIT_S, self._next_s * 2)
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Return what `call` returns, calling again while a server is away; no limit of its own."""
    backoff = Backoff()
    while True:
        try:
            return await call()
        except Unavailable as error:
            if backoff.calm:
                logger.warning("waiting for a server: %s", error)
            await backoff.wait()
