"""Usage in the ledger: what each program was charged, by the hour; and the quotas' changes.

The journal carries the very figures that the counters in Redis are raised by, in the same step.
Here they are added up in the transaction that moves the journal's position: each counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct
from psycopg import AsyncCursor

from aios_broker.ledger.journal import MAX_ID_CHARACTERS, Position, is_count, text_of
from aios_broker.ledger.tables import quota_change, usage
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Answer

_NAMES = 3  # of a line: tenant, agent, program
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
    """What one program was charged in one hour, in one module."""

    hour: datetime
    module: str
    tenant: str
    agent: str
    program: str
    tokens: int
    prompt_tokens: int
    ran_ms: int
    finished: int
    failed: int

    def plus(self, other: UsageRow) -> UsageRow:
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
            tenant, agent, program = (name[:MAX_ID_CHARACTERS] for name in names)
            yield UsageRow(hour, module, tenant, agent, program, *map(int, counts))


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
    """Return one row per program, module and hour."""
    sums: dict[tuple[object, ...], UsageRow] = {}
    for row in rows:
        key = (row.hour, row.module, row.tenant, row.agent, row.program)
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

    async def changes(self, limit: int = 100) -> list[QuotaChange]:
        """Return the last changes of quotas, newest first."""
        async with self._database.transaction() as cursor:
            await cursor.execute(_READ_CHANGES, [self._source, limit])
            return [QuotaChange(*row) for row in await cursor.fetchall()]


def _as_json(source: str, rows: Sequence[Struct]) -> str:
    records = [{"source": source, **msgspec.structs.asdict(row)} for row in rows]
    return msgspec.json.encode(records).decode()
