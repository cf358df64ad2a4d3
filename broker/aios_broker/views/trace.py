"""A run as a trace that Perfetto and chrome://tracing open: JSON in Chrome's trace-event format.

A program is a process of the trace, with its syscalls and, within each, its waits and slices; a
worker is one, too, with what ran in its slots. Times are those of the journal, by Redis' clock: the
stays of a syscall add up to its life, and what its slices used to its row in the ledger.
"""

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from aios_broker.ledger.lives import Life, Stay
from aios_broker.views.lanes import laid_out
from aios_broker.views.words import short_id

US_PER_MS = 1000  # the format counts microseconds
FIRST_WORKER = 1_000_001  # its number as a process of the trace: programs have those below


class TraceEvent(Struct, frozen=True, omit_defaults=True):
    """One event, with the names that the format gives its fields."""

    ph: str  # X: a span. M: the name of a process or a thread
    name: str
    pid: int
    tid: int
    ts: int = 0
    dur: int | None = None
    cat: str = ""
    args: dict[str, str | int | None] = {}


class Trace(Struct, frozen=True):
    """The whole file."""

    traceEvents: Sequence[TraceEvent]  # the format's names
    displayTimeUnit: str = "ms"
    otherData: dict[str, str] = {}


def encoded_trace(lives: Sequence[Life], now_ms: int) -> bytes:
    """Return lives as a trace; what has not ended is drawn up to `now_ms`."""
    events = [*_programs(lives, now_ms), *_workers(lives, now_ms)]
    return msgspec.json.encode(Trace(events, otherData={"made by": "aios export trace"}))


def _programs(lives: Sequence[Life], now_ms: int) -> Iterator[TraceEvent]:
    by_program: dict[str, list[Life]] = {}
    for life in lives:
        one = life.metadata
        by_program.setdefault(f"{one.tenant}/{one.agent} {one.program}", []).append(life)
    for pid, (name, its) in enumerate(sorted(by_program.items()), 1):
        yield _named("process_name", pid, 0, f"program {name}")
        lanes = laid_out([(one.begins_ms, one.begins_ms + one.lasts_ms(now_ms), 1) for one in its])
        for life, (lane,) in zip(its, lanes, strict=True):
            yield _syscall(life, pid, lane, now_ms)
            for stay in life.stays:
                yield _stay(life, stay, pid, lane, now_ms)
        for lane in range(1 + max(lane for (lane,) in lanes)):
            yield _named("thread_name", pid, lane, f"syscalls {lane + 1}")


def _workers(lives: Sequence[Life], now_ms: int) -> Iterator[TraceEvent]:
    by_worker: dict[str, list[tuple[Life, Stay]]] = {}
    for life in lives:
        for stay in life.slices:
            by_worker.setdefault(stay.worker, []).append((life, stay))
    for pid, (worker, its) in enumerate(sorted(by_worker.items()), FIRST_WORKER):
        yield _named("process_name", pid, 0, f"worker {worker}")
        lanes = laid_out(
            [
                (stay.begins_ms, stay.begins_ms + stay.lasts_ms(now_ms), life.metadata.width)
                for life, stay in its
            ]
        )
        for (life, stay), lanes_of in zip(its, lanes, strict=True):
            for lane in lanes_of:
                yield _slice(life, stay, pid, lane, now_ms)
        for lane in range(1 + max(lane for lanes_of in lanes for lane in lanes_of)):
            yield _named("thread_name", pid, lane, f"slot {lane + 1}")


def _syscall(life: Life, pid: int, tid: int, now_ms: int) -> TraceEvent:
    one = life.metadata
    return TraceEvent(
        "X",
        f"{one.tool or one.kind} {short_id(life.job_id)}",
        pid,
        tid,
        life.begins_ms * US_PER_MS,
        life.lasts_ms(now_ms) * US_PER_MS,
        "syscall",
        {
            "syscall": life.job_id,
            "module": life.module,
            "kind": one.kind,
            "tool": one.tool or None,
            "agent": one.agent,
            "tenant": one.tenant,
            "program": one.program,
            "state": life.state,
            "error": life.error_code or None,
            "slices": len(life.slices),
            "beginning": None if life.is_whole else "not in the ledger any more",
        },
    )


def _stay(life: Life, stay: Stay, pid: int, tid: int, now_ms: int) -> TraceEvent:
    name = "slice" if stay.is_slice else stay.state
    return _span(life, stay, (name, "slice" if stay.is_slice else "wait"), (pid, tid), now_ms)


def _slice(life: Life, stay: Stay, pid: int, tid: int, now_ms: int) -> TraceEvent:
    name = f"{life.metadata.agent}/{life.metadata.program} {short_id(life.job_id)}"
    return _span(life, stay, (name, "slot"), (pid, tid), now_ms)


def _span(
    life: Life, stay: Stay, named: tuple[str, str], at: tuple[int, int], now_ms: int
) -> TraceEvent:
    args: dict[str, str | int | None] = {
        "syscall": life.job_id,
        "state": stay.state,
        "ended by": stay.ended_by or "nothing yet",
    }
    if stay.is_slice:
        args |= {"worker": stay.worker, "attempt": stay.attempt, "core": stay.core}
    # Also of what did not run: a syscall that fails while it waits is charged with what is left.
    args |= {"tokens": stay.tokens, "ran_ms": stay.ran_ms, "cost_nano": stay.cost_nano}
    if stay.currency:
        args["currency"] = stay.currency
    begins, lasts = stay.begins_ms * US_PER_MS, stay.lasts_ms(now_ms) * US_PER_MS
    return TraceEvent("X", named[0], *at, begins, lasts, named[1], args)


def _named(what: str, pid: int, tid: int, name: str) -> TraceEvent:
    return TraceEvent("M", what, pid, tid, args={"name": name})
