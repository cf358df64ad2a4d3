"""Read the journal: from entries of the Redis stream to transitions, and from those to syscalls.

One entry is written per function call. Its field `q` is the module, `t` the transitions, one per
line, tab-separated: event, job id, attempt, who, detail. The detail is, by event:

    submit, adopt                   the facts, JSON
    yield, hold, reclaim, finish    tokens,ran_ms: what the job has used so far, all in all
    fail, cancel                    the same and the error's code; or the code alone

Field `u` is what the call charged, one line per program: tenant, agent, program, tokens, prompt
tokens, ran_ms, finished, failed. Field `s` is a setting that was changed: `quota`, whose, the
limits, by whom. Each of `t`, `u` and `s` may be missing.

Pure: nothing here talks to a server. What is in the journal is not trusted to be well-formed: a
line that cannot be read or that the transition table forbids is kept and marked, never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from aios_broker.contract.syscall import State
from aios_broker.contract.transitions import TABLE, TERMINAL, Event
from aios_broker.queues.connection import Answer
from aios_broker.queues.records import Facts

MAX_ID_CHARACTERS = 512  # longer ones come from foreign tools and do not fit an index
MAX_TEXT_CHARACTERS = 4096
MAX_ATTEMPT_DIGITS = 9  # of an `integer` column

_UNKNOWN = Facts(agent="?", kind="?")
_EVENTS: dict[str, Event] = {event: event for event in TABLE}
_facts_decoder = msgspec.json.Decoder(Facts)


class Position(Struct, frozen=True, order=True):
    """The id of a journal entry."""

    ms: int = 0
    seq: int = 0

    @classmethod
    def parse(cls, text: bytes | str) -> Position:
        """Read an id such as `1700000000000-0`."""
        ms, _, seq = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(ms), int(seq or 0))

    def __str__(self) -> str:
        """Return the id as Redis writes it."""
        return f"{self.ms}-{self.seq}"

    @property
    def at(self) -> datetime:
        """When the entry was written, by Redis' clock."""
        return datetime.fromtimestamp(self.ms / 1000, tz=UTC)


class Transition(Struct, frozen=True):
    """One change of one job's state."""

    position: Position
    ordinal: int
    module: str
    event: str
    job_id: str
    attempt: int | None
    who: str
    detail: str
    at: datetime
    anomaly: bool = False  # not an arrow of the transition table, or not readable


class SyscallRow(Struct):
    """A syscall as its transitions tell it; the columns of table `syscall`."""

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


class Books:
    """Syscalls under fold: those that a batch of transitions touches."""

    def __init__(self, rows: dict[str, SyscallRow] | None = None) -> None:
        self.rows = rows if rows is not None else {}

    def enter(self, transition: Transition) -> Transition:
        """Apply a transition; return it, marked if it is an anomaly.

        What ended stays ended. Else the journal is believed even where an arrow is missing (the
        entries before were lost): the books follow the queues, not the other way round.
        """
        row = self.rows.get(transition.job_id)
        event = _EVENTS.get(transition.event)
        if event is None:
            return _marked(transition)
        lawful = (row.state if row else None) in TABLE[event][0]
        if row is None:
            row = self.rows[transition.job_id] = _new_row(transition)
        if lawful or row.state not in TERMINAL:
            _apply(row, event, transition)
        return transition if lawful else _marked(transition)


def read_entry(entry: Answer) -> Iterator[Transition]:
    """Yield the transitions of one entry as XRANGE returns it: [id, [field, value, ...]]."""
    stream_id, fields = entry
    position = Position.parse(stream_id)
    at = position.at
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    if b"t" not in pairs:
        return
    module = _text(pairs.get(b"q", b""))[:MAX_ID_CHARACTERS]
    for ordinal, line in enumerate(_text(pairs[b"t"]).split("\n")):
        parts = line.split("\t", 4)
        readable = len(parts) == 5 and (not parts[2] or _is_count(parts[2]))
        if not readable or len(line) > MAX_ID_CHARACTERS:
            parts = _trimmed(parts)
        event, job_id, attempt, who, detail = parts
        yield Transition(
            position, ordinal, module, event, job_id, int(attempt) if attempt else None, who,
            detail, at, not readable,
        )  # fmt: skip


