"""The ledger of the first release: a row per transition, and an upsert of the syscalls.

It drains the journal as that release's scheduler did, with the columns that it knew.
"""

from __future__ import annotations

import msgspec

from aios_broker.ledger.books import COLUMNS, Books, SyscallRow
from aios_broker.ledger.journal import parse_entry
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

KNOWN = COLUMNS[:-1]  # not the entries
READ = f"SELECT {', '.join(KNOWN)} FROM syscall WHERE job_id = ANY(%s)".encode()
UPSERT = f"""
    INSERT INTO syscall ({", ".join(KNOWN)})
    SELECT {", ".join(KNOWN)} FROM json_populate_recordset(NULL::syscall, %s::json)
    ON CONFLICT (job_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in KNOWN)}
""".encode()
ENTER = b"INSERT INTO transition VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"


async def drain_as_first_release(
    database: Database, redis: Connection, limit: int, keys: Keys | None = None
) -> int:
    """Enter up to `limit` entries of the journal, and trim it; return how many."""
    keys = keys or Keys()
    async with database.transaction() as cursor:
        await cursor.execute(
            "INSERT INTO journal_position VALUES (%s, 0, 0, 0) ON CONFLICT DO NOTHING",
            [keys.prefix],
        )
        await cursor.execute(
            "SELECT stream_ms, stream_seq FROM journal_position WHERE source = %s FOR UPDATE",
            [keys.prefix],
        )
        row = await cursor.fetchone()
        assert row is not None
        told = await redis.execute(
            "XRANGE", keys.journal, f"({row[0]}-{row[1]}", "+", "COUNT", limit
        )
        if not told:
            return 0
        entries = [entry for entry in map(parse_entry, told) if entry is not None]
        ids = [change.job_id for entry in entries for change in entry.transitions()]
        await cursor.execute(READ, [ids])
        books = Books({row[0]: SyscallRow(*row) for row in await cursor.fetchall()})
        for entry in entries:
            odd = books.enter(entry).anomalies
            for one in entry.transitions():
                await cursor.execute(
                    ENTER,
                    [
                        keys.prefix,
                        one.position.ms,
                        one.position.seq,
                        one.ordinal,
                        one.job_id,
                        one.module,
                        one.event,
                        one.attempt,
                        one.who,
                        one.detail,
                        one.at,
                        one.ordinal in odd,
                    ],
                )
        await cursor.execute(UPSERT, [msgspec.json.encode([*books.rows.values()]).decode()])
        last = entries[-1].position
        await cursor.execute(
            "UPDATE journal_position SET stream_ms = %s, stream_seq = %s, entries = entries + %s"
            " WHERE source = %s",
            [last.ms, last.seq, len(told), keys.prefix],
        )
    await redis.execute("XTRIM", keys.journal, "MINID", f"{last.ms}-{last.seq + 1}")
    return len(told)
