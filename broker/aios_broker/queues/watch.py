"""What the policy in force may go by beside the jobs themselves: what others have used, who serves.

Programs, agents and tenants are subjects, as quotas know them. What `lua/scheduler/watch.lua` keeps
of them is kept only while a policy watches one of these scopes; everything is in Redis, so that a
scheduler that takes over knows what the one before knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from aios_broker.contract.names import Module
from aios_broker.queues.fleet import Fleet, WorkerView
from aios_broker.queues.functions import Functions, ModuleSteps
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import Scope, Subject, Use, read_use
from aios_broker.redis.connection import Argument

TOUCHED = 64  # subjects that are read in one step: some 100 where there are no more


@dataclass(frozen=True, slots=True)
class Account:
    """What a program, agent or tenant has used, and what the policy remembers of it."""

    use: Use = field(default_factory=Use)
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Notes:
    """What a step keeps beside the scores of jobs. Pairs are job id and subject where not said."""

    ranked: tuple[tuple[str, str], ...] = ()  # have a score now, by what their subject has used
    gone: tuple[tuple[str, str], ...] = ()  # are no more
    marks: tuple[tuple[Subject, float], ...] = ()
    # Subject, and how often it had moved: all its jobs are ranked by what was so then.
    seen: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Self) -> Notes:
        """Return all that is in either."""
        return Notes(
            self.ranked + other.ranked,
            self.gone + other.gone,
            self.marks + other.marks,
            self.seen + other.seen,
        )

    def __bool__(self) -> bool:
        """Tell whether there is anything to be kept."""
        return bool(self.ranked or self.gone or self.marks or self.seen)

    def arguments(self) -> list[Argument]:
        """Return it as `lua/scheduler/reorder.lua` reads it."""
        flat: list[Argument] = []
        for job_id, subject in self.ranked:
            flat += ("ranked", job_id, subject)
        for job_id, subject in self.gone:
            flat += ("gone", job_id, subject)
        for who, mark in self.marks:
            flat += ("mark", str(who), mark)
        for name, times in self.seen:
            flat += ("seen", name, times)
        return flat


NOTHING = Notes()


class Watch(ModuleSteps):
    """One module's view of who uses and who serves."""

    def __init__(self, functions: Functions, module: Module, keys: Keys | None = None) -> None:
        super().__init__(functions, module, keys)
        self._fleet = Fleet(functions.connection, self.keys)
        self._touched = self.keys.own(f"touched:{module}")

    async def follow(self, epoch: int, policy: str, scope: Scope | None) -> bool:
        """Drop all scores: another policy is followed from now on, or nothing is known of them.

        Args:
            epoch: Of the caller's leadership.
            policy: Its name. What was remembered for it stays, for another it goes.
            scope: Whose counters it goes by. From now on those that move are noted.

        Returns:
            False: the epoch is over, another scheduler leads, nothing was changed.
        """
        return bool(await self._call("follow", [epoch, policy, scope or ""]))

    async def touched(self, cursor: int) -> tuple[int, dict[str, int]]:
        """Return some of the subjects whose counters have moved, and how often they have.

        `cursor`: what the last call returned; 0 begins anew, and is returned at the end.
        """
        answer = await self._execute("HSCAN", self._touched, cursor, "COUNT", TOUCHED)
        flat = answer[1]
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return int(answer[0]), {name.decode(): int(times) for name, times in pairs}

    async def are_touched(self, subjects: Sequence[str]) -> set[str]:
        """Return those of these whose counters have moved since their jobs were ranked."""
        if not subjects:
            return set()
        times = await self._execute("HMGET", self._touched, *subjects)
        return {name for name, moved in zip(subjects, times, strict=True) if moved is not None}

    async def accounts(
        self, subjects: Sequence[Subject]
    ) -> tuple[float | None, dict[Subject, Account]]:
        """Return the score of the first waiting job, if it has one, and accounts."""
        floor, uses, marks = await self._call("accounts", [str(subject) for subject in subjects])
        found = {
            subject: Account(read_use(use) if use else Use(), None if mark is None else float(mark))
            for subject, use, mark in zip(subjects, uses, marks, strict=True)
        }
        return float(floor) if floor else None, found

    async def workers(self) -> list[WorkerView]:
        """Return the live workers of the module."""
        return [each for each in await self._fleet.live_workers() if each.module == self.module]
