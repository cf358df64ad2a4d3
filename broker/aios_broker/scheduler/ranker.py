"""Rank jobs by the policy in force: give it the view that it needs, and keep what it says."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.order import Order, Waiting
from aios_broker.queues.watch import NOTHING, Notes
from aios_broker.scheduler.policy import Policy
from aios_broker.scheduler.view import Core, View, subject_of

RUNNING = 200  # jobs that run and are in a view: about 1 ms of Redis' time
CORES_EVERY_S = 1.0  # how often it is read who serves


@dataclass(frozen=True, slots=True)
class Ranked:
    """Jobs with their scores, and what is to be kept in Redis together with these."""

    scores: dict[str, float]
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
        jobs = tuple(row for row in rows if row is not None)
        if not jobs:
            return Ranked({})
        view = await self._view(jobs)
        ranks = self.policy.rank(view, now_ms)
        watched = self.policy.needs.watched
        if watched is None:
            return Ranked(dict(ranks.scores))
        ranked = tuple((job.job_id, str(subject_of(job, watched))) for job in jobs)
        marks = tuple(
            (who, mark)
            for who, mark in ranks.marks.items()
            if who not in view.accounts or view.accounts[who].mark != mark
        )
        return Ranked(dict(ranks.scores), Notes(ranked=ranked, marks=marks))

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
