"""What is large is done in pieces, one tenant's after another's, and small requests go in between.

A body or an answer of megabytes is work for the one loop that all are served by, and for the one
Redis. Who has done a piece of it leaves both to others for as long as that took, and waits for its
tenant's turn. A request that is smaller than a piece never waits.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aios_broker.contract.names import Owner
from aios_broker.places import Holder, Places, Shares
from aios_broker.retry import now_s

PIECE_BYTES = 512 * 1024  # some 5 to 10 ms of the loop, and as much of Redis
LONGEST_REST_S = 0.1  # a piece that had to wait for Redis is no reason to rest for as long


class LargeWork:
    """The pieces of all requests of this process: one at a time."""

    def __init__(self) -> None:
        self._places = Places(Shares(1, 1, 1))

    @asynccontextmanager
    async def of(self, owner: Owner) -> AsyncIterator["WorkProgress"]:
        """Let the work of one request be counted, for the length of a block."""
        async with AsyncExitStack() as turn:
            progress = WorkProgress(self._places, Holder(owner.tenant, owner.agent), turn)
            yield progress
            await progress.rest()


class WorkProgress:
    """What one request has done of its work since its last turn."""

    def __init__(self, places: Places, holder: Holder, turn: AsyncExitStack) -> None:
        self._places = places
        self._holder = holder
        self._turn = turn
        self._since_s: float | None = None  # when this turn began; None: it has not needed one
        self._size_bytes = 0

    async def before(self, size_bytes: int) -> None:
        """Return when so much more may be done at once: now, or when the next turn has come."""
        self._size_bytes += size_bytes
        if self._size_bytes <= PIECE_BYTES:
            return
        self._size_bytes = size_bytes
        await self.rest()
        await self._turn.aclose()
        await self._turn.enter_async_context(self._places.one(self._holder))
        self._since_s = now_s()

    async def rest(self) -> None:
        """Leave the loop to what is small; this turn is kept meanwhile, so nobody has another."""
        if self._since_s is not None:
            await asyncio.sleep(min(now_s() - self._since_s, LONGEST_REST_S))
