"""Fold transitions into syscalls: what each one came to.

Pure. What ended stays ended. Else the journal is believed even where an arrow of the transition
table is missing (the entries before were lost): the ledger follows the queues, not the other way
round.
"""

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from aios_broker.contract.syscall import State
from aios_broker.contract.transitions import TABLE, TERMINAL, Event
from aios_broker.ledger.journal import Entry, JobUse, read_metadata, read_use
from aios_broker.ledger.tables import syscall

NOBODY = "?"  # the agent and the kind of a syscall whose beginning is not known


class SyscallRow(Struct, gc=False):
    """A syscall as its transitions tell it: the table's columns in their order, and one more."""

    job_id: str
    module: str
    agent: str
    program: str
    tenant: str
    kind: str
    state: str
    submitted_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int = 0
    slices: int = 0
    suspensions: int = 0
    tokens: int = 0
    ran_ms: int = 0
    error_code: str | None = None
    worker: str = ""
    core: str = ""
    cost_nano: int = 0
    currency: str = ""
    entries: str = ""  # positions of the journal entries that speak of it; under fold: new ones
    last_entry: str = ""  # under fold alone: the last of them


COLUMNS = tuple(syscall.c.keys())


class Entered(Struct, frozen=True):
    """What an entry turned out to be when it was entered."""

    anomalies: list[int]  # ordinals
    names: str  # of all agents, programs and tenants whose syscalls it speaks of, one per line


def fold(rows: dict[str, SyscallRow], entry: Entry) -> Entered:
    """Apply an entry's transitions to the syscalls under fold, about 1 us each."""
    at, place = entry.position.at, str(entry.position)
    known, arrows, unreadable = rows.get, _ARROWS.get, entry.anomalies
    anomalies: list[int] = []
    touched: list[SyscallRow] = []
    names: set[str] = set()
    for ordinal, (event, job_id, attempt, who, detail) in enumerate(entry.lines()):
        row = known(job_id)
        state = None if row is None else row.state
        sources, target, step = arrows(event, _NO_ARROW)
        lawful = state in sources
        if step is not None:
            if row is None:
                row = rows[job_id] = SyscallRow(
                    job_id, entry.module, NOBODY, "main", "default", NOBODY, "queued", at
                )
            if lawful or state not in TERMINAL:
                if state == "running" and target not in _STILL_RUNNING:
                    row.slices += 1
                if target is not None:
                    row.state = target
                step(row, at, attempt, who, detail)
        elif row is None:
            names.add(NOBODY)
        if row is not None and row.last_entry is not place:
            row.last_entry = place
            row.entries = f"{row.entries} {place}" if row.entries else place
            touched.append(row)
        if not lawful or ordinal in unreadable:
            anomalies.append(ordinal)
    about = {(row.agent, row.program, row.tenant) for row in touched}
    names.update(name for one in about for name in one)
    return Entered(anomalies, "\n".join(["", *names, ""]))


# What a change of state means for the row, beside the state itself.


def _submitted(row: SyscallRow, at: datetime, _attempt: str, _who: str, detail: str) -> None:
    """Begin a life: of a new syscall, or of one that has ended and comes again under its id."""
    if row.ended_at is not None:
        row.attempts = row.slices = row.suspensions = row.tokens = row.ran_ms = 0
        row.core, row.cost_nano, row.currency = "", 0, ""
    _adopted(row, at, _attempt, _who, detail)


def _adopted(row: SyscallRow, at: datetime, _attempt: str, _who: str, detail: str) -> None:
    """Begin a life, as above; a stock tool that requeues goes on with the job's counters."""
    metadata = read_metadata(detail)
    if metadata is not None:
        row.agent, row.program, row.tenant, row.kind = (
            metadata.agent,
            metadata.program,
            metadata.tenant,
            metadata.kind,
        )
    if row.ended_at is not None:
        row.submitted_at = at
        row.started_at = row.ended_at = row.error_code = None


def _claimed(row: SyscallRow, at: datetime, attempt: str, who: str, detail: str) -> None:
    if attempt:
        row.attempts = max(row.attempts, int(attempt))
    if row.started_at is None:
        row.started_at = at
    row.worker = who
    if detail:
        _used(row, at, attempt, who, detail)


def _suspended(row: SyscallRow, at: datetime, attempt: str, who: str, detail: str) -> None:
    row.suspensions += 1
    _used(row, at, attempt, who, detail)


def _used(row: SyscallRow, _at: datetime, _attempt: str, _who: str, detail: str) -> None:
    _take_in(row, read_use(detail))


def _moved(_row: SyscallRow, _at: datetime, _attempt: str, _who: str, _detail: str) -> None:
    """Change nothing: it stands in another queue."""


def _ended(row: SyscallRow, at: datetime, _attempt: str, _who: str, detail: str) -> None:
    used = read_use(detail)
    _take_in(row, used)
    row.ended_at = at
    row.error_code = None if row.state == "finished" else used.code or row.state


def _take_in(row: SyscallRow, used: JobUse) -> None:
    if used.tokens > row.tokens:
        row.tokens = used.tokens
    if used.ran_ms > row.ran_ms:
        row.ran_ms = used.ran_ms
    if used.core:
        row.core, row.currency = used.core, used.currency
        row.cost_nano = used.cost_nano


_Step = Callable[[SyscallRow, datetime, str, str, str], None]
_STEPS: dict[Event, _Step] = {
    "submit": _submitted,
    "adopt": _adopted,
    "claim": _claimed,
    "move": _moved,
    "suspend": _suspended,
    "hold": _used,
    "reclaim": _used,
    "release": _used,
    "park": _used,
    "unpark": _used,
    "finish": _ended,
    "fail": _ended,
    "cancel": _ended,
}
_Arrow = tuple[tuple[State | None, ...], State | None, _Step | None]
_ARROWS: dict[str, _Arrow] = {
    event: (sources, target, _STEPS[event]) for event, (sources, target) in TABLE.items()
}
_STILL_RUNNING = (None, "running")
_NO_ARROW: _Arrow = ((), "queued", None)  # an event of a newer release, or a line that is none
