"""How long a client waits, and how it tries again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from aios_broker.contract.errors import Unavailable

Answer = TypeVar("Answer")

BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # pauses between tries; the last one repeats


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a client is."""

    recheck_s: float = 5.0  # without news of a syscall, ask for it by id; then ever less often
    patience_s: float = 60.0  # a kernel that is away longer fails what waits for it
    cancel_s: float = 2.0  # for cancelling, and for leaving the context


def now_s() -> float:
    """Return the running loop's time."""
    return asyncio.get_running_loop().time()


def pauses() -> Iterator[float]:
    """Yield ever longer pauses, without end."""
    return itertools.chain(BACKOFF_S, itertools.repeat(BACKOFF_S[-1]))


async def patiently(step: Callable[[], Awaitable[Answer]], patience_s: float) -> Answer:
    """Do what may be done twice, again and again until the kernel answers.

    Raises:
        Unavailable: it did not for `patience_s`.
    """
    until_s = now_s() + patience_s
    pause = pauses()
    while True:
        try:
            return await step()
        except Unavailable:
            pause_s = next(pause)
            if now_s() + pause_s > until_s:
                raise
        await asyncio.sleep(pause_s)
