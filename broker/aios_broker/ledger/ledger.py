"""The ledger: what happened to every syscall, drained from the journal into Postgres.

The position in the journal is kept in Postgres and moves in the same transaction as the rows, so
that each transition is entered exactly once, whoever dies when. The journal in Redis is trimmed
behind it. While Postgres is away the journal waits (bounded by its MAXLEN) and nothing else does.

Usage: the journal carries the very figures that the counters in Redis are raised by, in the same
step. Here they are added up, in that transaction too: each counts once.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import Struct
from psycopg import AsyncCursor
from psycopg.rows import class_row

from aios_broker.contract.names import Module
from aios_broker.contract.transitions import TERMINAL
from aios_broker.ledger.fold import COLUMNS, SyscallRow
from aios_broker.ledger.history import Archive
from aios_broker.ledger.journal import MAX_ID_CHARACTERS, Position, Transition, is_count, text_of
from aios_broker.ledger.tables import quota_change, usage
from aios_broker.ledger.writer import Writer, forget_snapshots
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import Spent, Subject
from aios_broker.redis.connection import Answer, Connection

_NAMES = 5  # of a line: tenant, agent, program, core, currency
_SETTING_PARTS = 4  # quota, subject, limits, who
_MAX_DIGITS = 15  # of a count: sums of many fit their columns

_COLUMNS = ", ".join(usage.c.keys())
_KEY = ", ".join(usage.primary_key.columns.keys())
COUNTS = tuple(column.name for column in usage.c if not column.primary_key)
_ADD = f"""
    INSERT INTO usage AS old ({_COLUMNS})
    SELECT {_COLUMNS} FROM json_populate_recordset(NULL::usage, %s::json)
    ON CONFLICT ({_KEY}) DO UPDATE SET
        {", ".join(f"{name} = old.{name} + excluded.{name}" for name in COUNTS)}
""".encode()
_ENTER_CHANGES = b"""
    INSERT INTO quota_change
    SELECT * FROM json_populate_recordset(NULL::quota_change, %s::json) ON CONFLICT DO NOTHING
"""
# What is read leaves the first column out, the source, which is asked for.
_READ = f"""
    SELECT {", ".join(usage.c.keys()[1:])} FROM usage
    WHERE source = %s AND hour >= %s ORDER BY {_KEY}
""".encode()
_READ_CHANGES = f"""
    SELECT {", ".join(quota_change.c.keys()[1:])} FROM quota_change
    WHERE source = %s ORDER BY stream_ms DESC, stream_seq DESC LIMIT %s
""".encode()


class UsageRow(Struct, frozen=True):
    """What one program was charged in one hour, in one module, on one core."""

    hour: datetime
    module: str
    tenant: str
    agent: str
    program: str
    core: str  # empty: none worked on it
    currency: str  # empty: the core has no price
    tokens: int
    prompt_tokens: int
    ran_ms: int
    finished: int
    failed: int
    cached_tokens: int
    cost_nano: int

    def plus(self, other: "UsageRow") -> "UsageRow":
        """Return the sum of both; the names are this one's."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return msgspec.structs.replace(self, **sums)


class QuotaChange(Struct, frozen=True):
    """A quota that was set, or, where there are no limits, unset."""

    stream_ms: int
    stream_seq: int
    at: datetime
    module: str
    subject: str
    limits: str
    who: str


def read_usage(entry: Answer) -> Iterator[UsageRow]:
    """Yield what an entry of the journal says was charged; a line that is none is left out."""
    stream_id, fields = entry
    if b"u" not in fields[::2]:
        return
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    hour = Position.parse(stream_id).at.replace(minute=0, second=0, microsecond=0)
    module = text_of(pairs.get(b"q", b""))[:MAX_ID_CHARACTERS]
    for line in text_of(pairs.get(b"u", b"")).split("\n"):
        parts = line.split("\t")
        names, counts = parts[:_NAMES], parts[_NAMES:]
        if len(counts) == len(COUNTS) and all(is_count(count, _MAX_DIGITS) for count in counts):
            tenant, agent, program, core, currency = (name[:MAX_ID_CHARACTERS] for name in names)
            yield UsageRow(hour, module, tenant, agent, program, core, currency, *map(int, counts))


def read_changes(entry: Answer) -> Iterator[QuotaChange]:
    """Yield the quota that an entry of the journal says was changed, if it says so."""
    stream_id, fields = entry
    if b"s" not in fields[::2]:
        return
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    parts = text_of(pairs.get(b"s", b"")).split("\t")
    if len(parts) == _SETTING_PARTS and parts[0] == "quota":
        position = Position.parse(stream_id)
        subject, limits, who = (part[:MAX_ID_CHARACTERS] for part in parts[1:])
        yield QuotaChange(
            position.ms,
            position.seq,
            position.at,
            text_of(pairs.get(b"q", b""))[:MAX_ID_CHARACTERS],
            subject,
            limits,
            who,
        )


