"""What is large is done in pieces, one tenant's after another's, and small requests go in between.

A body or an answer of megabytes is work for the one loop that all are served by, and for the one
Redis; so is a body of 100,000 values. Who has done a piece of it leaves both to others for as long
as that took, and waits for its tenant's turn. What is small never waits; what is smaller than a
piece waits where its tenant has just had as much.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aios_broker.contract.names import Owner
from aios_broker.places import Holder, Places, Shares
from aios_broker.retry import now_s

PIECE_BYTES = 512 * 1024  # some 5 to 10 ms of the loop, and as much of Redis
SMALL_BYTES = 16 * 1024  # a thousand requests at once are 0.3 s
VALUE_BYTES = 20  # to read a value takes as long as so much text: 0.2 to 0.3 microseconds
COUNTED_S = 0.1  # a tenant's pieces are counted for so long
LONGEST_REST_S = 0.1  # a piece that had to wait for Redis is no reason to rest for as long


def weight_of(data: bytes) -> int:
    """Return how large a body in JSON is, in bytes of text that take as long to be read."""
    if len(data) > PIECE_BYTES:
        return len(data)  # it takes turns in any case
    return len(data) + VALUE_BYTES * sum(map(data.count, (b",", b":", b"[", b"{")))


class LargeWork:
    """The pieces of all requests of this process: one at a time."""

    def __init__(self) -> None:
        self._places = Places(Shares(1, 1, 1))
        self._done_bytes: Counter[str] = Counter()  # by tenant
        self._since_s = now_s()  # when it was begun to count

    @asynccontextmanager
    async def of(self, owner: Owner) -> AsyncIterator["WorkProgress"]:
        """Let the work of one request be counted, for the length of a block."""
        async with AsyncExitStack() as turn:
            progress = WorkProgress(self, Holder(owner.tenant, owner.agent), turn)
            try:
                yield progress
            finally:  # what was refused has taken as long
                await progress.rest()

    async def enter(self, holder: Holder, turn: AsyncExitStack) -> None:
        """Wait for a turn."""
        await turn.enter_async_context(self._places.one(holder))

    def is_free(self, tenant: str, size_bytes: int) -> bool:
        """Count more of a tenant's work; return whether it may go without a turn."""
        if now_s() - self._since_s > COUNTED_S:
            self._done_bytes.clear()
            self._since_s = now_s()
        self._done_bytes[tenant] += size_bytes
        return self._done_bytes[tenant] <= PIECE_BYTES


class WorkProgress:
    """What one request has done of its work since its last turn."""

    def __init__(self, work: LargeWork, holder: Holder, turn: AsyncExitStack) -> None:
        self._work = work
        self._holder = holder
        self._turn = turn
        self._since_s: float | None = None  # when this turn began; None: it has not needed one
        self._size_bytes = 0

    async def before(self, size_bytes: int) -> None:
        """Return when so much more may be done at once: now, or when the next turn has come."""
        self._size_bytes += size_bytes
        if self._goes_on(size_bytes):
            return
        self._size_bytes = size_bytes
        await self.rest()
        await self._turn.aclose()
        await self._work.enter(self._holder, self._turn)
        self._since_s = now_s()

    def _goes_on(self, size_bytes: int) -> bool:
        if self._since_s is not None:
            return self._size_bytes <= PIECE_BYTES
        if self._size_bytes <= SMALL_BYTES:
            return True
        return self._work.is_free(self._holder.tenant, size_bytes)

    async def rest(self) -> None:
        """Leave the loop to what is small; this turn is kept meanwhile, so nobody has another."""
        if self._since_s is not None:
            await asyncio.sleep(min(now_s() - self._since_s, LONGEST_REST_S))
