"""Read transitions back from Postgres, in their order, wherever they stand.

A journal entry is one row, with all its lines. A syscall's row names the entries that speak of it;
everything else is looked for entry by entry, newest first. What releases before this one entered
is a row per transition (`ledger/first_rows.py`); schedulers of both may take turns, so both tables
are read and put in order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import AsyncCursor

from aios_broker.contract.errors import WaitTimeout
from aios_broker.ledger import first_rows
from aios_broker.ledger.journal import Entry, Position, Transition, kept_entry, metadata_of
from aios_broker.ledger.wanted import Happening, KnownMetadata, Wanted
from aios_broker.postgres.database import Database
from aios_broker.queues.records import JobMetadata

PAGE_ENTRIES = 200  # of one query; under load an entry holds some 100 transitions
PAGE_ROWS = 20_000  # of one query of single transitions; an entry has fewer by far
MOST_SYSCALLS = (
    1_000  # that the first digits of an id may stand for; of more, all is looked through
)
SEARCH_TIMEOUT_S = 60.0

_END = Position((1 << 63) - 1, 0)
_COLUMNS = "stream_ms, stream_seq, module, lines, anomalies"
_AFTER = f"""
    SELECT {_COLUMNS} FROM journal_entry
    WHERE source = %(source)s AND (stream_ms, stream_seq) > (%(ms)s, %(seq)s)
    ORDER BY stream_ms, stream_seq LIMIT %(limit)s
""".encode()
# What the filters leave may hold a line that is wanted; what they drop does not.
_BEFORE = f"""
    SELECT {_COLUMNS} FROM journal_entry
    WHERE source = %(source)s AND (stream_ms, stream_seq) < (%(ms)s, %(seq)s)
        AND (%(module)s::text IS NULL OR module = %(module)s)
        AND (%(event)s::text IS NULL OR starts_with(lines, %(event)s || E'\\t')
             OR strpos(lines, E'\\n' || %(event)s || E'\\t') > 0)
        AND (%(agent)s::text IS NULL OR strpos(names, E'\\n' || %(agent)s || E'\\n') > 0
             OR strpos(names, E'\\n?\\n') > 0)
        AND (%(program)s::text IS NULL OR strpos(names, E'\\n' || %(program)s || E'\\n') > 0
             OR strpos(names, E'\\n?\\n') > 0)
        AND (%(tenant)s::text IS NULL OR strpos(names, E'\\n' || %(tenant)s || E'\\n') > 0
             OR strpos(names, E'\\n?\\n') > 0)
    ORDER BY stream_ms DESC, stream_seq DESC LIMIT %(limit)s
""".encode()
_AT = f"""
    SELECT {_COLUMNS} FROM journal_entry
    JOIN unnest(%s::bigint[], %s::bigint[]) AS place (stream_ms, stream_seq)
        USING (stream_ms, stream_seq)
    WHERE source = %s ORDER BY stream_ms DESC, stream_seq DESC
