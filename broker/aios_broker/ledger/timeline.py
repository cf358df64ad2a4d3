"""The lives of a syscall as its transitions tell them: in which state it was, from when to when.

Pure. The phases of a life follow one another without a gap: they add up to the time between its
submission and its end. What is believed of a transition is what `fold` believes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from aios_broker.contract.syscall import State
from aios_broker.contract.transitions import TABLE, TERMINAL
from aios_broker.ledger.journal import (
    BEGINNINGS,
    JobUse,
    Transition,
    read_metadata,
    read_use,
)
from aios_broker.queues.records import JobMetadata

UNKNOWN = JobMetadata(agent="?", kind="?")
_TARGETS: Mapping[str, State | None] = {event: target for event, (_, target) in TABLE.items()}


class Phase(Struct, frozen=True):
    """The time in one state."""

    state: State
    begin_ms: int  # Unix time, by Redis' clock, as the end
    end_ms: int
    ended_by: str  # the event
    worker: str = ""  # of a phase that is running, as all that follows
    attempt: int = 0
    core: str = ""
    tokens: int = 0  # output, of this phase alone
    ran_ms: int = 0  # as its worker counted


class Life(Struct, frozen=True):
    """From a submission to its end, or to what was heard last."""

    job_id: str
    module: str
    number: int  # 0: the first one under this id
    metadata: JobMetadata
    state: State
    begin_ms: int
    end_ms: int
    phases: tuple[Phase, ...] = ()
    used: JobUse = JobUse()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in TERMINAL

    @property
    def slices(self) -> list[Phase]:
        """The phases in which it ran."""
        return [phase for phase in self.phases if phase.state == "running"]

    @property
    def error_code(self) -> str:
        """The code of the error that it ended with; empty: it ended well, or has not."""
        if not self.has_ended or self.state == "finished":
            return ""
        return self.used.code or self.state


def lives_of(changes: Iterable[Transition], known: JobMetadata = UNKNOWN) -> list[Life]:
    """Return the lives of one syscall, oldest first.

    `changes` are its transitions in their order; `known` says whose it is where the first of them
    is no submission.
    """
    lives: list[Life] = []
    for change in changes:
        if change.event not in _TARGETS:
            continue
        before = lives[-1] if lives else None
        if before is None or before.has_ended:
            if before is not None and change.event not in BEGINNINGS:
                continue  # what ended stays ended
            lives.append(_born(change, before, known))
            continue
        lives[-1] = _moved(before, change)
    return lives


def _born(change: Transition, before: Life | None, known: JobMetadata) -> Life:
    told = read_metadata(change.detail) if change.event in BEGINNINGS else None
    life = Life(
        change.job_id,
        change.module,
        0 if before is None else before.number + 1,
        told or (before.metadata if before else known),
        "queued",
        change.position.ms,
        change.position.ms,
        # A stock tool that requeues goes on with the job's counters.
        used=before.used if before and change.event == "adopt" else JobUse(),
    )
    if change.event in BEGINNINGS:
        return life
    return _moved(life, change)


def _moved(life: Life, change: Transition) -> Life:
    """Return a life after a change of its state."""
    if change.event == "move" or (change.event in BEGINNINGS and life.state == "queued"):
        return life
    used = _added(life.used, change)
    at_ms = max(change.position.ms, life.end_ms)
    phase = Phase(life.state, life.end_ms, at_ms, change.event)
    if life.state == "running":
        # Who ran it is in the phase that the claim opened, the last one.
        phase = replace(
            life.phases[-1],
            end_ms=at_ms,
            ended_by=change.event,
            core=used.core,
            tokens=max(0, used.tokens - life.used.tokens),
            ran_ms=max(0, used.ran_ms - life.used.ran_ms),
        )
    phases = (*life.phases[:-1], phase) if life.state == "running" else (*life.phases, phase)
    state = _TARGETS[change.event] or life.state
    if state == "running":
        opened = Phase("running", at_ms, at_ms, "", change.who, change.attempt or 0)
        phases = (*phases, opened)
    return replace(life, state=state, end_ms=at_ms, phases=phases, used=used)


def _added(used: JobUse, change: Transition) -> JobUse:
    """Return what it has used, with what a change says."""
    if change.event in BEGINNINGS or not change.detail:
        return used
    new = read_use(change.detail)
    return JobUse(
        max(used.tokens, new.tokens),
        max(used.ran_ms, new.ran_ms),
        new.code,
        new.core or used.core,
        new.cost_nano if new.core else used.cost_nano,
        new.currency if new.core else used.currency,
    )
