"""Write a batch of journal entries to Postgres: the entries as they are, and what syscalls came to.

Most syscalls of a busy kernel begin within the batch that ends them. They are taken for new by
their first event and copied into the table, which costs a third of an upsert; where one of them is
known after all, the database says so and the batch is folded again on what it knows. What this
process wrote and what has not ended is remembered, so that its next change needs no reading.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from psycopg import AsyncCursor
from psycopg.errors import UniqueViolation

from aios_broker.contract.transitions import TERMINAL
from aios_broker.ledger.fold import COLUMNS, Entered, SyscallRow, fold
from aios_broker.ledger.journal import Entry, Position, parse_entry
from aios_broker.ledger.tables import column_types, journal_entry, syscall
from aios_broker.redis.connection import Answer

logger = logging.getLogger(__name__)

LOGGED_ANOMALIES = 5  # of one batch; all are marked in the table
TURN_LINES = 500  # that are folded without a pause: about 2 ms
TURN_ROWS = 500  # that are copied without a pause: about 2 ms
UPDATED_ROWS = 2_000  # of one statement
REMEMBERED_ROWS = 20_000  # about 10 MB

_COPY_ENTRIES, _COPY_SYSCALLS = (
    f"COPY {table.name} ({', '.join(table.c.keys())}) FROM STDIN (FORMAT BINARY)".encode()
    for table in (journal_entry, syscall)
)
_ENTRY_TYPES, _SYSCALL_TYPES = map(column_types, (journal_entry, syscall))
# Rows travel as one JSON text: it costs this process far less than arrays of columns.
_UPDATE = f"""
    UPDATE syscall old SET
        {", ".join(f"{name} = new.{name}" for name in COLUMNS[2:-1])},
        entries = old.entries || ' ' || new.entries
    FROM json_populate_recordset(NULL::syscall, %s::json) new WHERE old.job_id = new.job_id
""".encode()
# No id has a line break in it: a journal's line would end there.
_SELECT = f"""
    SELECT {", ".join(COLUMNS[:-1])} FROM syscall
    WHERE job_id = ANY(string_to_array(%s, E'\\n'))
""".encode()
_FORGET_SNAPSHOTS = b"DELETE FROM snapshot WHERE job_id = ANY(string_to_array(%s, E'\\n'))"


@dataclass(frozen=True, slots=True)
class Written:
    """What was entered."""

    transitions: int = 0
    anomalies: int = 0
    ended: Sequence[str] = ()  # ids of the syscalls that have ended


class _Mistaken(Exception):
    """A syscall that was remembered is not in the table."""


class Writer:
    """Enters the journal of one deployment; for one event loop."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._remembered: dict[str, SyscallRow] = {}
        self._position: Position | None = None  # up to which what is remembered is right

    async def write(
        self, cursor: AsyncCursor, entries: Sequence[Answer], behind: Position
    ) -> Written:
        """Enter what follows the position `behind`, in the caller's transaction."""
        parsed = [entry for entry in map(parse_entry, entries) if entry is not None]
        if self._position != behind:  # somebody else has written since
            self._remembered.clear()
        self._position = None  # until it is committed
        if not parsed:
            return Written()
        firsts: dict[str, str] = {}
        for entry in reversed(parsed):
            firsts.update(entry.first_events())
        await cursor.execute(b"SAVEPOINT as_remembered")  # the end of the transaction releases it
        try:
            return await self._write(cursor, parsed, await self._known(cursor, firsts))
        except (UniqueViolation, _Mistaken):
            self._remembered.clear()
        await cursor.execute(b"ROLLBACK TO SAVEPOINT as_remembered")
        return await self._write(cursor, parsed, await _read(cursor, firsts))

    def committed(self, position: Position) -> None:
        """Take note that what was written stands; the journal is entered up to `position`."""
        self._position = position

    async def _known(self, cursor: AsyncCursor, firsts: dict[str, str]) -> dict[str, SyscallRow]:
        """Return the syscalls that a batch goes on with; take them off what is remembered."""
        known: dict[str, SyscallRow] = {}
        unread: list[str] = []
        for job_id, event in firsts.items():
            row = self._remembered.pop(job_id, None)
            if row is not None:
                row.entries = row.last_entry = ""
                known[job_id] = row
            elif event != "submit":
                unread.append(job_id)
        return known | await _read(cursor, unread)

    async def _write(
        self, cursor: AsyncCursor, entries: Sequence[Entry], known: dict[str, SyscallRow]
    ) -> Written:
        under_fold = dict(known)
        entered = await _fold(under_fold, entries)
        await _copy_entries(cursor, self._source, entries, entered)
        rows = under_fold.values()
        await _copy_syscalls(cursor, [row for row in rows if row.job_id not in known])
        await _update_syscalls(cursor, list(known.values()))
        self._remember(rows)
        _report(entries, entered)
        return Written(
            sum(len(entry) for entry in entries),
            sum(len(one.anomalies) for one in entered),
            [row.job_id for row in rows if row.state in TERMINAL],
        )

    def _remember(self, rows: Iterable[SyscallRow]) -> None:
        for row in rows:
            if row.state not in TERMINAL:
                if len(self._remembered) >= REMEMBERED_ROWS:
                    break
                self._remembered[row.job_id] = row


