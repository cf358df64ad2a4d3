"""The audit log: lines that are only ever added, each with a hash over itself and the line before.

A line is written in the transaction of what it tells of. One writer at a time (an advisory lock
that is held until that transaction ends), so that the chain has no forks. Whoever changes or
removes a line inside the chain, superusers included, breaks it; lines cut off at its end are
missed only by who noted an earlier newest hash.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct, structs
from psycopg.types.json import Jsonb

from aios_broker.contract.access import AuditEntry
from aios_broker.contract.syscall import Syscall
from aios_broker.postgres.store import Cursor, only_row
from aios_workers.modules.tables import audit, inserted, selected

FIRST_HASH = "0" * 64  # before the first line
BATCH = 1_000  # lines that are walked at a time
# An agent sees its own lines only: the steward looks which is the last.
_BEGIN = """
    SELECT current_setting('role') AS role, set_config('role', 'aios_steward', true) AS taken,
           pg_advisory_xact_lock(hashtextextended('aios.audit', 0))
"""
_LAST = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1"
_INSERT = inserted(audit)
_WALK = f"SELECT * FROM audit WHERE seq > %s ORDER BY seq LIMIT {BATCH}"
_NEWEST = f"""
    SELECT {selected(audit, "a")} FROM audit a
     WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
       AND (%(actor)s::text IS NULL OR actor = %(actor)s)
     ORDER BY seq DESC LIMIT %(limit)s
"""


class AuditLine(Struct, frozen=True):
    """What is to be written down."""

    tenant: str
    actor: str  # an agent, or `operator:<user>`
    action: str
    object: str
    outcome: str
    syscall_id: str = ""
    detail: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What a walk along the chain found."""

    lines: int  # that were walked, the broken one included
    broken_seq: int | None = None
    why: str = ""
    last_hash: str = FIRST_HASH


def line_of(syscall: Syscall, what: str, outcome: str, detail: dict[str, Any]) -> AuditLine:
    """Return the line on what a syscall came to, or was refused."""
    return AuditLine(syscall.tenant, syscall.agent, syscall.kind, what, outcome, syscall.id, detail)


async def append_line(cursor: Cursor, line: AuditLine) -> None:
    """Add a line; the transaction's role is the same afterwards."""
    await cursor.execute(_BEGIN)
    role = (await only_row(cursor)).role
    await cursor.execute(_LAST)
    last = await cursor.fetchone()
    seq, previous = (1, FIRST_HASH) if last is None else (last.seq + 1, last.hash)
    at = datetime.now(UTC)
    row = structs.asdict(line) | {"seq": seq, "at": at, "detail": Jsonb(line.detail)}
    row |= {"previous_hash": previous, "hash": line_hash(previous, seq, at, line)}
    await cursor.execute(_INSERT, row)
    await cursor.execute("SELECT set_config('role', %s, true)", (role,))


def line_hash(previous: str, seq: int, at: datetime, line: AuditLine) -> str:
    """Return the SHA-256, in hex, of a line as canonical JSON with the hash before it."""
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    material = [previous, seq, moment, *structs.astuple(line)]
    return hashlib.sha256(msgspec.json.encode(material, order="deterministic")).hexdigest()


async def verify(cursor: Cursor) -> AuditVerdict:
    """Walk the chain from its first line; stop at the first that is not as it was written."""
    lines, previous, seq = 0, FIRST_HASH, 0
    while True:
        await cursor.execute(_WALK, (seq,))
        rows = await cursor.fetchall()
        if not rows:
            return AuditVerdict(lines, last_hash=previous)
        for row in rows:
            lines += 1
            why = _broken(row, previous, seq)
            if why:
                return AuditVerdict(lines, row.seq, why, previous)
            previous, seq = row.hash, row.seq


def _broken(row: Any, previous: str, seq: int) -> str:  # noqa: ANN401  a row of psycopg's
    if row.seq != seq + 1:
        return f"line {seq + 1} is missing"
    if row.previous_hash != previous:
        return "it does not follow the line before it"
    line = msgspec.convert(row._asdict(), AuditLine)
    if line_hash(previous, row.seq, row.at, line) != row.hash:
        return "it was changed after it was written"
    return ""


async def newest_lines(
    cursor: Cursor, *, tenant: str | None, actor: str | None, limit: int
) -> tuple[AuditEntry, ...]:
    """Return the newest lines that the cursor may see, newest first."""
    await cursor.execute(_NEWEST, {"tenant": tenant, "actor": actor, "limit": limit})
    return tuple(msgspec.convert(row._asdict(), AuditEntry) for row in await cursor.fetchall())
