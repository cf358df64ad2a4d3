"""Rank jobs by the policy in force: give it the view that it needs, and keep what it says.

Jobs get new scores when their program, agent or tenant has used something since they got theirs.
Redis knows which of them have moved, and the jobs of each that have a score, so that nothing walks
through the queue. A tick ranks a share of each one's jobs; one that has more is gone through tick
by tick, and counts as moved until its last job is ranked and it has not moved meanwhile. Jobs that
are about to be claimed do not wait for that.

How far each one is gone through is known here alone: a scheduler that takes over begins anew.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.order import Order, Score, Waiting
from aios_broker.queues.quota import Scope
from aios_broker.queues.watch import NOTHING, Notes
from aios_broker.scheduler.policy import Core, Policy, View, subject_of

RUNNING = 200  # jobs that run and are in a view: about 1 ms of Redis' time
CORES_EVERY_S = 1.0  # how often it is read who serves
RESCORED = 100  # jobs that a tick ranks anew: 1 to 2 ms of Redis' time
HEAD = 32  # jobs at the head whose scores are never left behind


class LeadershipLost(Exception):
    """Another scheduler leads: the epoch of a change was over, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Jobs with their scores, and what is to be kept in Redis together with these."""

    scores: Mapping[str, float]
    fresh: Sequence[Score] = ()  # the same, with what each was made of
    notes: Notes = NOTHING


class Ranker:
    """Builds one module's views for one policy; remembers nothing but who served a moment ago."""

    def __init__(self, order: Order, policy: Policy) -> None:
        self.policy = policy
        self._order = order
        self._cores: dict[str, Core] = {}
        self._cores_due_s = 0.0  # monotonic

    async def rank(self, rows: Iterable[Waiting | None], now_ms: int) -> Ranked:
        """Give jobs their scores; those that are gone (None) get none."""
        jobs = tuple([row for row in rows if row is not None])
        if not jobs:
            return Ranked({})
        view = await self._view(jobs)
        ranks = self.policy.rank(view, now_ms)
        scores, watched = ranks.scores, self.policy.needs.watched
        fresh = [Score(job.job_id, scores[job.job_id], job.basis) for job in jobs]
        if watched is None:
            return Ranked(scores, fresh)
        ranked = tuple((job.job_id, str(subject_of(job, watched))) for job in jobs)
        marks = tuple(
            (who, mark)
            for who, mark in ranks.marks.items()
            if who not in view.accounts or view.accounts[who].mark != mark
        )
        return Ranked(scores, fresh, Notes(ranked=ranked, marks=marks))

    async def keep(self, epoch: int, ranked: Ranked) -> None:
        """Write scores, and what belongs to them, of jobs that stay where they stand.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        if not await self._order.reorder(epoch, [], scored=ranked.fresh, notes=ranked.notes):
            raise LeadershipLost

    async def _view(self, jobs: tuple[Waiting, ...]) -> View:
        """Read what the policy needs, and nothing else."""
        needs = self.policy.needs
        running = tuple(await self._order.running_facts(RUNNING)) if needs.running else ()
        cores = await self._served() if needs.cores else {}
        if not needs.accounts:
            return View(jobs, running, cores=cores)
        subjects = {subject_of(job, scope) for job in (*jobs, *running) for scope in needs.accounts}
        floor, accounts = await self._order.watch.accounts(list(subjects))
        return View(jobs, running, accounts, cores, floor)

    async def _served(self) -> dict[str, Core]:
        if time.monotonic() >= self._cores_due_s:
            self._cores = _cores_of(await self._order.watch.workers())
            self._cores_due_s = time.monotonic() + CORES_EVERY_S
        return self._cores


def _cores_of(workers: Iterable[WorkerView]) -> dict[str, Core]:
    """Return who serves each core."""
    cores: dict[str, Core] = {}
    for worker in workers:
        for model in worker.cores:
            before = cores.get(model, Core(0, 0))
            cores[model] = Core(before.workers + 1, before.slots + worker.slots)
    return cores


@dataclass(frozen=True, slots=True)
class _Walk:
    """How far the jobs of one subject are ranked, and how often it had moved at the beginning."""

    times: int
    after: str = ""  # the id of the last one


class Rescoring:
    """Follows what moves under one policy that watches."""

    def __init__(
        self,
        order: Order,
        ranker: Ranker,
        scope: Scope,
        heads: Callable[[int], Awaitable[list[str]]],
    ) -> None:
        self._order = order
        self._ranker = ranker
        self._scope: Scope = scope
        self._heads = heads  # the first so many jobs of each run queue
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
        # Of those at the head that are of no part it may not be noted yet that they are watched.
        new = tuple(pair for pair in ranked.notes.ranked if pair[0] not in part)
        notes += Notes(ranked=new, marks=ranked.notes.marks)
        await self._ranker.keep(epoch, Ranked(ranked.scores, ranked.fresh, notes))
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
        """Return the first jobs of the queues whose subjects have moved."""
        ids = await self._heads(HEAD)
        rows = [row for row in await self._order.metadata(ids) if row is not None]
        names = {row.job_id: str(subject_of(row, self._scope)) for row in rows}
        touched = await self._order.watch.are_touched(list(dict.fromkeys(names.values())))
        return {row.job_id: row for row in rows if names[row.job_id] in touched}
