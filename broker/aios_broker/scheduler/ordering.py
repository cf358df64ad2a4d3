"""Keep one module's run queue in the order of its policy.

All that is known between two ticks lies in Redis: the list is the order, and the scores beside it
say what has been ranked already. A job without a score is new, was suspended, or had its nice
value changed: its metadata is read and it gets one. Where the policy goes by what others have
used, it is noted in Redis whose use has moved, and their jobs get new ones (`ranking.py`). So a
scheduler that takes over needs nothing from the one before.

A decision looks at the head, and at the tail for what belongs there: its cost does not grow with
the queue. The whole of a long queue is brought into order by sweeps, a piece at a time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.control import Control
from aios_broker.queues.order import Order, Waiting
from aios_broker.queues.watch import NOTHING, Notes
from aios_broker.scheduler.policy import Policy, policy_named
from aios_broker.scheduler.ranking import LeadershipLost, Ranker, Rescoring
from aios_broker.scheduler.sweep import METADATA_AT_ONCE, Sweep

logger = logging.getLogger(__name__)

WHOLE_QUEUE = 500  # up to this many waiting jobs the whole queue is ranked at each tick
END = 32  # jobs at either end of a longer queue that are ranked at each tick
SLACK = 32  # by how many jobs the ends may move between a tick's look and its change
WHOLE_EVERY_S = 2.0  # how often a sweep of a longer queue begins ...
WHOLE_SHARE = 0.05  # ... and at most this share of the time goes into sweeps
POLICY_EVERY_S = 0.1  # how often it is looked which policy is in force


@dataclass(slots=True)
class Ranking:
    """Jobs of a queue as they stand, what is known of them, and what has to change."""

    standing: list[str]  # in the queue's order
    running: list[str]
    scores: dict[str, float] = field(default_factory=dict)  # not of jobs that are gone
    fresh: set[str] = field(default_factory=set)  # those whose score Redis does not have
    notes: Notes = NOTHING  # what is kept together with these

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

    def __init__(
        self,
        order: Order,
        control: Control,
        default: Policy,
        named: Callable[[str], Policy] = policy_named,
    ) -> None:
        self._order = order
        self._control = control
        self._named = named
        self._turn = asyncio.Lock()  # what a score goes by holds until the score is written
        self._policy = default
        self._refused = ""  # why a published policy was not followed, said once
        self._swept_s = 0.0  # what the sweep under way took so far
        self.forget()

    def forget(self) -> None:
        """Take nothing for granted: leadership begins."""
        self._policy_due_s = self._whole_due_s = 0.0  # monotonic
        self._swept_policy = ""  # the one whose order the queue was brought into, or is being
        self._sweep: Sweep | None = None
        self._follow(self._policy)

    async def tick(self, epoch: int, now_ms: int) -> bool:
        """Sweep a piece, then decide; return whether anything changed or is still to be done."""
        swept = await self.sweep(epoch, now_ms)
        return await self.decide(epoch, now_ms) or swept

    async def decide(self, epoch: int, now_ms: int) -> bool:
        """Say who is next: order the head of the queue; return whether it had to be changed.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        async with self._turn:
            await self._follow_policy()
            if self._swept_policy != self._policy.name or not self._policy.reorders:
                return False
            if self._sweep is not None and not self._sweep.forgotten:
                return True  # the scores are still another policy's
            moved = self._rescoring is not None and await self._rescoring.step(epoch, now_ms)
            return await self._rank_ends(epoch, now_ms) or moved

    async def sweep(self, epoch: int, now_ms: int) -> bool:
        """Bring a piece of the whole queue into order, when that is due.

        It is when the policy has changed, and now and then while a long queue is reordered.
        Returns whether there is more to be done or anything was changed.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        async with self._turn:
            await self._follow_policy()
            sweep = self._sweep_due()
            if sweep is None:
                return False
            started_s = time.monotonic()
            goes_on = await sweep.step(epoch, now_ms)
        self._swept_s += time.monotonic() - started_s
        if goes_on or self._sweep is not sweep:
            return True
        self._sweep = None
        pause_s = max(WHOLE_EVERY_S, self._swept_s / WHOLE_SHARE)
        self._whole_due_s = time.monotonic() + pause_s
        return sweep.changed

    def _sweep_due(self) -> Sweep | None:
        """Return the sweep under way, or a new one where one is due."""
        policy, is_due = self._policy, time.monotonic() >= self._whole_due_s
        if self._swept_policy != policy.name:
            self._swept_policy, self._swept_s = policy.name, 0.0
            self._sweep = Sweep(self._order, self._ranker, rescore=True)
        elif self._sweep is None and policy.reorders and is_due:
            self._swept_s = 0.0
            self._sweep = Sweep(self._order, self._ranker)
        return self._sweep

    async def _follow_policy(self) -> None:
        if time.monotonic() < self._policy_due_s:
            return
        try:
            policy = self._named((await self._control.policy(self._order.module)).name)
        except (InvalidConfig, msgspec.ValidationError) as error:
            if self._refused != str(error):
                logger.warning(
                    "module %s goes on under %s: what was published will not do: %s",
                    self._order.module,
                    self._policy.name,
                    error,
                )
            self._refused = str(error)
            policy = self._policy
        else:
            self._refused = ""
        self._policy_due_s = time.monotonic() + POLICY_EVERY_S
        if policy.name != self._policy.name:
            logger.info(
                "module %s: policy %s in place of %s",
                self._order.module,
                policy.name,
                self._policy.name,
            )
            self._follow(policy)

    def _follow(self, policy: Policy) -> None:
        """Rank by this policy from now on."""
        self._policy = policy
        self._ranker = Ranker(self._order, policy)
        scope = policy.needs.watched
        self._rescoring = None if scope is None else Rescoring(self._order, self._ranker, scope)

    async def _rank_ends(self, epoch: int, now_ms: int) -> bool:
        """Rank the head and the tail: who goes next, against what came in."""
        running, watches = self._policy.preempt == "score", self._rescoring is not None
        ends = await self._order.ends(WHOLE_QUEUE, END, running=running, middle=watches)
        if ends.settled:
            return False
        window = (END + SLACK, END + SLACK) if ends.length > WHOLE_QUEUE else (0, 0)
        standing = [*ends.head, *ends.middle, *ends.low]
        ranking = Ranking(standing, list(ends.running), dict(ends.scores))
        await self._complete(ranking, ends.metadata, now_ms)
        misplaced = ranking.misplaced(head=len(ends.head))
        return await self._change(epoch, ranking, misplaced, ends=window, middle=len(ends.middle))

    async def _complete(
        self, ranking: Ranking, known: Mapping[str, Waiting | None], now_ms: int
    ) -> None:
        """Give a score to all jobs of a ranking that have none, by their metadata."""
        jobs = (*ranking.standing, *ranking.running)
        await self._score(ranking, known.values(), now_ms)
        unknown = [job for job in jobs if job not in ranking.scores and job not in known]
        for first in range(0, len(unknown), METADATA_AT_ONCE):
            rows = await self._order.metadata(unknown[first : first + METADATA_AT_ONCE])
            await self._score(ranking, rows, now_ms)

    async def _score(self, ranking: Ranking, rows: Iterable[Waiting | None], now_ms: int) -> None:
        ranked = await self._ranker.rank(rows, now_ms)
        ranking.scores |= ranked.scores
        ranking.fresh |= ranked.scores.keys()
        ranking.notes += ranked.notes

    async def _change(
        self,
        epoch: int,
        ranking: Ranking,
        misplaced: Sequence[str],
        *,
        ends: tuple[int, int],
        middle: int,
    ) -> bool:
        """Send what has to change, if anything has."""
        moved = set(misplaced)
        rest = [
            job_id
            for job_id in (*ranking.standing, *ranking.running)
            if job_id in ranking.fresh and job_id not in moved
        ]
        if not misplaced and not rest:
            return False
        scores = ranking.scores
        changed = await self._order.reorder(
            epoch,
            [(job_id, scores[job_id]) for job_id in misplaced],
            scored=[(job_id, scores[job_id]) for job_id in rest],
            ends=ends,
            middle=middle,
            notes=ranking.notes,
        )
        if not changed:
            raise LeadershipLost
        return True
