"""One pass over the whole of a long queue, a bounded piece at a time.

First all of it is read and what has no score gets one, then jobs change places in pairs until
their order is that of the scores. No step keeps Redis busy for more than a few milliseconds,
however long the queue is, and at each moment between two of them every job stands in the list
once. What moves while the pass is under way is left alone; the next pass finds it.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence

from aios_broker.queues.order import Exchange, Order
from aios_broker.scheduler.ranking import LeadershipLost, Ranker

PIECE = 250  # jobs that are read in one step
METADATA_AT_ONCE = 125  # jobs whose metadata is read in one call: under 1 ms of Redis' time
OVERLAP = 128  # by how many jobs the head may move between two pieces
PAIRS = 64  # exchanged in one step: each costs some 10 us in a queue of 100,000
LOOK_AT = 2000  # places that are compared in one step
_Ranked = tuple[float, int, str]  # score, place, id: equal scores keep their order
LAST = float("inf")  # the score of a job that nothing is known of: it is gone


class Arrangement:
    """A long queue as it was read, and the exchanges that bring it into order. Pure.

    Read everything, then take exchanges until there are none left. Nothing here needs the whole
    queue at once: it is read in pieces, each sorted for itself, and the sorted pieces are merged as
    far as the next exchanges need.
    """

    def __init__(self) -> None:
        self._standing: list[str] = []  # by place, with the exchanges that were handed out
        self._places: dict[str, int] = {}
        self._runs: list[list[_Ranked]] = []
        self._merged: Iterator[_Ranked] | None = None
        self._next = 0  # the first place that is not known to be right

    def __len__(self) -> int:
        """Return how many jobs were read."""
        return len(self._standing)

    @property
    def last(self) -> str | None:
        """The job that was read last."""
        return self._standing[-1] if self._standing else None

    def read(self, job_ids: Sequence[str], scores: Mapping[str, float]) -> None:
        """Take in the next piece; a job that was read before is not taken again."""
        run: list[_Ranked] = []
        for job_id in job_ids:
            if job_id not in self._places:
                place = self._places[job_id] = len(self._standing)
                self._standing.append(job_id)
                run.append((scores.get(job_id, LAST), place, job_id))
        run.sort()
        self._runs.append(run)

    def exchanges(self, most: int, *, look_at: int) -> tuple[list[Exchange], bool]:
        """Return up to `most` exchanges from the next `look_at` places, and whether it goes on.

        They are to be made in this order; together with all that follow they bring the queue into
        the order of its scores.
        """
        if self._merged is None:
            self._merged = heapq.merge(*self._runs)
        pairs: list[Exchange] = []
        until = min(self._next + look_at, len(self._standing))
        while self._next < until and len(pairs) < most:
            wanted = next(self._merged)[2]
            if (pair := self._exchange(self._next, wanted)) is not None:
                pairs.append(pair)
            self._next += 1
        return pairs, self._next < len(self._standing)

    def _exchange(self, place: int, wanted: str) -> Exchange | None:
        here, other_place = self._standing[place], self._places[wanted]
        if here == wanted:
            return None
        self._standing[place], self._standing[other_place] = wanted, here
        self._places[wanted], self._places[here] = place, other_place
        return Exchange(place, here, other_place, wanted)


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
                await self._ranker.keep(epoch, new)
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