""".encode()
_ENTRIES_OF = b"SELECT entries FROM syscall WHERE starts_with(job_id, %s) LIMIT %s"
_FACTS = b"SELECT job_id, agent, kind, program, tenant FROM syscall WHERE job_id = ANY(%s)"


class Archive:
    """Reads the transitions of one deployment; for one event loop."""

    def __init__(self, database: Database, source: str, known: KnownMetadata | None = None) -> None:
        self._database = database
        self._source = source
        self._known = known or KnownMetadata()

    async def history(self, job_id: str) -> list[Transition]:
        """Return all that happened to a syscall, oldest first."""
        async with self._database.transaction() as cursor:
            changes = await first_rows.of_syscall(cursor, self._source, job_id)
            await cursor.execute(b"SELECT entries FROM syscall WHERE job_id = %s", [job_id])
            for row in await cursor.fetchall():
                entries = await self._at(cursor, _positions(row[0]))
                changes += [c for e in entries for c in e.transitions() if c.job_id == job_id]
        return sorted(changes, key=lambda change: (change.position, change.ordinal))

    async def after(self, behind: Position) -> tuple[list[Transition], bool]:
        """Return what came behind a position, oldest first, and whether that is all there is.

        Where it is not, go on behind the last one: its entry is whole.
        """
        values = {"source": self._source, "ms": behind.ms, "seq": behind.seq}
        async with self._database.transaction() as cursor:
            rows = await first_rows.after(cursor, self._source, behind, PAGE_ROWS)
            await cursor.execute(_AFTER, values | {"limit": PAGE_ENTRIES})
            entries = [_entry(row) for row in await cursor.fetchall()]
        whole_to = _END
        if len(rows) == PAGE_ROWS:  # there may be more of them: of the last entry, and behind it
            last = rows[-1].position
            whole_to = max((row.position for row in rows if row.position < last), default=behind)
        if len(entries) == PAGE_ENTRIES:
            whole_to = min(whole_to, entries[-1].position)
        changes = [*rows, *(change for entry in entries for change in entry.transitions())]
        changes.sort(key=lambda change: (change.position, change.ordinal))
        return [each for each in changes if each.position <= whole_to], whole_to == _END

    async def last(self, wanted: Wanted, limit: int) -> list[Happening]:
        """Return the last `limit` transitions that are wanted, oldest first.

        Raises:
            WaitTimeout: too few are found in what can be looked through in time.
        """
        found = await self._of_syscalls(wanted, limit) if wanted.job_id else None
        if found is None:
            found = await self._search(wanted, limit)
        behind = found[0].transition.position if len(found) >= limit else Position()
        async with self._database.transaction() as cursor:
            older = await first_rows.last(cursor, self._source, wanted, behind, limit)
        return sorted([*older, *found], key=lambda each: each.place)[-limit:]

    async def told(self, changes: Sequence[Transition]) -> list[Happening]:
        """Return transitions with what is known of their syscalls."""
        for change in changes:
            metadata = metadata_of(change)
            if metadata is not None:
                self._known.remember(change.job_id, metadata)
        await self.look_up(change.job_id for change in changes)
        return [Happening(change, self._known.of(change.job_id)) for change in changes]

    async def look_up(self, job_ids: Iterable[str]) -> None:
        """Learn what the ledger knows of syscalls that are not known yet."""
        missing = self._known.missing(job_ids)
        if not missing:
            return
        async with self._database.transaction() as cursor:
            await cursor.execute(_FACTS, [missing])
            for job_id, *metadata in await cursor.fetchall():
                self._known.remember(job_id, JobMetadata(*metadata))

    async def _of_syscalls(self, wanted: Wanted, limit: int) -> list[Happening] | None:
        """Return what is wanted of the syscalls that an id stands for; None: they are too many."""
        async with self._database.transaction() as cursor:
            await cursor.execute(_ENTRIES_OF, [wanted.job_id, MOST_SYSCALLS + 1])
            rows = await cursor.fetchall()
        if len(rows) > MOST_SYSCALLS:
            return None
        places = sorted({place for row in rows for place in _positions(row[0])}, reverse=True)
        found: list[Happening] = []
        for first in range(0, len(places), PAGE_ENTRIES):
            async with self._database.transaction() as cursor:
                entries = await self._at(cursor, places[first : first + PAGE_ENTRIES])
            found += await self._matching(entries, wanted, limit - len(found))
            if len(found) >= limit:
                break
        return found[:limit][::-1]

    async def _search(self, wanted: Wanted, limit: int) -> list[Happening]:
        """Look through all entries, newest first, until there are enough."""
        until_s = time.monotonic() + SEARCH_TIMEOUT_S
        found: list[Happening] = []
        before: Position | None = _END
        while before is not None and len(found) < limit:
            entries, before = await self._page(wanted, before, limit - len(found))
            found += await self._matching(entries, wanted, limit - len(found))
            if before is not None and len(found) < limit and time.monotonic() > until_s:
                raise WaitTimeout(
                    f"{SEARCH_TIMEOUT_S:g} s were enough to look back to {before.at:%Y-%m-%d %H:%M}"
                    f" UTC: {len(found)} of {limit} changes were found",
                    remedy="ask for fewer, or by a syscall's id",
                )
        return found[:limit][::-1]

    async def _page(
        self, wanted: Wanted, before: Position, most: int
    ) -> tuple[list[Entry], Position | None]:
        """Return entries that may hold what is wanted, newest first, and where to go on."""
        limit = PAGE_ENTRIES if wanted.job_id or wanted.by_name else min(most, PAGE_ENTRIES)
        values = {"source": self._source, "ms": before.ms, "seq": before.seq, "limit": limit}
        values |= {name: getattr(wanted, name) for name in Wanted.__slots__}
        async with self._database.transaction() as cursor:
            await cursor.execute(_BEFORE, values)
            entries = [_entry(row) for row in await cursor.fetchall()]
        return entries, entries[-1].position if len(entries) == limit else None

    async def _matching(
        self, entries: Sequence[Entry], wanted: Wanted, most: int
    ) -> list[Happening]:
        """Return what is wanted of entries, newest first; `most` where more would be dropped."""
        changes = [
            change
            for entry in entries
            for change in reversed(list(entry.transitions()))
            if wanted.may_match(change)
        ]
        if not wanted.by_name:
            changes = changes[:most]
        return [each for each in await self.told(changes) if wanted.matches(each)]

    async def _at(self, cursor: AsyncCursor, places: Sequence[Position]) -> list[Entry]:
        """Return the entries at positions, newest first; those that were swept are missing."""
        if not places:
            return []
        halves = [place.ms for place in places], [place.seq for place in places]
        await cursor.execute(_AT, [*halves, self._source])
        return [_entry(row) for row in await cursor.fetchall()]


def _positions(listed: str) -> list[Position]:
    return [Position.parse(place) for place in listed.split()]


def _entry(row: Sequence[Any]) -> Entry:
    ms, seq, module, text, anomalies = row
    return kept_entry(Position(ms, seq), module, text, [int(one) for one in anomalies.split()])
