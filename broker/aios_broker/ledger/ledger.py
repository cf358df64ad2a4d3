"""The ledger: what happened to every syscall, drained from the journal into Postgres.

The position in the journal is kept in Postgres and moves in the same transaction as the rows, so
that each transition is entered exactly once, whoever dies when. The journal in Redis is trimmed
behind it. While Postgres is away the journal waits (bounded by its MAXLEN) and nothing else does.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import msgspec
from psycopg import AsyncCursor
from psycopg.rows import class_row

from aios_broker.contract.transitions import TERMINAL
from aios_broker.ledger.database import Database
from aios_broker.ledger.journal import Books, Position, SyscallRow, Transition, read_entry
from aios_broker.ledger.usage import enter_usage
from aios_broker.queues.connection import Answer, Connection
from aios_broker.queues.keys import Keys

logger = logging.getLogger(__name__)

LOGGED_ANOMALIES = 5  # of one batch; all are marked in the table
BATCH_ENTRIES = 400  # of the journal, per transaction; an entry holds the transitions of one call
BATCH_LINES = 500  # transitions that are folded without a pause: about 3 ms

_COLUMNS = SyscallRow.__struct_fields__
# Rows travel as one JSON text: it costs this process far less than arrays of columns.
_UPSERT = f"""
    INSERT INTO syscall ({", ".join(_COLUMNS)})
    SELECT {", ".join(_COLUMNS)} FROM json_populate_recordset(NULL::syscall, %s::json)
    ON CONFLICT (job_id) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])}
""".encode()
_COPY = """
    COPY transition (source, stream_ms, stream_seq, ordinal, job_id, module, event, attempt,
                     who, detail, at, anomaly) FROM STDIN
"""
_NULL = "\\N"
_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM syscall"


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a journal is drained."""

    position: Position
    entries: int  # since the journal's beginning, those that were dropped undrained included


@dataclass(frozen=True, slots=True)
class Drained:
    """What one drain entered, and what is left in the journal."""

    entries: int = 0
    transitions: int = 0
    anomalies: int = 0
    behind: int = 0  # entries that still wait to be drained


class Ledger:
    """Writes and reads the ledger; for one event loop."""

    def __init__(self, database: Database, keys: Keys | None = None) -> None:
        self._database = database
        self._keys = keys or Keys()

    async def drain(self, redis: Connection, *, limit: int = BATCH_ENTRIES) -> Drained:
        """Enter up to `limit` journal entries, and trim the journal behind them.

        Costs one command to Redis, and nothing else, while the journal is empty.

        Raises:
            DatabaseUnavailable: nothing was entered; the journal stays as it is.
            RedisUnavailable: what was entered counts; trimming follows next time.
        """
        length = await redis.execute("XLEN", self._keys.journal)
        if not length:
            return Drained()
        async with self._database.transaction() as cursor:
            mark = await self._mark(cursor, redis)
            entries = await redis.execute(
                "XRANGE", self._keys.journal, f"({mark.position}", "+", "COUNT", limit
            )
            drained = await _enter(cursor, self._keys.prefix, entries)
            if entries:
                mark = Mark(Position.parse(entries[-1][0]), mark.entries + len(entries))
            await self._move(cursor, mark)
        await self._trim(redis, mark.position)
        return Drained(len(entries), *drained, max(0, length - len(entries)))

    async def forget_snapshots(self) -> None:
        """Drop spilled snapshots of syscalls that have ended: left when a scheduler died midway."""
        async with self._database.transaction() as cursor:
            await cursor.execute(
                "DELETE FROM snapshot USING syscall"
                " WHERE snapshot.job_id = syscall.job_id AND state = ANY(%s)",
                [list(TERMINAL)],
            )

    async def history(self, job_id: str) -> list[Transition]:
        """Return all that happened to a syscall, oldest first."""
        async with self._database.transaction() as cursor:
            await cursor.execute(
                "SELECT stream_ms, stream_seq, ordinal, module, event, job_id, attempt, who,"
                " detail, at, anomaly FROM transition WHERE source = %s AND job_id = %s"
                " ORDER BY stream_ms, stream_seq, ordinal",
                [self._keys.prefix, job_id],
            )
            rows = await cursor.fetchall()
        return [Transition(Position(ms, seq), *rest) for ms, seq, *rest in rows]

    async def recent(self, limit: int = 100) -> list[SyscallRow]:
        """Return the syscalls that were submitted last, newest first."""
        async with self._database.transaction() as cursor:
            rows = cursor.connection.cursor(row_factory=class_row(SyscallRow))
            await rows.execute(f"{_SELECT} ORDER BY submitted_at DESC LIMIT %s".encode(), [limit])
            return await rows.fetchall()

    async def _mark(self, cursor: AsyncCursor, redis: Connection) -> Mark:
        """Return how far the journal is drained, and keep others from draining it meanwhile."""
        source = self._keys.prefix
        await cursor.execute(
            "INSERT INTO journal_position VALUES (%s, 0, 0, 0) ON CONFLICT DO NOTHING", [source]
        )
        await cursor.execute(
            "SELECT stream_ms, stream_seq, entries FROM journal_position"
            " WHERE source = %s FOR UPDATE",
            [source],
        )
        row = await cursor.fetchone()
        assert row is not None
        return await self._checked(Mark(Position(row[0], row[1]), row[2]), redis)

    async def _checked(self, mark: Mark, redis: Connection) -> Mark:
        """Return the mark, in step with the journal; say so when entries were lost."""
        stream = _pairs(await redis.execute("XINFO", "STREAM", self._keys.journal))
        gone = stream[b"entries-added"] - stream[b"length"]
        if stream[b"entries-added"] < mark.entries:  # Redis was emptied, or lost its last second
            return Mark(mark.position, gone)
        if gone <= mark.entries:
            return mark
        if mark.entries:
            logger.warning("%d journal entries were dropped before they were drained (its limit, "
                           "or by hand): the ledger misses them", gone - mark.entries)  # fmt: skip
        return Mark(mark.position, gone)

    async def _move(self, cursor: AsyncCursor, mark: Mark) -> None:
        await cursor.execute(
            "UPDATE journal_position SET stream_ms = %s, stream_seq = %s, entries = %s"
            " WHERE source = %s",
            [mark.position.ms, mark.position.seq, mark.entries, self._keys.prefix],
        )

    async def _trim(self, redis: Connection, position: Position) -> None:
        behind = Position(position.ms, position.seq + 1)  # MINID keeps what it names
        await redis.execute("XTRIM", self._keys.journal, "MINID", str(behind))


