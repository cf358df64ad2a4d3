"""A long queue as it was read, and the exchanges that bring it into order. Pure.

Nothing here needs the whole queue at once: it is read in pieces, each sorted for itself, and the
sorted pieces are merged as far as the next exchanges need.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

from aios_broker.queues.order import Exchange

_Ranked = tuple[float, int, str]  # score, place, id: equal scores keep their order
LAST = float("inf")  # the score of a job that nothing is known of: it is gone


class Arrangement:
    """Read everything, then take exchanges until there are none left."""

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
