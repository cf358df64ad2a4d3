"""Which transitions are asked for, and what is told of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aios_broker.ledger.journal import Transition
from aios_broker.queues.records import JobMetadata

UNKNOWN = JobMetadata(agent="?", kind="?")
MAX_KNOWN = 200_000  # syscalls whose metadata one reading remembers; about 30 MB


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
        metadata = seen.metadata
        return (
            self.may_match(seen.transition)
            and self.agent in (None, metadata.agent)
            and self.program in (None, metadata.program)
            and self.tenant in (None, metadata.tenant)
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
    metadata: JobMetadata

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands in the order of all."""
        change = self.transition
        return change.position.ms, change.position.seq, change.ordinal


class KnownMetadata:
    """Facts of syscalls, as far as they were met; forgotten all at once when they are many."""

    def __init__(self) -> None:
        self._metadata: dict[str, JobMetadata] = {}

    def remember(self, job_id: str, metadata: JobMetadata) -> None:
        """Keep what is known of a syscall."""
        if len(self._metadata) >= MAX_KNOWN:
            self._metadata.clear()
        self._metadata[job_id] = metadata

    def of(self, job_id: str) -> JobMetadata:
        """Return what is known of a syscall."""
        return self._metadata.get(job_id, UNKNOWN)

    def missing(self, job_ids: Iterable[str]) -> list[str]:
        """Return those of which nothing is known, once each."""
        return [job_id for job_id in dict.fromkeys(job_ids) if job_id not in self._metadata]
