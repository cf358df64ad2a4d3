"""One pass over the whole of a long queue, a bounded piece at a time.

First all of it is read and what has no score gets one, then jobs change places in pairs until
their order is that of the scores. No step keeps Redis busy for more than a few milliseconds,
however long the queue is, and at each moment between two of them every job stands in the list
once. What moves while the pass is under way is left alone; the next pass finds it.
"""

from __future__ import annotations

from aios_broker.queues.order import Order
from aios_broker.scheduler.arrangement import Arrangement
from aios_broker.scheduler.ranker import Ranker

PIECE = 250  # jobs that are read in one step
METADATA_AT_ONCE = 125  # jobs whose metadata is read in one call: under 1 ms of Redis' time
OVERLAP = 128  # by how many jobs the head may move between two pieces
PAIRS = 64  # exchanged in one step: each costs some 10 us in a queue of 100,000
LOOK_AT = 2000  # places that are compared in one step


class LeadershipLost(Exception):
    """Another scheduler leads: the epoch of a change was over, and nothing was changed."""


class Sweep:
    """A pass under way. `rescore`: the scores in Redis are another policy's."""

    def __init__(self, order: Order, ranker: Ranker, *, rescore: bool = False) -> None:
        self.forgotten = not rescore  # the scores in Redis are this policy's
        self.changed = False
        self._order = order
        self._ranker = ranker
        self._policy = ranker.policy
        self._arrangement = Arrangement()
        self._shift = 0  # by how many jobs the head has moved since the first piece
        self._reading = True

    async def step(self, epoch: int, now_ms: int) -> bool:
        """Go on with it; return whether it goes on.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        if not self.forgotten:
            policy = self._policy
            if not await self._order.watch.follow(epoch, policy.name, policy.needs.watched):
                raise LeadershipLost
            self.forgotten = True
        if self._reading and await self._read(epoch, now_ms):
            return True
        self._reading = False
        return await self._exchange(epoch)

    async def _read(self, epoch: int, now_ms: int) -> bool:
        """Read the next piece; return whether there are more."""
        known = len(self._arrangement)
        start = max(0, known - self._shift - OVERLAP) if known else 0
        asked = PIECE + OVERLAP if known else PIECE
        ids = fresh = await self._order.piece(start, asked)
        if self._arrangement.last is not None:
            try:
                at = ids.index(self._arrangement.last)
            except ValueError:  # it moved farther than that, or left: this much will do
                return False
            self._shift = known - 1 - (start + at)
            fresh = ids[at + 1 :]
        self._arrangement.read(fresh, await self._scores(epoch, fresh, now_ms))
        return len(ids) == asked

    async def _scores(self, epoch: int, ids: list[str], now_ms: int) -> dict[str, float]:
        """Return the scores of jobs; those that have none get one, where the policy keeps them."""
        scores: dict[str, float] = {}
        unknown = ids
        if self._policy.reorders:
            known = await self._order.scores(ids)
            scores = {i: score for i, score in zip(ids, known, strict=True) if score is not None}
            unknown = [job_id for job_id in ids if job_id not in scores]
        for first in range(0, len(unknown), METADATA_AT_ONCE):
            rows = await self._order.metadata(unknown[first : first + METADATA_AT_ONCE])
            new = await self._ranker.rank(rows, now_ms)
            scores |= new.scores
            if self._policy.reorders and new.scores:
                self.changed = True
                if not await self._order.reorder(
                    epoch, [], scored=list(new.scores.items()), notes=new.notes
                ):
                    raise LeadershipLost
        return scores

    async def _exchange(self, epoch: int) -> bool:
        pairs, more = self._arrangement.exchanges(PAIRS, look_at=LOOK_AT)
        if pairs:
            answer = await self._order.exchange(epoch, pairs, shift=self._shift)
            if answer is None:
                raise LeadershipLost
            exchanged, self._shift = answer
            self.changed = self.changed or exchanged > 0
        return more
