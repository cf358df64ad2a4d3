"""Keep one module's run queue in the order of its policy.

All that is known between two ticks lies in Redis: the list is the order, and the scores beside it
say what has been ranked already. A job without a score is new, was suspended, or had its nice
value changed: its facts are read and it gets one. So a scheduler that takes over needs nothing
from the one before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.control import Control
from aios_broker.queues.order import Order
from aios_broker.scheduler.policy import Policy, policy_named

logger = logging.getLogger(__name__)

WHOLE_QUEUE = 2000  # up to this many waiting jobs the whole queue is ranked at each tick
END = 512  # jobs at either end of a longer queue that are ranked at each tick
SLACK = 64  # by how many jobs the ends may move between a tick's look and its change
WHOLE_EVERY_S = 2.0  # how often the whole of a longer queue is ranked ...
WHOLE_SHARE = 0.05  # ... and at most this share of the time goes into that
POLICY_EVERY_S = 0.1  # how often it is looked which policy is in force
BATCH = 1000  # jobs that are read in one step: a few ms of Redis' time


class LeadershipLost(Exception):
    """Another scheduler leads: the epoch of a change was over, and nothing was changed."""


@dataclass(slots=True)
class Ranking:
    """Jobs of a queue as they stand, what is known of them, and what has to change."""

    standing: list[str]  # in the queue's order
    running: list[str]
    scores: dict[str, float] = field(default_factory=dict)  # not of jobs that are gone
    fresh: set[str] = field(default_factory=set)  # those whose score Redis does not have

    def misplaced(self, *, head: int | None = None) -> list[str]:
        """Return the ids to put at the head, in order; those behind them stand right already.

        Args:
            head: The first so many are the head of a longer queue, the others its tail, and what
                lies between stands behind the head: of the tail only those jobs are named that
                belong among the head's.
        """
        present = [job_id for job_id in self.standing if job_id in self.scores]
        ranked = sorted(present, key=self.scores.__getitem__)  # stable: ties keep their order
        if head is not None:
            known = [
                self.scores[job_id] for job_id in self.standing[:head] if job_id in self.scores
            ]
            last = max(known, default=float("-inf"))
            ranked = [job_id for job_id in ranked if self.scores[job_id] <= last]
        wrong = (place for place, job_id in enumerate(ranked) if job_id != present[place])
        return ranked[: max(wrong, default=-1) + 1]


class ModuleOrder:
    """Follows the policy that is in force for a module, tick by tick."""

    def __init__(self, order: Order, control: Control, default: Policy) -> None:
        self._order = order
        self._control = control
        self._policy = default
        self._policy_due_s = 0.0  # monotonic, as all of these
        self._refused = ""  # why a published policy was not followed, said once
        self._settled = ""  # the policy whose order the whole queue was brought into
        self._whole_due_s = 0.0

    def forget(self) -> None:
        """Take nothing for granted: leadership begins."""
        self._policy_due_s = self._whole_due_s = 0.0
        self._settled = ""

    async def tick(self, epoch: int, now_ms: int) -> bool:
        """Bring the queue into order; return whether anything had to be changed.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        await self._follow_policy()
        policy = self._policy
        if self._settled != policy.name:
            changed = await self._whole(epoch, now_ms, rescore=True)
            self._settled = policy.name
            return changed
        if not policy.reorders:
            return False
        length, standing = await self._order.head(WHOLE_QUEUE)
        if length <= WHOLE_QUEUE:
            ranking = await self._look(standing, now_ms)
            return await self._change(epoch, ranking, ranking.misplaced())
        if time.monotonic() >= self._whole_due_s:
            return await self._whole(epoch, now_ms)
        return await self._ends(epoch, now_ms)

    async def _follow_policy(self) -> None:
        if time.monotonic() < self._policy_due_s:
            return
        try:
            policy = policy_named((await self._control.policy(self._order.module)).name)
        except (InvalidConfig, msgspec.ValidationError) as error:
            if self._refused != str(error):
                logger.warning("module %s goes on under %s: what was published will not do: %s",
                               self._order.module, self._policy.name, error)  # fmt: skip
            self._refused = str(error)
            policy = self._policy
        else:
            self._refused = ""
        self._policy_due_s = time.monotonic() + POLICY_EVERY_S
        if policy.name != self._policy.name:
            logger.info("module %s: policy %s in place of %s", self._order.module, policy.name,
                        self._policy.name)  # fmt: skip
        self._policy = policy

    async def _whole(self, epoch: int, now_ms: int, *, rescore: bool = False) -> bool:
        """Rank the whole queue. `rescore`: the scores in Redis are another policy's."""
        started_s = time.monotonic()
        _, standing = await self._order.head(0)
        ranking = await self._look(standing, now_ms, rescore=rescore)
        changed = await self._change(epoch, ranking, ranking.misplaced())
        took_s = time.monotonic() - started_s
        self._whole_due_s = time.monotonic() + max(WHOLE_EVERY_S, took_s / WHOLE_SHARE)
        return changed

    async def _ends(self, epoch: int, now_ms: int) -> bool:
        """Rank the head and the tail of a long queue: who goes next, against what came in."""
        _, standing = await self._order.head(END, tail=END)
        ranking = await self._look(standing, now_ms)
        ends = (END + SLACK, END + SLACK)
        return await self._change(epoch, ranking, ranking.misplaced(head=END), ends=ends)

    async def _look(self, standing: list[str], now_ms: int, *, rescore: bool = False) -> Ranking:
        running = await self._order.running() if self._policy.preempt == "score" else []
        ranking = Ranking(standing, running)
        jobs = [*standing, *running]
        for first in range(0, len(jobs), BATCH):
            await self._look_at(ranking, jobs[first : first + BATCH], now_ms, rescore)
        return ranking

    async def _look_at(
        self,
        ranking: Ranking,
        jobs: Sequence[str],
        now_ms: int,
        rescore: bool,  # noqa: FBT001
    ) -> None:
        """Complete the ranking by the scores of some jobs: Redis' own, or by their facts."""
        unknown = list(jobs)
        if not rescore:
            scores = dict(zip(jobs, await self._order.scores(jobs), strict=True))
            ranking.scores.update(
                (job_id, score) for job_id, score in scores.items() if score is not None
            )
            unknown = [job_id for job_id, score in scores.items() if score is None]
        if not unknown:
            return
        for waiting in await self._order.facts(unknown):
            if waiting is not None:
                ranking.scores[waiting.job_id] = self._policy.score(waiting, now_ms)
                ranking.fresh.add(waiting.job_id)

    async def _change(
        self,
        epoch: int,
        ranking: Ranking,
        misplaced: Sequence[str],
        *,
        ends: tuple[int, int] = (0, 0),
    ) -> bool:
        """Send what has to change, if anything has."""
        moved = set(misplaced)
        rest = [
            job_id
            for job_id in (*ranking.standing, *ranking.running)
            if job_id in ranking.fresh and job_id not in moved and self._policy.reorders
        ]
        if not misplaced and not rest:
            return False
        scores = ranking.scores
        changed = await self._order.reorder(
            epoch,
            [(job_id, scores[job_id]) for job_id in misplaced],
            scored=[(job_id, scores[job_id]) for job_id in rest],
            ends=ends,
        )
        if not changed:
            raise LeadershipLost
        return True
