"""Results on their way to the queue. Nothing leaves it before the queue has answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aios_broker.contract.errors import KernelError, Unavailable
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue, Settled
from aios_broker.queues.records import Ending, Lease, Pause
from aios_workers.runtime.tally import Tally

logger = logging.getLogger(__name__)

REFUSED_S = 30.0  # results that Redis refuses this long are given up; their leases run out

E = TypeVar("E", Ending, Pause)
_Send = Callable[[list[E], ClaimRequest], Awaitable[Settled]]


class Outbox:
    """Settles endings and pauses in batches, and claims the next jobs in the same step.

    One caller at a time settles; anybody may add meanwhile.
    """

    def __init__(self, queue: ModuleQueue, worker: str) -> None:
        self._queue = queue
        self._worker = worker
        self._endings: list[Ending] = []
        self._pauses: list[Pause] = []
        self._refused_since_s: float | None = None
        self.tally = Tally()

    def __len__(self) -> int:
        """Return how many results wait."""
        return len(self._endings) + len(self._pauses)

    def add(self, entry: Ending | Pause) -> None:
        """Take in what came of a run."""
        self.tally.count(entry)
        if isinstance(entry, Ending):
            self._endings.append(entry)
        else:
            self._pauses.append(entry)

    def leases(self) -> list[Lease]:
        """Return the leases that must live until their results are settled."""
        return [end.lease for end in self._endings] + [pause.lease for pause in self._pauses]

    async def settle(self, claim_request: ClaimRequest) -> list[Lease]:
        """Hand over all that waits; return the jobs claimed in the same step.

        Raises:
            KernelError: Redis is away or refused; what it did not answer for is still here.
        """
        nothing = ClaimRequest(0, claim_request.lease_s, claim_request.cores)
        try:
            leases: list[Lease] = []
            if self._pauses:
                leases += await _send_all(
                    self._pauses, self._pause, nothing if self._endings else claim_request
                )
            if self._endings and not leases:
                leases += await _send_all(self._endings, self._finish, claim_request)
        except Unavailable:
            raise
        except KernelError:
            # One bad result must not hold up all others.
            await _send_singly(self._pauses, self._pause, nothing)
            await _send_singly(self._endings, self._finish, nothing)
            if self._is_hopeless():
                return []
            raise
        self._refused_since_s = None
        return leases

    async def _pause(self, pauses: list[Pause], claim_request: ClaimRequest) -> Settled:
        return await self._queue.pause(self._worker, pauses, claim_request)

    async def _finish(self, endings: list[Ending], claim_request: ClaimRequest) -> Settled:
        return await self._queue.finish(self._worker, endings, claim_request)

    def _is_hopeless(self) -> bool:
        """Note that results were refused; after REFUSED_S give them up and return True."""
        now_s = asyncio.get_running_loop().time()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        if len(self) and now_s - self._refused_since_s < REFUSED_S:
            return False
        if len(self):
            lost = [lease.job_id for lease in self.leases()]
            logger.error("Redis refuses these results, they are given up: %s", lost)
        self._endings.clear()
        self._pauses.clear()
        self._refused_since_s = None
        return True


async def _send_all(entries: list[E], send: _Send[E], claim_request: ClaimRequest) -> list[Lease]:
    batch = entries[:]
    settled = await send(batch, claim_request)
    del entries[: len(batch)]  # others may have come behind them meanwhile
    for entry, accepted in zip(batch, settled.accepted, strict=True):
        if not accepted:
            logger.info(
                "late: attempt %d of %s no longer counts, its result was dropped",
                entry.lease.attempt,
                entry.lease.job_id,
            )
    return settled.leases


async def _send_singly(entries: list[E], send: _Send[E], claim_request: ClaimRequest) -> None:
    refused: list[E] = []
    batch = entries[:]
    for entry in batch:
        try:
            await send([entry], claim_request)
        except Unavailable:
            raise
        except KernelError as error:
            logger.warning("Redis refuses the result of %s: %s", entry.lease.job_id, error)
            refused.append(entry)
    entries[: len(batch)] = refused
