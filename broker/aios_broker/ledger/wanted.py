"""Which transitions are asked for, and what is told of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aios_broker.ledger.journal import Transition
from aios_broker.queues.records import Facts

UNKNOWN = Facts(agent="?", kind="?")
MAX_KNOWN = 200_000  # syscalls whose facts one reading remembers; about 30 MB


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which transitions are asked for; None: any."""

    job_id: str | None = None  # or the first digits of one
    agent: str | None = None
    program: str | None = None
    tenant: str | None = None
    module: str | None = None
    event: str | None = None

    def matches(self, seen: Happening) -> bool:
        """Whether a transition is among them."""
        facts = seen.facts
        return (
            self.may_match(seen.transition)
            and self.agent in (None, facts.agent)
            and self.program in (None, facts.program)
            and self.tenant in (None, facts.tenant)
        )

    def may_match(self, change: Transition) -> bool:
        """Whether a transition is among them, as far as it shows by itself."""
        return (
            change.job_id.startswith(self.job_id or "")
            and self.module in (None, change.module)
            and self.event in (None, change.event)
        )

    @property
    def by_name(self) -> bool:
        """Whether whose syscalls they are matters."""
        return (self.agent, self.program, self.tenant) != (None, None, None)


@dataclass(frozen=True, slots=True)
class Happening:
    """A transition, and what is known of its syscall."""

    transition: Transition
    facts: Facts

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands in the order of all."""
        change = self.transition
        return change.position.ms, change.position.seq, change.ordinal


class KnownFacts:
    """Facts of syscalls, as far as they were met; forgotten all at once when they are many."""

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}

    def remember(self, job_id: str, facts: Facts) -> None:
        """Keep what is known of a syscall."""
        if len(self._facts) >= MAX_KNOWN:
            self._facts.clear()
        self._facts[job_id] = facts

    def of(self, job_id: str) -> Facts:
        """Return what is known of a syscall."""
        return self._facts.get(job_id, UNKNOWN)

    def missing(self, job_ids: Iterable[str]) -> list[str]:
        """Return those of which nothing is known, once each."""
        return [job_id for job_id in dict.fromkeys(job_ids) if job_id not in self._facts]
