"""Which waiting syscall is next: pure functions from what is seen of the kernel to an order.

A policy ranks jobs: it gives each a score, lower goes first; jobs of equal score keep the order
that they stand in. Beside it a policy says when what runs is suspended (`preempt`), whether
the run queue has to be reordered at all (the queue is a list that grows at its tail, so that for
the policies that go by arrival its natural order is the right one), and what it has to see beside
the jobs themselves (`needs`): what it does not name is not read, and costs nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.order import Waiting
from aios_broker.queues.quota import Scope, Subject
from aios_broker.queues.watch import Account

# When a slice ends, a running generation is suspended ...
# none: to nobody. waiting: to whoever waits. score: to one whose score is lower than its own.
Preempt = Literal["none", "waiting", "score"]

NICE_MIN, NICE_MAX = -20, 19
# One nice level is worth one second of waiting: felt by a person, and the whole span (39 levels)
# stays below a minute.
AGEING_MS_PER_NICE = 1_000

_NO_ACCOUNT = Account()
_WIDEST: tuple[Scope, ...] = ("tenant", "agent", "program")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy goes by beside the jobs to be ranked."""

    # The accounts of their programs, agents or tenants. When one of the widest of these scopes has
    # moved (it used something, or what runs of it has changed), its jobs are ranked anew.
    accounts: tuple[Scope, ...] = ()
    running: bool = False  # the jobs that run: some 1 ms of Redis' time each time jobs are ranked
    cores: bool = False  # who serves; as of a second ago at most
    # Whose turn it is: tenants take turns, in each its agents, programs, jobs (turns.py). Then the
    # head of the queue is kept in that order, and scores say only where the policy begins.
    turns: bool = False

    @property
    def watched(self) -> Scope | None:
        """The scope whose counters are watched: whatever moves a narrower one moves it, too."""
        return next((scope for scope in _WIDEST if scope in self.accounts), None)


@dataclass(frozen=True, slots=True)
class Core:
    """One core that is served."""

    workers: int  # that serve it now
    slots: int  # of these workers: shared with the other cores that they serve


@dataclass(frozen=True, slots=True)
class View:
    """What is known when jobs are ranked. Of what the policy does not need it is empty."""

    # The jobs to be ranked, those that stand in the queue in its order: new ones, and those of
    # subjects that have moved. A running one is among them where it is to be compared.
    jobs: tuple[Waiting, ...]
    running: tuple[Waiting, ...] = ()  # up to RUNNING of those that run
    accounts: Mapping[Subject, Account] = field(default_factory=dict)  # of all these jobs
    cores: Mapping[str, Core] = field(default_factory=dict)  # by model name
    # The score of the first waiting job; None: it has none, or none waits.
    floor: float | None = None

    def account(self, waiting: Waiting, scope: Scope) -> Account:
        """Return the account of a job's program, agent or tenant; zeros where it has none."""
        return self.accounts.get(subject_of(waiting, scope), _NO_ACCOUNT)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The order that a policy gives: by score, lower goes first, equal ones as they stand."""

    scores: Mapping[str, float]  # of each job of the view
    # What it remembers of programs, agents or tenants; they have it in their accounts from then on,
    # until their counters are dropped or another policy is followed.
    marks: Mapping[Subject, float] = field(default_factory=dict)


def subject_of(waiting: Waiting, scope: Scope) -> Subject:
    """Return the program, agent or tenant of a job."""
    metadata = waiting.metadata
    match scope:
        case "program":
            return Subject.of_program(metadata.program, metadata.agent, metadata.tenant)
        case "agent":
            return Subject("agent", metadata.tenant, metadata.agent)
        case "tenant":
            return Subject.of_tenant(metadata.tenant)


class Policy(Protocol):
    """One way to order a run queue."""

    @property
    def name(self) -> str:
        """Return the name it is chosen by."""

    @property
    def preempt(self) -> Preempt:
        """Return for whom a running generation is suspended at the end of a slice."""

    @property
    def reorders(self) -> bool:
        """Return whether the order differs from that of arrival at the tail."""

    @property
    def needs(self) -> Needs:
        """Return what it goes by beside the jobs that are to be ranked."""

    def rank(self, view: View, now_ms: int) -> Ranks:
        """Return the order of the view's jobs. Pure: the same view and time, the same order."""


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """Ranks each job by what is known of it alone."""

    name: str
    preempt: Preempt
    reorders: bool
    score: Callable[[Waiting, int], int]
    needs: Needs = Needs()

    def rank(self, view: View, now_ms: int) -> Ranks:
        """Go by the score of each, in ms."""
        return Ranks({each.job_id: float(self.score(each, now_ms)) for each in view.jobs})


def _ready_ms(waiting: Waiting, now_ms: int) -> int:
    """Return when it came to the tail."""
    return waiting.ready_ms or now_ms


def _submitted_ms(waiting: Waiting, now_ms: int) -> int:
    """Return the submission time; a job that a stock tool enqueued has none until it is adopted."""
    return waiting.submitted_ms or waiting.ready_ms or now_ms


def _aged_ms(waiting: Waiting, now_ms: int) -> int:
    """Return the submission time, moved by the nice value.

    The age of all that waits grows alike, so the score needs no clock and never changes: linear
    ageing costs no rescoring.

    Starvation bound: a job is overtaken only by jobs that were submitted less than
    (nice - NICE_MIN) * AGEING_MS_PER_NICE after it: at most 39 s for the nicest, 0 for a job of
    nice -20. Whatever is submitted later stands behind it, however important it is.
    """
    nice = min(max(waiting.metadata.nice, NICE_MIN), NICE_MAX)
    return _submitted_ms(waiting, now_ms) + nice * AGEING_MS_PER_NICE


_KNOWN: tuple[Policy, ...] = (
    # First come, first served, to the end: never interrupted.
    JobPolicy("fifo", "none", reorders=False, score=_submitted_ms),
    # Everybody in turn: a slice each, then back to the tail, if somebody waits. No tenant has two
    # turns before every tenant that waited has had one; so with its agents, their programs, and
    # the jobs of these.
    JobPolicy("rr", "waiting", reorders=False, score=_ready_ms, needs=Needs(turns=True)),
    # The lowest nice value first, and a second of waiting weighs as much as a nice level.
    JobPolicy("priority", "score", reorders=True, score=_aged_ms),
)
_POLICIES = {each.name: each for each in _KNOWN}
POLICY_NAMES = tuple(_POLICIES)


def policy_named(name: str, *, field: str = "AIOS_POLICY") -> Policy:
    """Return the policy of that name.

    Raises:
        InvalidConfig: There is none; names `field` and the choices.
    """
    if (policy := _POLICIES.get(name)) is None:
        raise InvalidConfig(
            f"there is no policy {name!r}",
            field=field,
            remedy=f"use one of: {', '.join(POLICY_NAMES)}",
        )
    return policy
