"""Read whole runs back: every change of the syscalls of a program, or of a span of time.

What the scheduler has not entered yet is read from the journal, first, as the history does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from aios_broker.ledger.history import (
    PAGE_ENTRIES,
    Archive,
    History,
    HistoryEvent,
    merged,
    positions_of,
)
from aios_broker.ledger.journal import BEGINNINGS
from aios_broker.postgres.database import Database

_NEWEST = b"""
    SELECT job_id, entries, submitted_at FROM syscall
    WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
        AND (%(agent)s::text IS NULL OR agent = %(agent)s)
        AND (%(program)s::text IS NULL OR program = %(program)s
             OR (program ~>=~ (%(program)s || '/') AND program ~<~ (%(program)s || '0')))
        AND (NOT %(only_failed)s OR state = 'failed')
        AND (%(since)s::timestamptz IS NULL OR submitted_at >= %(since)s)
        AND (%(until)s::timestamptz IS NULL OR submitted_at < %(until)s)
    ORDER BY submitted_at DESC, job_id DESC LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which syscalls: of a program with all of its tree, and when they were submitted."""

    tenant: str | None = None
    agent: str | None = None
    program: str | None = None  # and those below it: `paper` has `paper/search`
    since: datetime | None = None
    until: datetime | None = None  # not included
    only_failed: bool = False  # of those that the ledger has; what it has not yet is there, too

    def has(self, event: HistoryEvent) -> bool:
        """Tell whether a transition's syscall is one of these, as far as its names say."""
        one = event.metadata
        return (
            self.tenant in (None, one.tenant)
            and self.agent in (None, one.agent)
            and (self.program is None or is_within(one.program, self.program))
        )

    def has_begun(self, event: HistoryEvent) -> bool:
        """Tell whether a transition is the submission of one of these."""
        at = event.transition.at
        return (
            event.transition.event in BEGINNINGS
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and self.has(event)
        )


def is_within(program: str, of: str) -> bool:
    """Tell whether a program is another one, or stands below it."""
    return program == of or program.startswith(f"{of}/")


@dataclass(frozen=True, slots=True)
class Run:
    """All that happened to some syscalls, oldest first; `older`: where those before them end."""

    events: Sequence[HistoryEvent]
    older: datetime | None = None  # None: there are none


class Runs:
    """Reads runs of one deployment; for one event loop."""

    def __init__(self, history: History, database: Database | None, source: str) -> None:
        self._history = history
        self._database = database
        self._archive = Archive(database, source) if database else None

    async def newest(self, wanted: RunFilter, limit: int) -> Run:
        """Return what happened to the `limit` syscalls that were submitted last, of those wanted.

        Costs one command to Redis, and a query for each 200 entries that speak of them.
        """
        fresh = [each for each in await self._history.fresh() if wanted.has(each)]
        entered, older = await self._entered(wanted, limit)
        known = {each.transition.job_id for each in entered}
        known |= {each.transition.job_id for each in fresh if wanted.has_begun(each)}
        fresh = [each for each in fresh if each.transition.job_id in known]
        return Run(merged(entered, fresh), older)

    async def _entered(
        self, wanted: RunFilter, limit: int
    ) -> tuple[list[HistoryEvent], datetime | None]:
        if self._database is None or self._archive is None:
            return [], None
        values = {name: getattr(wanted, name) for name in RunFilter.__slots__}
        async with self._database.transaction() as cursor:
            await cursor.execute(_NEWEST, values | {"limit": limit + 1})
            rows = await cursor.fetchall()
        older = rows[limit - 1][2] if len(rows) > limit else None
        rows = rows[:limit]
        ids = {row[0] for row in rows}
        places = sorted({place for row in rows for place in positions_of(row[1])})
        found: list[HistoryEvent] = []
        for first in range(0, len(places), PAGE_ENTRIES):
            entries = await self._archive.at(places[first : first + PAGE_ENTRIES])
            changes = [one for entry in entries for one in entry.transitions() if one.job_id in ids]
            found += await self._archive.told(changes)
        return found, older
