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
from aios_broker.queues.order import ROUTED, Order, Score, Waiting
from aios_broker.queues.watch import NOTHING, Notes
from aios_broker.scheduler.policy import Policy, policy_named
from aios_broker.scheduler.ranking import LeadershipLost, Ranker, Rescoring
from aios_broker.scheduler.sweep import METADATA_AT_ONCE, Sweep
from aios_broker.scheduler.turn_order import PIECES, TurnOrder

logger = logging.getLogger(__name__)

WHOLE_QUEUE = 500  # up to this many waiting jobs the whole queue is ranked at each tick
END = 32  # jobs at either end of a longer queue that are ranked at each tick
SLACK = 32  # by how many jobs the ends may move between a tick's look and its change
WHOLE_EVERY_S = 2.0  # how often a sweep of a longer queue begins ...
WHOLE_SHARE = 0.05  # ... and at most this share of the time goes into sweeps
CORES_EVERY_S = 0.5  # how often it is looked which cores have queues
POLICY_EVERY_S = 0.1  # how often it is looked which policy is in force


@dataclass(slots=True)
class Ranking:
    """Jobs of a queue as they stand, what is known of them, and what has to change."""

    standing: list[str]  # in the queue's order
    running: list[str]
    scores: dict[str, float] = field(default_factory=dict)  # not of jobs that are gone
    fresh: list[Score] = field(default_factory=list)  # those of them that Redis does not have
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


@dataclass(slots=True)
class _List:
    """One run queue of the module, and how far it is in order."""

    order: Order
    whole_due_s: float = 0.0  # monotonic
    swept_policy: str = ""  # the one whose order it was brought into, or is being
    swept_s: float = 0.0  # what the sweep under way took so far
    sweep: Sweep | None = None
    turns: TurnOrder = field(init=False)

    def __post_init__(self) -> None:
        """Know of nobody's turns."""
        self.turns = TurnOrder(self.order)

    def sweep_due(self, ranker: Ranker, *, rescores: bool) -> Sweep | None:
        """Return the sweep under way, or a new one where one is due."""
        policy, is_due = ranker.policy, time.monotonic() >= self.whole_due_s
        if self.swept_policy != policy.name:
            self.swept_policy, self.swept_s = policy.name, 0.0
            self.sweep = Sweep(self.order, ranker, rescore=rescores)
        elif self.sweep is None and policy.reorders and is_due:
            self.swept_s = 0.0
            self.sweep = Sweep(self.order, ranker)
        return self.sweep

    def rest(self) -> None:
        """Note that a sweep is over."""
        self.sweep = None
        self.whole_due_s = time.monotonic() + max(WHOLE_EVERY_S, self.swept_s / WHOLE_SHARE)


