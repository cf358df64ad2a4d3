"""Read transitions that releases before this one entered: a row each, in table `transition`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncCursor

from aios_broker.ledger.journal import Position, Transition
from aios_broker.ledger.wanted import UNKNOWN, Happening, Wanted
from aios_broker.queues.records import JobMetadata

_COLUMNS = (
    "t.stream_ms, t.stream_seq, t.ordinal, t.module, t.event, t.job_id, t.attempt, t.who,"
    " t.detail, t.at, t.anomaly"
)
_OF_SYSCALL = f"""
    SELECT {_COLUMNS} FROM transition t WHERE t.source = %s AND t.job_id = %s
    ORDER BY t.stream_ms, t.stream_seq, t.ordinal
""".encode()
_AFTER = f"""
    SELECT {_COLUMNS} FROM transition t
    WHERE t.source = %s AND (t.stream_ms, t.stream_seq) > (%s, %s)
    ORDER BY t.stream_ms, t.stream_seq, t.ordinal LIMIT %s
""".encode()
_LAST = f"""
    SELECT {_COLUMNS}, s.agent, s.kind, s.program, s.tenant
    FROM transition t LEFT JOIN syscall s USING (job_id)
    WHERE t.source = %(source)s AND (t.stream_ms, t.stream_seq) > (%(ms)s, %(seq)s)
        AND (%(job_id)s::text IS NULL OR starts_with(t.job_id, %(job_id)s))
        AND (%(agent)s::text IS NULL OR coalesce(s.agent, '?') = %(agent)s)
        AND (%(program)s::text IS NULL OR coalesce(s.program, 'main') = %(program)s)
        AND (%(tenant)s::text IS NULL OR coalesce(s.tenant, 'default') = %(tenant)s)
        AND (%(module)s::text IS NULL OR t.module = %(module)s)
        AND (%(event)s::text IS NULL OR t.event = %(event)s)
    ORDER BY t.stream_ms DESC, t.stream_seq DESC, t.ordinal DESC LIMIT %(limit)s
""".encode()
_TRANSITION_COLUMNS = 11


async def of_syscall(cursor: AsyncCursor, source: str, job_id: str) -> list[Transition]:
    """Return what they entered of a syscall, oldest first."""
    await cursor.execute(_OF_SYSCALL, [source, job_id])
    return [_transition(row) for row in await cursor.fetchall()]


async def after(cursor: AsyncCursor, source: str, behind: Position, limit: int) -> list[Transition]:
    """Return the first `limit` behind a position; the last entry may be cut in two."""
    await cursor.execute(_AFTER, [source, behind.ms, behind.seq, limit])
    return [_transition(row) for row in await cursor.fetchall()]


async def last(
    cursor: AsyncCursor, source: str, wanted: Wanted, behind: Position, limit: int
) -> list[Happening]:
    """Return the last `limit` behind a position that are wanted, newest first."""
    values = {"source": source, "ms": behind.ms, "seq": behind.seq, "limit": limit}
    values |= {name: getattr(wanted, name) for name in Wanted.__slots__}
    await cursor.execute(_LAST, values)
    return [
        Happening(
            _transition(row),
            JobMetadata(*row[_TRANSITION_COLUMNS:])
            if row[_TRANSITION_COLUMNS] is not None
            else UNKNOWN,
        )
        for row in await cursor.fetchall()
    ]


def _transition(row: Sequence[Any]) -> Transition:
    return Transition(Position(row[0], row[1]), *row[2:_TRANSITION_COLUMNS])