async def _enter(cursor: AsyncCursor, source: str, entries: Sequence[Answer]) -> tuple[int, int]:
    """Enter transitions and their syscalls; return how many, and how many are anomalies."""
    await enter_usage(cursor, source, entries)
    read = [transition for entry in entries for transition in read_entry(entry)]
    if not read:
        return 0, 0
    books = Books(await _rows(cursor, {transition.job_id for transition in read}))
    entered: list[Transition] = []
    async with cursor.copy(_COPY) as copy:
        for first in range(0, len(read), BATCH_LINES):
            part = [books.enter(transition) for transition in read[first : first + BATCH_LINES]]
            entered += part
            await copy.write("".join(_copied(source, transition) for transition in part))
            await asyncio.sleep(0)  # the order of the queues comes first
    if books.rows:
        await cursor.execute(_UPSERT, [msgspec.json.encode(list(books.rows.values())).decode()])
    ended = [row.job_id for row in books.rows.values() if row.state in TERMINAL]
    if ended:
        await cursor.execute("DELETE FROM snapshot WHERE job_id = ANY(%s)", [ended])
    anomalies = [transition for transition in entered if transition.anomaly]
    _report(anomalies)
    return len(entered), len(anomalies)


async def _rows(cursor: AsyncCursor, job_ids: Iterable[str]) -> dict[str, SyscallRow]:
    await cursor.execute(f"{_SELECT} WHERE job_id = ANY(%s)".encode(), [list(job_ids)])
    return {row[0]: SyscallRow(*row) for row in await cursor.fetchall()}


def _copied(source: str, transition: Transition) -> str:
    """Return one line of COPY's text format."""
    texts = (source, transition.job_id, transition.module, transition.event, transition.who,
             transition.detail)  # fmt: skip
    if _SPECIAL.search("".join(texts)):
        texts = tuple(text.translate(_ESCAPES) for text in texts)  # type: ignore[assignment]
    source, job_id, module, event, who, detail = texts
    position = transition.position
    attempt = _NULL if transition.attempt is None else transition.attempt
    return (
        f"{source}\t{position.ms}\t{position.seq}\t{transition.ordinal}\t{job_id}\t{module}\t"
        f"{event}\t{attempt}\t{who}\t{detail}\t{_stamp(transition.at)}\t{transition.anomaly}\n"
    )


@lru_cache(maxsize=16)
def _stamp(at: datetime) -> str:
    """Return a time as Postgres reads it; all transitions of an entry share theirs."""
    return at.isoformat()


def _report(anomalies: Sequence[Transition]) -> None:
    for transition in anomalies[:LOGGED_ANOMALIES]:
        logger.warning(
            "journal entry %s, line %d: event %r of syscall %r is no arrow of the transition table",
            transition.position, transition.ordinal, transition.event, transition.job_id,
        )  # fmt: skip
    if len(anomalies) > LOGGED_ANOMALIES:
        logger.warning("and %d more anomalies", len(anomalies) - LOGGED_ANOMALIES)


def _pairs(flat: Sequence[Answer]) -> dict[Answer, Answer]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
