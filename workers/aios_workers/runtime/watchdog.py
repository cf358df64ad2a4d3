"""End a worker whose loop hangs: a handler that never returns must not keep the process for ever.

Its leases have run out by then, and other workers have its jobs. A supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

HUNG_LEASES = 3  # so many leases without one turn of the loop; after one, all are lost
CHECKS = 4  # of the loop, within that time


@asynccontextmanager
async def watched(lease_s: float) -> AsyncIterator[None]:
    """For the length of a block, see that the loop turns. One that hangs ends the process.

    The thread that watches needs nothing of Python: code that never lets go of the interpreter
    is noticed, too. It writes where each thread stands to standard error, and exits with 1.
    """
    watching = asyncio.create_task(_watch(HUNG_LEASES * lease_s))
    try:
        yield
    finally:
        watching.cancel()
        faulthandler.cancel_dump_traceback_later()


async def _watch(limit_s: float) -> None:
    while True:
        faulthandler.dump_traceback_later(limit_s, exit=True)  # begins anew with each call
        await asyncio.sleep(limit_s / CHECKS)