def _trimmed(parts: list[str]) -> list[str]:
    """Return five parts that fit their columns."""
    event, job_id, attempt, who, detail = (parts + [""] * 5)[:5]
    return [
        event[:MAX_ID_CHARACTERS], job_id[:MAX_ID_CHARACTERS],
        attempt if _is_count(attempt) and len(attempt) <= MAX_ATTEMPT_DIGITS else "",
        who[:MAX_ID_CHARACTERS], detail[:MAX_TEXT_CHARACTERS],
    ]  # fmt: skip


def _text(value: bytes) -> str:
    """Return a text that Postgres takes: valid UTF-8, without NUL."""
    text = value.decode(errors="replace")
    return text.replace("\x00", "�") if "\x00" in text else text


def _marked(transition: Transition) -> Transition:
    return msgspec.structs.replace(transition, anomaly=True)


def _new_row(transition: Transition) -> SyscallRow:
    facts = facts_of(transition) or _UNKNOWN
    return SyscallRow(
        job_id=transition.job_id, module=transition.module, agent=facts.agent,
        program=facts.program, tenant=facts.tenant, kind=facts.kind, state="queued",
        submitted_at=transition.at,
    )  # fmt: skip


def facts_of(transition: Transition) -> Facts | None:
    """Return what a submission says of its syscall; None of any other transition."""
    if transition.event not in ("submit", "adopt") or not transition.detail:
        return None
    try:
        facts = _facts_decoder.decode(transition.detail)
    except msgspec.DecodeError:
        return None
    if "\\u" not in transition.detail and len(transition.detail) <= MAX_ID_CHARACTERS:
        return facts
    texts = {
        name: _text(value.encode(errors="replace"))[:MAX_ID_CHARACTERS]
        for name, value in msgspec.structs.asdict(facts).items()
        if isinstance(value, str)
    }
    return msgspec.structs.replace(facts, **texts)


def _apply(row: SyscallRow, event: Event, transition: Transition) -> None:
    target: State = TABLE[event][1]
    if row.state == "running" and event != "claim":
        row.slices += 1
    row.state = target
    match event:
        case "submit" | "adopt":
            _begin(row, transition)
        case "claim":
            row.attempts = max(row.attempts, transition.attempt or 0)
            row.started_at = row.started_at or transition.at
            row.worker = transition.who
        case "yield":
            row.suspensions += 1
        case _:
            pass  # state and use say it all
    tokens, ran_ms, code = read_use(transition.detail) if event not in ("submit", "adopt") else _NIL
    row.tokens, row.ran_ms = max(row.tokens, tokens), max(row.ran_ms, ran_ms)
    if target in TERMINAL:
        row.ended_at = transition.at
        row.error_code = None if target == "finished" else code or target


_NIL: tuple[int, int, str] = (0, 0, "")


def _begin(row: SyscallRow, transition: Transition) -> None:
    """Begin a life: of a new syscall, or of one that has ended and comes again under its id.

    A stock tool that requeues (`adopt`) goes on with the job's counters, a new `submit` does not.
    """
    facts = facts_of(transition)
    if facts is not None:
        row.agent, row.program, row.tenant, row.kind = (
            facts.agent, facts.program, facts.tenant, facts.kind,
        )  # fmt: skip
    if row.ended_at is None:
        return
    row.submitted_at = transition.at
    row.started_at = row.ended_at = row.error_code = None
    if transition.event == "submit":
        row.attempts = row.slices = row.suspensions = row.tokens = row.ran_ms = 0


def read_use(detail: str) -> tuple[int, int, str]:
    """Return tokens, ran_ms and an error's code: those that the detail has, else 0 and ''."""
    parts = detail.split(",", 2)
    if len(parts) >= 2 and _is_count(parts[0]) and _is_count(parts[1]):
        return int(parts[0]), int(parts[1]), parts[2] if len(parts) == 3 else ""
    return 0, 0, detail


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
