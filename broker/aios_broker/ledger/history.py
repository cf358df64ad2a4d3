"""Read back what happened: transitions from the ledger, and those still in the journal.

The scheduler moves entries from the journal (Redis) to the ledger (Postgres) all the time, commits
there first and trims here afterwards. So the journal is read first: what is in neither reading
does not exist yet.

In the ledger a journal entry is one row, with all its lines. A syscall's row names the entries that
speak of it; everything else is looked for entry by entry, newest first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from psycopg import AsyncCursor

from aios_broker.contract.errors import WaitTimeout
from aios_broker.ledger.journal import (
    Entry,
    Position,
    Transition,
    kept_entry,
    metadata_of,
    module_of_entry,
    read_entry,
)
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import JobMetadata
from aios_broker.redis.connection import Answer, Connection

JOURNAL_PAGE = 20_000  # entries of one reading that follows
ALL_ENTRIES = 100_000  # of the journal; more are there only while Postgres is away
NEWS_ENTRIES = 500  # of one reading that follows one module
FRESH_ENTRIES = 5_000  # of one reading that asks for the last ones
PAGE_ENTRIES = 200  # of one query; under load an entry holds some 100 transitions
# That the first digits of an id may stand for; of more, all is looked through.
MOST_SYSCALLS = 1_000
SEARCH_TIMEOUT_S = 60.0
UNKNOWN = JobMetadata(agent="?", kind="?")
MAX_KNOWN = 200_000  # syscalls whose metadata one reading remembers; about 30 MB

_metadata_decoder = msgspec.json.Decoder(JobMetadata)

_END = Position((1 << 63) - 1, 0)
_COLUMNS = "stream_ms, stream_seq, module, lines, anomalies"
_AFTER = f"""
    SELECT {_COLUMNS} FROM journal_entry
    WHERE source = %(source)s AND (stream_ms, stream_seq) > (%(ms)s, %(seq)s)
    ORDER BY stream_ms, stream_seq LIMIT %(limit)s
