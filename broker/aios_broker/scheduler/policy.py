"""Which waiting syscall is next: pure functions from what is seen of the kernel to an order.

A policy ranks jobs: it gives each a score, lower goes first; jobs of equal score keep the order
that they stand in. Beside it a policy says when a running generation yields (`preempt`), whether
the run queue has to be reordered at all (the queue is a list that grows at its tail, so that for
the policies that go by arrival its natural order is the right one), and what it has to see beside
the jobs themselves (`needs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.order import Waiting
from aios_broker.scheduler.view import Needs, Ranks, View

PolicyName = Literal["fifo", "rr", "priority"]
POLICY_NAMES: tuple[PolicyName, ...] = ("fifo", "rr", "priority")

# When a slice ends, a running generation yields ...
# none: to nobody. waiting: to whoever waits. score: to one whose score is lower than its own.
Preempt = Literal["none", "waiting", "score"]

NICE_MIN, NICE_MAX = -20, 19
# One nice level is worth one second of waiting: felt by a person, and the whole span (39 levels)
# stays below a minute.
AGEING_MS_PER_NICE = 1_000

NOTHING_ELSE = Needs()


class Policy(Protocol):
    """One way to order a run queue."""

    @property
    def name(self) -> str:
        """Return the name it is chosen by."""

    @property
    def preempt(self) -> Preempt:
        """Return to whom a running generation yields at the end of a slice."""

    @property
    def reorders(self) -> bool:
        """Return whether the order differs from that of arrival at the tail."""

    @property
    def needs(self) -> Needs:
        """Return what it goes by beside the jobs that are to be ranked."""

    def rank(self, view: View, now_ms: int) -> Ranks:
        """Return the order of the view's jobs. Pure: the same view and time, the same order."""


@dataclass(frozen=True, slots=True)
class Fifo:
    """First come, first served, to the end: by time of submission, never interrupted."""

    name: PolicyName = "fifo"
    preempt: Preempt = "none"
    reorders: bool = False
    needs: Needs = NOTHING_ELSE

    def rank(self, view: View, now_ms: int) -> Ranks:
        """Go by when each was submitted, in ms."""
        return _each(view, lambda waiting: _submitted_ms(waiting, now_ms))


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Everybody in turn: a slice each, then back to the tail, if somebody waits.

    Nobody runs twice before everybody who waited has run once.
    """

    name: PolicyName = "rr"
    preempt: Preempt = "waiting"
    reorders: bool = False
    needs: Needs = NOTHING_ELSE

    def rank(self, view: View, now_ms: int) -> Ranks:
        """Go by when each came to the tail, in ms."""
        return _each(view, lambda waiting: waiting.ready_ms or now_ms)


@dataclass(frozen=True, slots=True)
class Priority:
    """The lowest nice value first, and a second of waiting weighs as much as a nice level.

    score = time of submission in ms + nice * AGEING_MS_PER_NICE

    The age of all that waits grows alike, so the score needs no clock and never changes: linear
    ageing costs no rescoring.

    Starvation bound: a job is overtaken only by jobs that were submitted less than
    (nice - NICE_MIN) * AGEING_MS_PER_NICE after it: at most 39 s for the nicest, 0 for a job of
    nice -20. Whatever is submitted later stands behind it, however important it is.
    """

    name: PolicyName = "priority"
    preempt: Preempt = "score"
    reorders: bool = True
    needs: Needs = NOTHING_ELSE

    def rank(self, view: View, now_ms: int) -> Ranks:
        """Go by the submission time in ms, moved by the nice value."""
        return _each(view, lambda waiting: _aged_ms(waiting, now_ms))


def policy_named(name: str, *, field: str = "AIOS_POLICY") -> Policy:
    """Return the policy of that name.

    Raises:
        InvalidConfig: There is none; names `field` and the choices.
    """
    match name:
        case "fifo" | "rr" | "priority":
            return _policy(name)
        case _:
            raise InvalidConfig(
                f"there is no policy {name!r}",
                field=field,
                remedy=f"use one of: {', '.join(POLICY_NAMES)}",
            )


def _policy(name: PolicyName) -> Policy:
    match name:
        case "fifo":
            return Fifo()
        case "rr":
            return RoundRobin()
        case "priority":
            return Priority()
        case _:
            assert_never(name)


def _each(view: View, score: Callable[[Waiting], float]) -> Ranks:
    """Rank each job by what is known of it alone."""
    return Ranks({waiting.job_id: float(score(waiting)) for waiting in view.jobs})


def _aged_ms(waiting: Waiting, now_ms: int) -> int:
    nice = min(max(waiting.metadata.nice, NICE_MIN), NICE_MAX)
    return _submitted_ms(waiting, now_ms) + nice * AGEING_MS_PER_NICE


def _submitted_ms(waiting: Waiting, now_ms: int) -> int:
    """Return the submission time; a job that a stock tool enqueued has none until it is adopted."""
    return waiting.submitted_ms or waiting.ready_ms or now_ms
