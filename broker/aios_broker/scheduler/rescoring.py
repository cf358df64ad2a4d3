"""Give jobs new scores whose program, agent or tenant has used something since they got theirs.

Redis knows which of them have moved, and the jobs of each that have a score, so that nothing walks
through the queue. A tick ranks a share of each one's jobs; one that has more is gone through tick
by tick, and counts as moved until its last job is ranked and it has not moved meanwhile. Jobs that
are about to be claimed do not wait for that.

How far each one is gone through is known here alone: a scheduler that takes over begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aios_broker.queues.order import Order, Waiting
from aios_broker.queues.quota import Scope
from aios_broker.queues.watch import Notes
from aios_broker.scheduler.ranker import Ranker
from aios_broker.scheduler.sweep import LeadershipLost
from aios_broker.scheduler.view import subject_of

RESCORED = 100  # jobs that a tick ranks anew: 1 to 2 ms of Redis' time
HEAD = 32  # jobs at the head whose scores are never left behind


@dataclass(frozen=True, slots=True)
class _Walk:
    """How far the jobs of one subject are ranked, and how often it had moved at the beginning."""

    times: int
    after: str = ""  # the id of the last one


class Rescoring:
    """Follows what moves under one policy that watches."""

    def __init__(self, order: Order, ranker: Ranker, scope: Scope) -> None:
        self._order = order
        self._ranker = ranker
        self._scope: Scope = scope
        self._cursor = 0  # through all that have moved
        self._walks: dict[str, _Walk] = {}

    async def step(self, epoch: int, now_ms: int) -> bool:
        """Rank a part of what has moved; return whether anything had.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        cursor, found = await self._order.watch.touched(self._cursor)
        moved = dict(list(found.items())[:RESCORED])
        self._cursor = cursor if len(moved) == len(found) else self._cursor
        if not moved:
            return bool(self._cursor)
        part, notes = await self._part(moved)
        whole = not self._walks and not self._cursor and len(moved) == len(found)
        head = {} if whole else await self._head()
        ranked = await self._ranker.rank((part | head).values(), now_ms)
        new = tuple(
            pair for pair in ranked.notes.ranked if pair[0] not in part
        )  # may have no score
        notes += Notes(ranked=new, marks=ranked.notes.marks)
        scored = list(ranked.scores.items())
        if not await self._order.reorder(epoch, [], scored=scored, notes=notes):
            raise LeadershipLost
        return True

    async def _part(self, moved: Mapping[str, int]) -> tuple[dict[str, Waiting | None], Notes]:
        """Read the next jobs of these subjects; the notes say who is through."""
        most = max(1, RESCORED // len(moved))
        walks = {name: self._walks.get(name, _Walk(times)) for name, times in moved.items()}
        parts = await self._order.ranked([(name, walk.after, most) for name, walk in walks.items()])
        rows: dict[str, Waiting | None] = {}
        gone: list[tuple[str, str]] = []
        seen: list[tuple[str, int]] = []
        for (name, walk), part in zip(walks.items(), parts, strict=True):
            rows |= part
            gone += [(job_id, name) for job_id, row in part.items() if row is None]
            if len(part) < most:
                self._walks.pop(name, None)
                seen.append((name, walk.times))
            else:
                self._walks[name] = _Walk(walk.times, after=list(part)[-1])
        return rows, Notes(gone=tuple(gone), seen=tuple(seen))

    async def _head(self) -> dict[str, Waiting | None]:
        """Return the first jobs of the queue whose subjects have moved."""
        _, ids = await self._order.head(HEAD)
        rows = [row for row in await self._order.metadata(ids) if row is not None]
        names = {row.job_id: self._name(row) for row in rows}
        touched = await self._order.watch.are_touched(_each_once(names.values()))
        return {row.job_id: row for row in rows if names[row.job_id] in touched}

    def _name(self, row: Waiting) -> str:
        return str(subject_of(row, self._scope))


def _each_once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