""".encode()
# Up to where the journal is entered. Read first: the rows up to there are there.
_MARK = b"SELECT stream_ms, stream_seq FROM journal_position WHERE source = %s"
_NEWS = f"""
    SELECT {_COLUMNS} FROM journal_entry
    WHERE source = %(source)s AND (stream_ms, stream_seq) > (%(ms)s, %(seq)s)
        AND (stream_ms, stream_seq) <= (%(mark_ms)s, %(mark_seq)s) AND module = %(module)s
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
_PLACES = b"SELECT job_id, entries FROM syscall WHERE job_id = ANY(%s)"
_ENTRIES_OF = b"SELECT entries FROM syscall WHERE starts_with(job_id, %s) LIMIT %s"
_METADATA = b"SELECT job_id, agent, kind, program, tenant FROM syscall WHERE job_id = ANY(%s)"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which transitions are asked for; None: any."""

    job_id: str | None = None  # or the first digits of one
    agent: str | None = None
    program: str | None = None
    tenant: str | None = None
    module: str | None = None
    event: str | None = None

    def matches(self, seen: HistoryEvent) -> bool:
        """Whether a transition is among them."""
        metadata = seen.metadata
        return (
            self.may_match(seen.transition)
            and self.agent in (None, metadata.agent)
            and self.program in (None, metadata.program)
            and self.tenant in (None, metadata.tenant)
        )

    def may_match(self, change: Transition) -> bool:
        """Whether a transition is among them, as far as it shows by itself."""
        return (
            change.job_id.startswith(self.job_id or "")
            and self.module in (None, change.module)
            and self.event in (None, change.event)
        )

    @property
    def by_name(self) -> bool:
        """Whether whose syscalls they are matters."""
        return (self.agent, self.program, self.tenant) != (None, None, None)


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """A transition, and what is known of its syscall."""

    transition: Transition
    metadata: JobMetadata

    @property
    def sort_key(self) -> tuple[int, int, int]:
        """Where it stands in the order of all."""
        change = self.transition
        return change.position.ms, change.position.seq, change.ordinal


class KnownMetadata:
    """Metadata of syscalls, as far as they were met; forgotten all at once when they are many."""

    def __init__(self) -> None:
        self._metadata: dict[str, JobMetadata] = {}

    def remember(self, job_id: str, metadata: JobMetadata) -> None:
        """Keep what is known of a syscall."""
        if len(self._metadata) >= MAX_KNOWN:
            self._metadata.clear()
        self._metadata[job_id] = metadata

    def learn(self, changes: Iterable[Transition]) -> None:
        """Keep what submissions say of their syscalls."""
        for change in changes:
            metadata = metadata_of(change)
            if metadata is not None:
                self.remember(change.job_id, metadata)

    def told(self, changes: Iterable[Transition]) -> list[HistoryEvent]:
        """Return transitions with what is known of their syscalls."""
        known = self._metadata
        return [HistoryEvent(each, known.get(each.job_id, UNKNOWN)) for each in changes]

    def missing(self, job_ids: Iterable[str]) -> list[str]:
        """Return those of which nothing is known, once each."""
        return [job_id for job_id in dict.fromkeys(job_ids) if job_id not in self._metadata]


class Archive:
    """Reads the transitions of one deployment; for one event loop."""

    def __init__(self, database: Database, source: str, known: KnownMetadata | None = None) -> None:
        self._database = database
        self._source = source
        self._known = known or KnownMetadata()

    async def history(self, job_id: str) -> list[Transition]:
        """Return all that happened to a syscall, oldest first."""
        async with self._database.transaction() as cursor:
            await cursor.execute(b"SELECT entries FROM syscall WHERE job_id = %s", [job_id])
            row = await cursor.fetchone()
            entries = await self._at(cursor, positions_of(row[0] if row else ""))
        changes = (change for entry in reversed(entries) for change in entry.transitions())
        return [change for change in changes if change.job_id == job_id]

    async def histories(
        self, job_ids: Collection[str], until: Position
    ) -> dict[str, list[Transition]]:
        """Return all that happened to syscalls up to a position, oldest first."""
        found: dict[str, list[Transition]] = {}
        async with self._database.transaction() as cursor:
            await cursor.execute(_PLACES, [list(job_ids)])
            listed = {place for row in await cursor.fetchall() for place in row[1].split()}
        places = sorted(place for place in map(Position.parse, listed) if place <= until)
        for first in range(0, len(places), PAGE_ENTRIES):
            async with self._database.transaction() as cursor:
                entries = await self._at(cursor, places[first : first + PAGE_ENTRIES])
            for entry in reversed(entries):
                for ordinal, (_, job_id, *_) in enumerate(entry.lines()):
                    if job_id in job_ids:
                        found.setdefault(job_id, []).append(entry.transition(ordinal))
        return found

    async def after(self, behind: Position) -> tuple[list[Transition], bool]:
        """Return what came behind a position, oldest first, and whether that is all there is.

        Where it is not, go on behind the last one: its entry is whole.
        """
        values = {"source": self._source, "ms": behind.ms, "seq": behind.seq}
        async with self._database.transaction() as cursor:
            await cursor.execute(_AFTER, values | {"limit": PAGE_ENTRIES})
            entries = [_entry(row) for row in await cursor.fetchall()]
        changes = [change for entry in entries for change in entry.transitions()]
        return changes, len(entries) < PAGE_ENTRIES

    async def news(self, behind: Position, module: str) -> tuple[list[Transition], Position, bool]:
        """Return what came of a module behind a position, up to where, and whether that is all."""
        values = {"source": self._source, "ms": behind.ms, "seq": behind.seq, "module": module}
        async with self._database.transaction() as cursor:
            await cursor.execute(_MARK, [self._source])
            mark = Position(*(await cursor.fetchone() or (0, 0)))
            values |= {"mark_ms": mark.ms, "mark_seq": mark.seq, "limit": PAGE_ENTRIES}
            await cursor.execute(_NEWS, values)
            entries = [_entry(row) for row in await cursor.fetchall()]
        changes = [change for entry in entries for change in entry.transitions()]
        if len(entries) == PAGE_ENTRIES:
            return changes, entries[-1].position, False
        return changes, mark, True

    async def last(self, wanted: Filter, limit: int) -> list[HistoryEvent]:
        """Return the last `limit` transitions that are wanted, oldest first.

        Raises:
            WaitTimeout: too few are found in what can be looked through in time.
        """
        found = await self._of_syscalls(wanted, limit) if wanted.job_id else None
        return await self._search(wanted, limit) if found is None else found

    async def at(self, places: Sequence[Position]) -> list[Entry]:
        """Return the entries at positions, oldest first; those that were swept are missing."""
        async with self._database.transaction() as cursor:
            return (await self._at(cursor, places))[::-1]

    async def told(self, changes: Sequence[Transition]) -> list[HistoryEvent]:
        """Return transitions with what is known of their syscalls."""
        self._known.learn(changes)
        await self.look_up(change.job_id for change in changes)
        return self._known.told(changes)

    async def look_up(self, job_ids: Iterable[str]) -> None:
        """Learn what the ledger knows of syscalls that are not known yet."""
        missing = self._known.missing(job_ids)
        if not missing:
            return
        async with self._database.transaction() as cursor:
            await cursor.execute(_METADATA, [missing])
            for job_id, *metadata in await cursor.fetchall():
                self._known.remember(job_id, JobMetadata(*metadata))

    async def _of_syscalls(self, wanted: Filter, limit: int) -> list[HistoryEvent] | None:
        """Return what is wanted of the syscalls that an id stands for; None: they are too many."""
        async with self._database.transaction() as cursor:
            await cursor.execute(_ENTRIES_OF, [wanted.job_id, MOST_SYSCALLS + 1])
            rows = await cursor.fetchall()
        if len(rows) > MOST_SYSCALLS:
            return None
        places = sorted({place for row in rows for place in positions_of(row[0])}, reverse=True)
        found: list[HistoryEvent] = []
        for first in range(0, len(places), PAGE_ENTRIES):
            async with self._database.transaction() as cursor:
                entries = await self._at(cursor, places[first : first + PAGE_ENTRIES])
            found += await self._matching(entries, wanted, limit - len(found))
            if len(found) >= limit:
                break
        return found[:limit][::-1]

    async def _search(self, wanted: Filter, limit: int) -> list[HistoryEvent]:
        """Look through all entries, newest first, until there are enough."""
        until_s = time.monotonic() + SEARCH_TIMEOUT_S
        found: list[HistoryEvent] = []
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
        self, wanted: Filter, before: Position, most: int
    ) -> tuple[list[Entry], Position | None]:
        """Return entries that may hold what is wanted, newest first, and where to go on."""
        limit = PAGE_ENTRIES if wanted.job_id or wanted.by_name else min(most, PAGE_ENTRIES)
        values = {"source": self._source, "ms": before.ms, "seq": before.seq, "limit": limit}
        values |= {name: getattr(wanted, name) for name in Filter.__slots__}
        async with self._database.transaction() as cursor:
            await cursor.execute(_BEFORE, values)
            entries = [_entry(row) for row in await cursor.fetchall()]
        return entries, entries[-1].position if len(entries) == limit else None

    async def _matching(
        self, entries: Sequence[Entry], wanted: Filter, most: int
    ) -> list[HistoryEvent]:
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


class History:
    """Reads transitions in their order; for one event loop. Without a database: the journal alone.

    Costs one command to Redis and a few queries per call.
    """

    def __init__(self, redis: Connection, keys: Keys, database: Database | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._known = KnownMetadata()
        self._archive = Archive(database, keys.prefix, self._known) if database else None

    async def last(
        self, wanted: Filter, limit: int, journal_entries: int = ALL_ENTRIES
    ) -> list[HistoryEvent]:
        """Return the last `limit` transitions that are wanted, oldest first.

        Of the journal at most its last `journal_entries` are read.
        """
        fresh = await self.fresh(journal_entries)
        told = await self._archive.last(wanted, limit) if self._archive and limit else []
        found = merged(told, [each for each in fresh if wanted.matches(each)])
        return found[-limit:] if limit else []

    async def after(self, position: Position) -> list[HistoryEvent]:
        """Return what came behind a position, oldest first; whole entries, perhaps not all.

        Call it again with the position of the last one to go on.
        """
        fresh = await self._in_journal(position, JOURNAL_PAGE)
        if self._archive is None:
            return fresh
        changes, are_all = await self._archive.after(position)
        told = await self._archive.told(changes)
        return merged(told, fresh) if are_all else told

    async def news(self, behind: Position, module: str) -> tuple[list[HistoryEvent], Position]:
        """Return what came of a module behind a position, oldest first, and up to where that is.

        For who follows one module: of the others nothing is read but their entries' names.
        """
        entries = await self._redis.execute(
            "XRANGE", self._keys.journal, f"({behind}", "+", "COUNT", NEWS_ENTRIES
        )
        fresh = await self._told([each for each in entries if module_of_entry(each) == module])
        end = max(behind, Position.parse(entries[-1][0])) if entries else behind
        if self._archive is None:
            return fresh, end
        changes, mark, are_all = await self._archive.news(behind, module)
        told = await self._archive.told(changes)
        return (merged(told, fresh), max(end, mark)) if are_all else (told, mark)

    async def fresh(self, limit: int = FRESH_ENTRIES) -> list[HistoryEvent]:
        """Return what the last entries of the journal say, oldest first.

        A scheduler that enters them leaves few of them there.
        """
        newest = await self._redis.execute(
            "XREVRANGE", self._keys.journal, "+", "-", "COUNT", limit
        )
        return await self._told(newest[::-1])

    async def end(self) -> Position:
        """Return the position of the newest transition."""
        newest = await self.last(Filter(), 1)
        return newest[-1].transition.position if newest else Position()

    async def _in_journal(self, behind: Position, limit: int) -> list[HistoryEvent]:
        entries = await self._redis.execute(
            "XRANGE", self._keys.journal, f"({behind}", "+", "COUNT", limit
        )
        return await self._told(entries)

    async def _told(self, entries: Sequence[Answer]) -> list[HistoryEvent]:
        changes = [change for entry in entries for change in read_entry(entry)]
        self._known.learn(changes)
        await self._look_up([each.job_id for each in changes])
        return self._known.told(changes)

    async def _look_up(self, job_ids: Sequence[str]) -> None:
        """Learn the metadata of syscalls that were submitted before what was read."""
        wanted = self._known.missing(job_ids)
        asked = (
            self._redis.execute("HGET", self._keys.job(each), "aios_metadata") for each in wanted
        )
        for job_id, data in zip(wanted, await asyncio.gather(*asked), strict=True):
            if data is not None:
                self._known.remember(job_id, _metadata_decoder.decode(data))
        if self._archive is not None:
            await self._archive.look_up(wanted)


def merged(told: Sequence[HistoryEvent], fresh: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    """Return both in order, once each: what was drained between two readings is in both."""
    by_key = {each.sort_key: each for each in (*told, *fresh)}
    return [by_key[key] for key in sorted(by_key)]


def positions_of(listed: str) -> list[Position]:
    """Return the positions of the entries that a syscall's row names."""
    return [Position.parse(place) for place in listed.split()]


def _entry(row: Sequence[Any]) -> Entry:
    ms, seq, module, text, anomalies = row
    return kept_entry(Position(ms, seq), module, text, [int(one) for one in anomalies.split()])
