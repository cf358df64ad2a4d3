"""A duty of a worker: something done again and again beside its syscalls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aios_broker.contract.errors import KernelError

logger = logging.getLogger(__name__)

TROUBLE_PAUSE_S = 5.0


@asynccontextmanager
async def on_duty(
    name: str,
    step: Callable[[], Awaitable[float]],
    trouble: str,
    *,
    wake: asyncio.Event | None = None,
) -> AsyncIterator[None]:
    """Do a step again and again for as long as the context is open; it tells the pause, in s.

    `wake` ends a pause early. It outlives whatever a step meets: that is logged behind `trouble`,
    an error of the kernel once for as long as it stays the same, and tried again 5 s later.
    """
    task = asyncio.create_task(_serve(step, trouble, wake), name=name)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _serve(
    step: Callable[[], Awaitable[float]], trouble: str, wake: asyncio.Event | None
) -> None:
    said = ""
    while True:
        if wake is not None:
            wake.clear()
        try:
            pause_s = await step()
        except KernelError as error:
            if str(error) != said:
                logger.warning("%s: %s", trouble, error)
            said = str(error)
        except Exception:
            logger.exception("%s", trouble)
            said = ""
        else:
            said = ""
            await _pause(pause_s, wake)
            continue
        await asyncio.sleep(TROUBLE_PAUSE_S)


async def _pause(pause_s: float, wake: asyncio.Event | None) -> None:
    if wake is None:
        await asyncio.sleep(pause_s)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await wake.wait()