class ModuleOrder:
    """Follows the policy that is in force for a module, tick by tick.

    A module has one run queue, and one more for each of its cores: each is put in order by itself,
    by scores that are the module's.
    """

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
        self._lists = [_List(order)]  # the first one is the module's own
        self.forget()

    def forget(self) -> None:
        """Take nothing for granted: leadership begins."""
        self._policy_due_s = self._lists_due_s = 0.0  # monotonic
        self._lists = [_List(each.order) for each in self._lists]
        self._follow(self._policy)

    async def tick(self, epoch: int, now_ms: int) -> bool:
        """Sweep a piece, then decide; return whether anything changed or is still to be done."""
        swept = await self.sweep(epoch, now_ms)
        return await self.decide(epoch, now_ms) or swept

    async def decide(self, epoch: int, now_ms: int) -> bool:
        """Say who is next: order the heads of the queues; return whether one had to be changed.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        async with self._turn:
            await self._follow_policy()
            first = self._lists[0]
            if self._policy.needs.turns:
                return await self._take_turns(epoch)
            if first.swept_policy != self._policy.name or not self._policy.reorders:
                return False
            if not self._has_own_scores():
                return True  # they are still another policy's
            moved = self._rescoring is not None and await self._rescoring.step(epoch, now_ms)
            for each in self._lists:
                if each.swept_policy == self._policy.name:
                    moved = await self._rank_ends(each.order, epoch, now_ms) or moved
            return moved

    async def _take_turns(self, epoch: int) -> bool:
        """Let owners take turns in each queue that stands in the policy's own order."""
        name, waits = self._policy.name, False
        for each in self._lists:
            if each.swept_policy == name and each.sweep is None:
                waits = await each.turns.step(epoch) or waits
        return waits

    def _has_own_scores(self) -> bool:
        """Tell whether the scores in Redis are those of the policy that is followed."""
        first = self._lists[0]
        return first.swept_policy == self._policy.name and (
            first.sweep is None or first.sweep.forgotten
        )

    async def sweep(self, epoch: int, now_ms: int) -> bool:
        """Bring a piece of each whole queue into order, when that is due.

        It is when the policy has changed, and now and then while a long queue is reordered.
        Returns whether there is more to be done or anything was changed.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        await self._follow_cores()
        busy = False
        for each in self._lists:
            is_swept = await self._sweep_list(each, epoch, now_ms)
            busy = is_swept or await self._read_on(each) or busy
        return busy

    async def _sweep_list(self, each: _List, epoch: int, now_ms: int) -> bool:
        is_first = each is self._lists[0]
        async with self._turn:
            await self._follow_policy()
            if not is_first and not self._has_own_scores():
                return True
            sweep = each.sweep_due(self._ranker, rescores=is_first)
            if sweep is None:
                return False
            started_s = time.monotonic()
            goes_on = await sweep.step(epoch, now_ms)
        each.swept_s += time.monotonic() - started_s
        if goes_on or each.sweep is not sweep:
            return True
        each.rest()
        return sweep.changed

    async def _read_on(self, each: _List) -> bool:
        """Read some pieces of who waits; decisions go between them. Return whether more is left."""
        for _ in range(PIECES):
            async with self._turn:
                if not await each.turns.read_on():
                    return False
        return True

    async def _follow_cores(self) -> None:
        """See which run queues there are."""
        if self._order.module != ROUTED or time.monotonic() < self._lists_due_s:
            return
        names = await self._order.core_queues()
        self._lists_due_s = time.monotonic() + CORES_EVERY_S
        known = {each.order.queue: each for each in self._lists}
        orders = [self._order, *(self._order.of_queue(name) for name in names)]
        self._lists[:] = [known.get(order.queue) or _List(order) for order in orders]

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
        for each in self._lists:
            each.turns.forget()
        self._ranker = Ranker(self._order, policy)
        scope = policy.needs.watched
        self._rescoring = (
            None if scope is None else Rescoring(self._order, self._ranker, scope, self._heads)
        )

    async def _heads(self, count: int) -> list[str]:
        """Return the first so many jobs of each queue."""
        heads = [await each.order.head(count) for each in self._lists]
        return [job_id for _, ids in heads for job_id in ids]

    async def _rank_ends(self, order: Order, epoch: int, now_ms: int) -> bool:
        """Rank the head and the tail of a queue: who goes next, against what came in."""
        running = self._policy.preempt == "score" and order is self._order  # the module's
        watches = self._rescoring is not None
        ends = await order.ends(WHOLE_QUEUE, END, running=running, middle=watches)
        if ends.settled:
            return False
        window = (END + SLACK, END + SLACK) if ends.length > WHOLE_QUEUE else (0, 0)
        standing = [*ends.head, *ends.middle, *ends.low]
        ranking = Ranking(standing, list(ends.running), dict(ends.scores))
        await self._complete(ranking, ends.metadata, now_ms)
        misplaced = ranking.misplaced(head=len(ends.head))
        return await self._change(
            order, epoch, ranking, misplaced, ends=window, middle=len(ends.middle)
        )

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
        ranking.fresh += ranked.fresh
        ranking.notes += ranked.notes

    async def _change(
        self,
        order: Order,
        epoch: int,
        ranking: Ranking,
        misplaced: Sequence[str],
        *,
        ends: tuple[int, int],
        middle: int,
    ) -> bool:
        """Send what has to change, if anything has."""
        if not misplaced and not ranking.fresh:
            return False
        changed = await order.reorder(
            epoch,
            misplaced,
            scored=ranking.fresh,
            ends=ends,
            middle=middle,
            notes=ranking.notes,
        )
        if not changed:
            raise LeadershipLost
        return True
