"""What a policy sees when it ranks jobs, and what it says of them. Frozen; reads nothing itself.

A policy names what it needs beside the jobs to be ranked (`Needs`); what it does not name is not
read, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aios_broker.queues.order import Waiting
from aios_broker.queues.quota import Scope, Subject
from aios_broker.queues.watch import Account

_NOBODY = Account()
_WIDEST: tuple[Scope, ...] = ("tenant", "agent", "program")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy goes by beside the jobs to be ranked."""

    # The accounts of their programs, agents or tenants. When one of the widest of these scopes has
    # moved (it used something, or what runs of it has changed), its jobs are ranked anew.
    accounts: tuple[Scope, ...] = ()
    running: bool = False  # the jobs that run: some 1 ms of Redis' time each time jobs are ranked
    cores: bool = False  # who serves; as of a second ago at most

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
    floor: float | None = (
        None  # the score of the first waiting job; None: it has none, or none waits
    )

    def account(self, waiting: Waiting, scope: Scope) -> Account:
        """Return the account of a job's program, agent or tenant; zeros where it has none."""
        return self.accounts.get(subject_of(waiting, scope), _NOBODY)


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
