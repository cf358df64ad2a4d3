"""Follow the ledger and tell what has ended in spans: each syscall once, as far as that can be.

How far it was told stands in the database, beside the runs of programs that are not over. It moves
when the collector has taken the spans: after a crash some are sent again, with the same ids, and
none is left out. Whoever holds the row tells; a second process stands by.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from psycopg import AsyncCursor

from aios_broker.contract.errors import Unavailable
from aios_broker.contract.transitions import TERMINAL
from aios_broker.ledger.history import Archive, HistoryEvent, KnownMetadata
from aios_broker.ledger.journal import Position, Transition, metadata_of
from aios_broker.ledger.lives import Life, lives_of
from aios_broker.postgres.database import Database
from aios_broker.queues.records import JobMetadata
from aios_broker.traces.spans import ProgramRun, Span, place_of, spans_of

logger = logging.getLogger(__name__)

QUIET_S = 30.0  # of a program, after which its run is over, unless some of its syscalls live
LONGEST_QUIET_S = 3_600.0  # ... or even then: one may be parked for days
MOST_RUNS = 10_000  # that are not over; beyond it the quietest end
LONGEST_BACK_MS = 3_600_000  # behind the ledger; it goes on at half of that, and leaves some out
STEP_LIMIT_S = 600.0  # of one page, all its sendings included
GIVE_UP_S = 300.0  # a page that the collector refuses so long is left out

ENDINGS = ("finish", "fail", "cancel")
Program = tuple[str, str, str]  # tenant, agent, name

_BEGIN = b"""
    INSERT INTO trace_position
    SELECT %(source)s, coalesce(max(stream_ms), 0), coalesce(max(stream_seq), 0), '[]'
    FROM journal_position WHERE source = %(source)s ON CONFLICT DO NOTHING
"""
_HOLD = b"""
    SELECT stream_ms, stream_seq, runs,
        (SELECT stream_ms FROM journal_position newest WHERE newest.source = told.source)
    FROM trace_position told WHERE source = %s FOR UPDATE SKIP LOCKED
