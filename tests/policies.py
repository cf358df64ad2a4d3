"""Policies that the kernel does not have yet, sketched on what it shows them; how any is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aios_broker.queues.order import Waiting
from aios_broker.queues.quota import Subject
from aios_broker.queues.watch import Account
from aios_broker.scheduler.ordering import Ranking
from aios_broker.scheduler.policy import (
    Needs,
    Policy,
    Preempt,
    Ranks,
    View,
    policy_named,
    subject_of,
)

OF_PROGRAMS, OF_TENANTS = Needs(accounts=("program",)), Needs(accounts=("tenant",))
OUTPUT_WEIGHT = 2  # an output token costs a core so many prompt tokens


@dataclass(frozen=True, slots=True)
class Plas:
    """Least attained service: the program first whose syscalls ran the shortest, all in all."""

    name: str = "plas"
    preempt: Preempt = "score"
    reorders: bool = True
    needs: Needs = OF_PROGRAMS

    def rank(self, view: View, now_ms: int) -> Ranks:
        return Ranks({job.job_id: ran_ms(view.account(job, "program")) for job in view.jobs})


@dataclass(frozen=True, slots=True)
class Vtc:
    """Fair tenants: the one first who was served least.

    Who comes back is lifted to where the others are: nobody saves up while he has nothing to do.
    By how much he was lifted is remembered.
    """

    name: str = "vtc"
    preempt: Preempt = "score"
    reorders: bool = True
    needs: Needs = OF_TENANTS

    def rank(self, view: View, now_ms: int) -> Ranks:
        lifts: dict[Subject, float] = {}
        for job in view.jobs:
            account = view.account(job, "tenant")
            lift = account.mark or 0.0
            floor = served(account) if view.floor is None else view.floor
            lifts[subject_of(job, "tenant")] = max(lift, floor - served(account))
        return Ranks(
            {
                job.job_id: served(view.account(job, "tenant")) + lifts[subject_of(job, "tenant")]
                for job in view.jobs
            },
            lifts,
        )


@dataclass(frozen=True, slots=True)
class ProgramFcfs:
    """The program first whose first syscall came first; when that was is remembered.

    A syscall that came before those that were ranked first (they stood in an earlier part of the
    queue, or it was held) takes it back; those keep their scores until the program moves.
    """

    name: str = "program_fcfs"
    preempt: Preempt = "none"
    reorders: bool = True
    needs: Needs = OF_PROGRAMS

    def rank(self, view: View, now_ms: int) -> Ranks:
        began: dict[Subject, float] = {}
        for job in view.jobs:
            who, mark = subject_of(job, "program"), view.account(job, "program").mark
            came = float(job.submitted_ms)
            known = came if mark is None else mark
            began[who] = min(came, known, began.get(who, came))
        return Ranks({job.job_id: began[subject_of(job, "program")] for job in view.jobs}, began)


SKETCHES: dict[str, Policy] = {each.name: each for each in (Plas(), Vtc(), ProgramFcfs())}


def named(name: str) -> Policy:
    """Return a policy of the kernel's, or a sketch."""
    return SKETCHES.get(name) or policy_named(name)


def ran_ms(account: Account) -> float:
    return float(round(account.use.ran_s * 1000))


def served(account: Account) -> float:
    return float(account.use.prompt_tokens + OUTPUT_WEIGHT * account.use.tokens)


def scores_of(policy: Policy, queue: Sequence[Waiting], now_ms: int) -> dict[str, float]:
    """Return the scores that a policy gives to what waits, where nothing else is known."""
    return dict(policy.rank(View(tuple(queue)), now_ms).scores)


def order_of(policy: Policy, queue: Sequence[Waiting], now_ms: int) -> list[str]:
    """Return how the scheduler lets a queue stand: what goes to the head, and the rest behind."""
    standing = [waiting.job_id for waiting in queue]
    head = Ranking(standing, [], scores_of(policy, queue, now_ms)).misplaced()
    return [*head, *(job_id for job_id in standing if job_id not in set(head))]