def summed(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """Return one row per program, core, module and hour."""
    sums: dict[tuple[object, ...], UsageRow] = {}
    for row in rows:
        key = (row.hour, row.module, row.tenant, row.agent, row.program, row.core, row.currency)
        sums[key] = sums[key].plus(row) if key in sums else row
    return list(sums.values())


async def enter_usage(cursor: AsyncCursor, source: str, entries: Sequence[Answer]) -> None:
    """Enter what a batch of journal entries charged and changed, in the caller's transaction."""
    rows = summed(row for entry in entries for row in read_usage(entry))
    if rows:
        await cursor.execute(_ADD, [_as_json(source, rows)])
    changes = [change for entry in entries for change in read_changes(entry)]
    if changes:
        await cursor.execute(_ENTER_CHANGES, [_as_json(source, changes)])


class UsageHistory:
    """Reads usage and quota changes from the ledger."""

    def __init__(self, database: Database, keys: Keys | None = None) -> None:
        self._database = database
        self._source = (keys or Keys()).prefix

    async def since(self, when: datetime) -> list[UsageRow]:
        """Return the rows of the hour of `when` and of all later ones, oldest first."""
        hour = when.replace(minute=0, second=0, microsecond=0)
        async with self._database.transaction() as cursor:
            await cursor.execute(_READ, [self._source, hour])
            return [UsageRow(*row) for row in await cursor.fetchall()]

    async def spent(self, module: Module, now: datetime) -> list[Spent]:
        """Return what agents and tenants have spent this day and this month (UTC)."""
        now = now.astimezone(UTC)
        day, month = f"{now:%Y-%m-%d}", f"{now:%Y-%m}"
        sums: Counter[tuple[Literal["day", "month"], str, str, Subject]] = Counter()
        first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        for row in await self.since(first):
            if row.module != module or not row.cost_nano:
                continue
            of_row = Subject.of_agent(row.agent, row.tenant), Subject.of_tenant(row.tenant)
            for subject in of_row:
                sums["month", month, row.currency, subject] += row.cost_nano
                if f"{row.hour.astimezone(UTC):%Y-%m-%d}" == day:
                    sums["day", day, row.currency, subject] += row.cost_nano
        return [Spent(*key, nano) for key, nano in sums.items()]

    async def changes(self, limit: int = 100) -> list[QuotaChange]:
        """Return the last changes of quotas, newest first."""
        async with self._database.transaction() as cursor:
            await cursor.execute(_READ_CHANGES, [self._source, limit])
            return [QuotaChange(*row) for row in await cursor.fetchall()]


def _as_json(source: str, rows: Sequence[Struct]) -> str:
    records = [{"source": source, **msgspec.structs.asdict(row)} for row in rows]
    return msgspec.json.encode(records).decode()


logger = logging.getLogger(__name__)

BATCH_ENTRIES = 400  # of the journal, per transaction; an entry holds the transitions of one call
# Forgotten in one transaction: some 30 ms of Postgres each.
FORGOTTEN_ENTRIES = 500
FORGOTTEN_SYSCALLS = 2_000

_POSITION = b"""
    SELECT stream_ms, stream_seq, entries FROM journal_position WHERE source = %s FOR UPDATE
"""
_OLD_ENTRIES = b"""
    DELETE FROM journal_entry WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM journal_entry WHERE source = %s AND stream_ms < %s
        ORDER BY stream_ms, stream_seq LIMIT %s))
"""
# Asked twice: a syscall that comes again under its id meanwhile is not deleted.
_OLD_SYSCALLS = b"""
    DELETE FROM syscall WHERE ended_at < %(cutoff)s AND ctid = ANY(ARRAY(
        SELECT ctid FROM syscall WHERE submitted_at < %(cutoff)s AND ended_at < %(cutoff)s
        ORDER BY submitted_at LIMIT %(limit)s))
"""


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


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What one batch forgot, and whether there is more of it."""

    entries: int = 0
    syscalls: int = 0
    more: bool = False


class Ledger:
    """Writes and reads the ledger of one deployment; for one event loop."""

    def __init__(self, database: Database, keys: Keys | None = None) -> None:
        self._database = database
        self._keys = keys or Keys()
        self._writer = Writer(self._keys.prefix)
        self._archive = Archive(database, self._keys.prefix)

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
            await enter_usage(cursor, self._keys.prefix, entries)
            written = await self._writer.write(cursor, entries, mark.position)
            if entries:
                mark = Mark(Position.parse(entries[-1][0]), mark.entries + len(entries))
            if await self._move(cursor, mark) and written.ended:
                await forget_snapshots(cursor, written.ended)
        self._writer.committed(mark.position)
        await self._trim(redis, mark.position)
        return Drained(
            len(entries), written.transitions, written.anomalies, max(0, length - len(entries))
        )

    async def forget_snapshots(self) -> None:
        """Drop spilled snapshots of syscalls that have ended: left when a scheduler died midway."""
        async with self._database.transaction() as cursor:
            await cursor.execute(
                "DELETE FROM snapshot USING syscall"
                " WHERE snapshot.job_id = syscall.job_id AND state = ANY(%s)",
                [list(TERMINAL)],
            )

    async def forget(self, cutoff_ms: int) -> Forgotten:
        """Forget one batch of what was before a time by Redis' clock.

        Journal entries go by their age; syscalls by when they ended. One that has not ended stays,
        whatever its age; what it did before then is forgotten. Usage and changes of quotas are
        kept.

        Raises:
            DatabaseUnavailable: nothing was forgotten.
        """
        cutoff = datetime.fromtimestamp(cutoff_ms / 1000, tz=UTC)
        async with self._database.transaction() as cursor:
            await cursor.execute(_OLD_ENTRIES, [self._keys.prefix, cutoff_ms, FORGOTTEN_ENTRIES])
            entries = cursor.rowcount
            await cursor.execute(_OLD_SYSCALLS, {"cutoff": cutoff, "limit": FORGOTTEN_SYSCALLS})
            syscalls = cursor.rowcount
        more = entries == FORGOTTEN_ENTRIES or syscalls == FORGOTTEN_SYSCALLS
        return Forgotten(entries, syscalls, more)

    async def history(self, job_id: str) -> list[Transition]:
        """Return all that happened to a syscall, oldest first."""
        return await self._archive.history(job_id)

    async def recent(self, limit: int = 100) -> list[SyscallRow]:
        """Return the syscalls that were submitted last, newest first."""
        async with self._database.transaction() as cursor:
            rows = cursor.connection.cursor(row_factory=class_row(SyscallRow))
            await rows.execute(
                f"SELECT {', '.join(COLUMNS)} FROM syscall ORDER BY submitted_at DESC"
                " LIMIT %s".encode(),
                [limit],
            )
            return await rows.fetchall()

    async def _mark(self, cursor: AsyncCursor, redis: Connection) -> Mark:
        """Return how far the journal is drained, and keep others from draining it meanwhile."""
        await cursor.execute(_POSITION, [self._keys.prefix])
        row = await cursor.fetchone()
        if row is None:  # the first time: whoever is first makes it, the others wait here
            await cursor.execute(
                "INSERT INTO journal_position VALUES (%s, 0, 0, 0) ON CONFLICT DO NOTHING",
                [self._keys.prefix],
            )
            await cursor.execute(_POSITION, [self._keys.prefix])
            row = await cursor.fetchone()
            assert row is not None
        return await self._checked(Mark(Position(row[0], row[1]), row[2]), redis)

    async def _checked(self, mark: Mark, redis: Connection) -> Mark:
        """Return the mark, in step with the journal; say so when entries were lost."""
        flat = await redis.execute("XINFO", "STREAM", self._keys.journal)
        stream = dict(zip(flat[::2], flat[1::2], strict=True))
        gone = stream[b"entries-added"] - stream[b"length"]
        if stream[b"entries-added"] < mark.entries:  # Redis was emptied, or lost its last second
            return Mark(mark.position, gone)
        if gone <= mark.entries:
            return mark
        if mark.entries:
            logger.warning(
                "%d journal entries were dropped before they were drained (its limit, "
                "or by hand): the ledger misses them",
                gone - mark.entries,
            )
        return Mark(mark.position, gone)

    async def _move(self, cursor: AsyncCursor, mark: Mark) -> bool:
        """Move the position; return whether there are spilled snapshots, which is seldom."""
        await cursor.execute(
            "UPDATE journal_position SET stream_ms = %s, stream_seq = %s, entries = %s"
            " WHERE source = %s RETURNING EXISTS (SELECT FROM snapshot)",
            [mark.position.ms, mark.position.seq, mark.entries, self._keys.prefix],
        )
        return await cursor.fetchone() == (True,)

    async def _trim(self, redis: Connection, position: Position) -> None:
        behind = Position(position.ms, position.seq + 1)  # MINID keeps what it names
        await redis.execute("XTRIM", self._keys.journal, "MINID", str(behind))