"""
_MOVE = b"UPDATE trace_position SET stream_ms = %s, stream_seq = %s, runs = %s WHERE source = %s"
_LIVE = b"SELECT job_id, tenant, agent, program FROM syscall WHERE NOT state = ANY(%s)"
_runs_decoder = msgspec.json.Decoder(list[ProgramRun])


@dataclass(slots=True)
class TraceStats:
    """Counted since the process began."""

    syscalls: int = 0
    spans: int = 0
    refused: int = 0  # sendings that the collector did not take
    left_out: int = 0  # pages
    behind_ms: int = 0  # the ledger's newest entry

    def metrics(self) -> Iterable[Metric]:
        """Yield them; called from another thread."""
        for name, text, value in (
            ("syscalls", "Syscalls that were told.", self.syscalls),
            ("spans", "Spans that the collector took.", self.spans),
            ("refused", "Sendings that the collector did not take.", self.refused),
            ("left_out", "Pages of the ledger that it never took.", self.left_out),
        ):
            yield CounterMetricFamily(f"aios_traces_{name}", text, value=float(value))
        behind_s = self.behind_ms / 1000
        yield GaugeMetricFamily("aios_traces_behind_seconds", "Behind the ledger.", value=behind_s)


@dataclass(slots=True)
class _Runs:
    """The runs of programs that are not over."""

    open: dict[Program, ProgramRun] = field(default_factory=dict)
    live: dict[str, Program] = field(default_factory=dict)  # syscalls that have not ended, by id
    heard_s: dict[Program, float] = field(default_factory=dict)  # by this process's own clock

    def of(self, life: Life, now_s: float) -> ProgramRun:
        """Return the run that a syscall is of; it is heard of now."""
        program = program_of(life.metadata)
        if program not in self.open:
            self.open[program] = ProgramRun.begun_by(life)
        self.heard_s[program] = now_s
        return self.open[program]

    def close(self, now_s: float) -> list[ProgramRun]:
        """Take out those that are over."""
        living = Counter(self.live.values())
        quiet = sorted(self.open, key=lambda program: self.heard_s.get(program, now_s))
        excess = len(quiet) - MOST_RUNS
        over = []
        for place, program in enumerate(quiet):
            quiet_s = now_s - self.heard_s.setdefault(program, now_s)
            limit_s = LONGEST_QUIET_S if living[program] else QUIET_S
            if place < excess or quiet_s > limit_s:
                over.append(self.open.pop(program))
                del self.heard_s[program]
        return over


def program_of(metadata: JobMetadata) -> Program:
    """Return whose a syscall is."""
    return metadata.tenant, metadata.agent, metadata.program


class Follower:
    """Tells one deployment's ledger; for one event loop."""

    def __init__(
        self,
        database_url: str,
        source: str,
        send: Callable[[Sequence[Span]], bool],
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Follow the ledger of `source`, a key prefix. `send` blocks; False: nothing was taken."""
        self.stats = TraceStats()
        self._source = source
        self._holding = Database(database_url, name="aios-traces", limit_s=STEP_LIMIT_S)
        self._reading = Database(database_url, name="aios-traces")
        self._known = KnownMetadata()
        self._archive = Archive(self._reading, source, self._known)
        self._send = send
        self._now_s = now_s
        self._runs: _Runs | None = None  # None: another process tells, or nothing is read yet
        self._refused_since_s: float | None = None

    async def aclose(self) -> None:
        """Close both connections."""
        await self._holding.aclose()
        await self._reading.aclose()

    async def step(self) -> bool:
        """Tell one page of the ledger; return whether there is more at once.

        Raises:
            DatabaseUnavailable: nothing of it counts as told.
            Unavailable: the collector did not take it: once more, later.
        """
        if self._runs is None:
            async with self._reading.transaction() as cursor:
                await cursor.execute(_BEGIN, {"source": self._source})
        async with self._holding.transaction() as cursor:
            await cursor.execute(_HOLD, [self._source])
            row = await cursor.fetchone()
            if row is None:
                self._runs = None
                return False
            behind, newest_ms = Position(row[0], row[1]), row[3] or 0
            if behind.ms and newest_ms - behind.ms > LONGEST_BACK_MS:
                behind = Position(newest_ms - LONGEST_BACK_MS // 2)
                logger.warning("what ended before %s is told in no trace", behind.at)
                self._runs = None  # what began or ended meanwhile is not known
            async with self._kept(row[2]) as runs:
                position, is_more = await self._tell(behind, runs)
                self.stats.behind_ms = max(0, newest_ms - position.ms) if is_more else 0
                kept = msgspec.json.encode(list(runs.open.values())).decode()
                moved = (position.ms, position.seq, kept)
                if moved != row[:3]:
                    await cursor.execute(_MOVE, [*moved, self._source])
            return is_more

    @asynccontextmanager
    async def _kept(self, saved: str) -> AsyncIterator[_Runs]:
        """Give the runs as they stand in the database; what fails meanwhile changes nothing."""
        runs = self._runs
        self._runs = None
        if runs is None:
            runs = _Runs()
            opened = _runs_decoder.decode(saved)
            runs.open = {(run.tenant, run.agent, run.program): run for run in opened}
            async with self._reading.transaction() as cursor:
                runs.live = await _living(cursor)
        yield runs
        self._runs = runs

    async def _tell(self, behind: Position, runs: _Runs) -> tuple[Position, bool]:
        """Tell what came behind a position; return up to where, and whether there is more."""
        changes, are_all = await self._archive.after(behind)
        spans: list[Span] = []
        syscalls = 0
        if changes:
            for number, life in await self._ended(changes, runs):
                syscalls += 1
                spans += self._spans(number, life, runs)
        spans += [run.span for run in runs.close(self._now_s())]
        position = changes[-1].position if changes else behind
        if spans:
            await self._deliver(spans, position)
            self.stats.syscalls += syscalls
        return position, not are_all

    async def _ended(self, changes: Sequence[Transition], runs: _Runs) -> list[tuple[int, Life]]:
        """Return the lives that end in a page, each with which one of its id it is."""
        told = await self._archive.told(changes)
        ended: dict[str, JobMetadata] = {}
        for event in told:
            job_id = event.transition.job_id
            if event.transition.event in ENDINGS:
                ended[job_id] = event.metadata
                runs.live.pop(job_id, None)
            else:
                runs.live[job_id] = program_of(event.metadata)
        histories = await self._archive.histories(ended.keys(), changes[-1].position)
        first = changes[0].position
        return [
            (number, life)
            for job_id, metadata in ended.items()
            for number, life in enumerate(lives_of(_events(histories.get(job_id, ()), metadata)))
            # One that ended before was told before.
            if life.ends_ms is not None and life.ends_ms >= first.ms
        ]

    def _spans(self, number: int, life: Life, runs: _Runs) -> list[Span]:
        place = place_of(life)
        if place is None:
            run = runs.of(life, self._now_s())
            run.add(life)
            place = run.root
        return list(spans_of(life, place, number)) if place.is_sampled else []

    async def _deliver(self, spans: Sequence[Span], position: Position) -> None:
        """Send spans; what is never taken is left out, so that what follows it is told."""
        if await asyncio.to_thread(self._send, spans):
            self._refused_since_s = None
            self.stats.spans += len(spans)
            return
        self.stats.refused += 1
        now_s = self._now_s()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        if now_s - self._refused_since_s < GIVE_UP_S:
            raise Unavailable("the collector does not take the traces", retry_after_s=1.0)
        logger.warning("%d spans up to %s are left out: never taken", len(spans), position)
        self._refused_since_s = None
        self.stats.left_out += 1


def _events(changes: Iterable[Transition], metadata: JobMetadata) -> Iterator[HistoryEvent]:
    """Yield what happened to a syscall; `metadata`: of one whose submission is not there."""
    for change in changes:
        metadata = metadata_of(change) or metadata
        yield HistoryEvent(change, metadata)


async def _living(cursor: AsyncCursor) -> dict[str, Program]:
    await cursor.execute(_LIVE, [list(TERMINAL)])
    rows = await cursor.fetchall()
    return {job_id: (tenant, agent, program) for job_id, tenant, agent, program in rows}
