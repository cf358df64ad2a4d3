"""Forget what the ledger has kept for long enough, a little at a time.

Journal entries go by their age; syscalls when they ended so long ago. One that has not ended stays,
whatever its age; what it did before then is forgotten. Usage and changes of quotas are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from aios_broker.postgres.database import Database

# Of one transaction: some 30 ms of Postgres each.
BATCH_ENTRIES = 500
BATCH_ROWS = 2_000
DAY_MS = 24 * 3600 * 1000

_ENTRIES = b"""
    DELETE FROM journal_entry WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM journal_entry WHERE source = %s AND stream_ms < %s
        ORDER BY stream_ms, stream_seq LIMIT %s))
"""
_FIRST_ROWS = b"""
    DELETE FROM transition WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM transition WHERE source = %s AND stream_ms < %s
        ORDER BY stream_ms, stream_seq, ordinal LIMIT %s))
"""
# Asked twice: a syscall that comes again under its id meanwhile is not deleted.
_SYSCALLS = b"""
    DELETE FROM syscall WHERE ended_at < %(cutoff)s AND ctid = ANY(ARRAY(
        SELECT ctid FROM syscall WHERE submitted_at < %(cutoff)s AND ended_at < %(cutoff)s
        ORDER BY submitted_at LIMIT %(limit)s))
"""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep forgot, and whether there is more of it."""

    entries: int = 0
    transitions: int = 0  # rows of releases before this one
    syscalls: int = 0
    more: bool = False


class Retention:
    """Keeps one deployment's history for so many days."""

    def __init__(self, database: Database, source: str, keep_days: int) -> None:
        self._database = database
        self._source = source
        self._keep_days = keep_days

    async def sweep(self, now_ms: int) -> Swept:
        """Forget one batch of what is too old at a time by Redis' clock.

        Raises:
            DatabaseUnavailable: nothing was forgotten.
        """
        cutoff_ms = now_ms - self._keep_days * DAY_MS
        cutoff = datetime.fromtimestamp(cutoff_ms / 1000, tz=UTC)
        async with self._database.transaction() as cursor:
            await cursor.execute(_ENTRIES, [self._source, cutoff_ms, BATCH_ENTRIES])
            entries = cursor.rowcount
            await cursor.execute(_FIRST_ROWS, [self._source, cutoff_ms, BATCH_ROWS])
            transitions = cursor.rowcount
            await cursor.execute(_SYSCALLS, {"cutoff": cutoff, "limit": BATCH_ROWS})
            syscalls = cursor.rowcount
        more = entries == BATCH_ENTRIES or BATCH_ROWS in (transitions, syscalls)
        return Swept(entries, transitions, syscalls, more)