async def _read(cursor: AsyncCursor, job_ids: Iterable[str]) -> dict[str, SyscallRow]:
    asked = set(job_ids)
    if not asked:
        return {}
    await cursor.execute(_SELECT, [_listed(asked)])
    rows = [SyscallRow(*row) for row in await cursor.fetchall()]
    return {row.job_id: row for row in rows if row.job_id in asked}


def _listed(job_ids: Iterable[str]) -> str:
    """Return ids as one text, which costs far less than a list; it names the empty id as well."""
    return "".join(f"{job_id}\n" for job_id in job_ids)


async def _fold(rows: dict[str, SyscallRow], entries: Sequence[Entry]) -> list[Entered]:
    entered: list[Entered] = []
    lines = 0
    for entry in entries:
        entered.append(fold(rows, entry))
        lines += len(entry)
        if lines >= TURN_LINES:
            lines = 0
            await asyncio.sleep(0)  # the order of the queues comes first
    return entered


async def _copy_entries(
    cursor: AsyncCursor, source: str, entries: Sequence[Entry], entered: Sequence[Entered]
) -> None:
    async with cursor.copy(_COPY_ENTRIES) as copy:
        copy.set_types(_ENTRY_TYPES)
        for entry, one in zip(entries, entered, strict=True):
            await copy.write_row(
                (
                    source,
                    entry.position.ms,
                    entry.position.seq,
                    entry.module,
                    entry.text,
                    " ".join(map(str, one.anomalies)),
                    one.names,
                )
            )


async def _copy_syscalls(cursor: AsyncCursor, rows: Sequence[SyscallRow]) -> None:
    if not rows:
        return
    async with cursor.copy(_COPY_SYSCALLS) as copy:
        copy.set_types(_SYSCALL_TYPES)
        for number, row in enumerate(rows, 1):
            await copy.write_row(msgspec.structs.astuple(row)[:-1])
            if number % TURN_ROWS == 0:
                await asyncio.sleep(0)


async def _update_syscalls(cursor: AsyncCursor, rows: Sequence[SyscallRow]) -> None:
    for first in range(0, len(rows), UPDATED_ROWS):
        part = rows[first : first + UPDATED_ROWS]
        await cursor.execute(_UPDATE, [msgspec.json.encode(part).decode()])
        if cursor.rowcount != len(part):
            raise _Mistaken


async def forget_snapshots(cursor: AsyncCursor, job_ids: Sequence[str]) -> None:
    """Drop snapshots that were spilled, of syscalls that have ended."""
    await cursor.execute(_FORGET_SNAPSHOTS, [_listed(job_ids)])


def _report(entries: Sequence[Entry], entered: Sequence[Entered]) -> None:
    odd = [
        entry.transition(ordinal)
        for entry, one in zip(entries, entered, strict=True)
        for ordinal in one.anomalies
    ]
    for transition in odd[:LOGGED_ANOMALIES]:
        logger.warning(
            "journal entry %s, line %d: event %r of syscall %r is no arrow of the transition table",
            transition.position,
            transition.ordinal,
            transition.event,
            transition.job_id,
        )
    if len(odd) > LOGGED_ANOMALIES:
        logger.warning("and %d more anomalies", len(odd) - LOGGED_ANOMALIES)
