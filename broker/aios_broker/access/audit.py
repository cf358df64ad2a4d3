"""The audit log: lines that are only ever added, each with a keyed hash over itself and the last.

A line is written in the transaction of what it tells of. One writer at a time (an advisory lock
that is held until that transaction ends), so that the chain has no forks. The key of the hashes
and the newest line that was noted lie outside the database (`AuditFolder`): whoever may write in
it, superusers included, can neither change, add, nor remove a line unseen.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct, structs

from aios_broker.access.tables import audit, inserted, selected
from aios_broker.audit_folder import VARIABLE, AuditFolder, NotedLine
from aios_broker.contract.access import AuditEntry
from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.contract.syscall import Syscall
from aios_broker.postgres.store import Cursor, KernelConnection, Store, only_row

FIRST_HASH = "0" * 64  # before the first line
BEGIN = "audit.begin"  # a chain of its own, whatever lies before
BATCH = 1_000  # lines that are walked at a time
NOTED_EVERY_S = 1.0
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1  # of numbers in the database: a forged line may have any
# An agent sees its own lines only and adds none: the steward does.
_BEGIN = """
    SELECT current_setting('role') AS role, set_config('role', 'aios_steward', true) AS taken,
           pg_advisory_xact_lock(hashtextextended('aios.audit', 0))
"""
# As it was hashed: whatever somebody has put into a column, it is read as a text.
_LINE = """
    SELECT seq, tenant, actor, action, object, outcome, syscall_id, detail::text AS detail,
           to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS moment,
           previous_hash, hash FROM audit
"""
_LAST = f"{_LINE} ORDER BY seq DESC LIMIT 1"
_ONE = "SELECT hash FROM audit WHERE seq = %s"
_BEGUN = f"{_LINE} WHERE action = '{BEGIN}' ORDER BY seq DESC"
_INSERT = inserted(audit)
_WALK = f"{_LINE} WHERE seq BETWEEN %s AND %s ORDER BY seq LIMIT {BATCH}"
_NEWEST = f"""
    SELECT {selected(audit, "a")} FROM audit a
     WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
       AND (%(actor)s::text IS NULL OR actor = %(actor)s)
       AND (%(before)s::bigint IS NULL OR seq < %(before)s)
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


# Returns the rows of a query.
Read = Callable[[str, Sequence[object]], Awaitable[list[Any]]]


def in_one(cursor: Cursor) -> Read:
    """Return what reads in a transaction that is open."""

    async def read(query: str, values: Sequence[object]) -> list[Any]:
        await cursor.execute(query, values)
        return await cursor.fetchall()

    return read


def in_pieces(store: Store) -> Read:
    """Return what reads each piece of the log in a transaction of its own: no limit of one is met.

    Lines are only ever added, so what was walked does not change while the rest is.
    """

    async def read(query: str, values: Sequence[object]) -> list[Any]:
        async with store.as_steward() as cursor:
            return await in_one(cursor)(query, values)

    return read


class ProvenLines(Struct, frozen=True):
    """Lines, one behind the other, that were as written when a chain began behind them."""

    first: int
    last: int
    hash: str  # of the last one


class Beginning(Struct, frozen=True):
    """What the first line of a chain says of the lines before it."""

    lines: int = 0
    proven: tuple[ProvenLines, ...] = ()
    broken_seq: int | None = None  # what was wrong with them, as `verify` would have said it
    why: str = ""


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What a walk along the chain found."""

    lines: int  # that were walked, the broken one included
    broken_seq: int | None = None
    why: str = ""
    last_hash: str = FIRST_HASH
    unproven: int = 0  # lines before the newest chain, of those that were not proven when it began
    noted_seq: int | None = None  # the newest line that was noted outside the database


def line_of(syscall: Syscall, what: str, outcome: str, detail: dict[str, Any]) -> AuditLine:
    """Return the line on what a syscall came to, or was refused."""
    return AuditLine(syscall.tenant, syscall.agent, syscall.kind, what, outcome, syscall.id, detail)


async def append_line(cursor: Cursor, line: AuditLine) -> None:
    """Add a line; the transaction's role is the same afterwards.

    Raises:
        InvalidConfig: the key is not here, or the newest line was not written with it.
    """
    key = _key_of(cursor)
    last, role = await _take_turn(cursor)
    _require_proven(key, last)
    await _insert(cursor, key, last, line)
    await cursor.execute("SELECT set_config('role', %s, true)", (role,))


async def begin_chain(cursor: Cursor, operator: str, noted: NotedLine | None) -> Beginning:
    """Begin a new chain with the key that is here, whatever the lines before are.

    Return what is known of those: what this key proves of them it goes on to prove. Nobody else
    writes a line meanwhile.
    """
    key = _key_of(cursor)
    last, _ = await _take_turn(cursor)
    read = in_one(cursor)
    walks, lines = await _walks(read, key, noted), await _count_before(read, _HIGHEST)
    proven = tuple(walk.proven for walk in walks if walk.proven is not None)
    broken = next((walk for walk in walks if walk.broken_seq is not None), None)
    found = Beginning(lines, proven)
    if broken is not None:
        found = structs.replace(found, broken_seq=broken.broken_seq, why=broken.why)
    detail = msgspec.to_builtins(found)
    line = AuditLine("*", operator, BEGIN, "audit log", "done", detail=detail)
    await _insert(cursor, key, last, line)
    return found


def _require_proven(key: bytes, line: Any) -> None:  # noqa: ANN401  a row of psycopg's
    """Return if the newest line, if there is one, was written with this key."""
    if line is not None and not _is_proven(key, line):
        raise InvalidConfig(
            f"line {line.seq} of the audit log was not written with the key that is here",
            field=VARIABLE,
            remedy="have the key of the kernel's other hosts there; where it is lost, or the line "
            "is forged: `aios audit verify`, then `aios audit begin`",
        )


async def _take_turn(cursor: Cursor) -> tuple[Any, str]:
    """Return the newest line, and the transaction's role, which is the steward now."""
    await cursor.execute(_BEGIN)
    role: str = (await only_row(cursor)).role
    await cursor.execute(_LAST)
    return await cursor.fetchone(), role


async def _insert(cursor: Cursor, key: bytes, last: Any, line: AuditLine) -> None:  # noqa: ANN401
    seq, previous = (1, FIRST_HASH) if last is None else (last.seq + 1, last.hash)
    if seq > _HIGHEST:
        raise InvalidConfig(
            f"line {last.seq} of the audit log was put in, and leaves no number for another",
            field="audit",
            remedy="have the database's superuser take it away",
        )
    at = datetime.now(UTC)
    row = structs.asdict(line) | {"seq": seq, "at": at, "detail": _detail(line)}
    row |= {"previous_hash": previous, "hash": line_hash(key, previous, seq, at, line)}
    await cursor.execute(_INSERT, row)


def _detail(line: AuditLine) -> str:
    return msgspec.json.encode(line.detail, order="deterministic").decode()


def _key_of(cursor: Cursor) -> bytes:
    connection = cursor.connection
    key = connection.audit_key if isinstance(connection, KernelConnection) else None
    if key is None:
        raise no_key()
    return key


def no_key() -> InvalidConfig:
    """Return the error of a process that has to write or to verify lines and has no key."""
    return InvalidConfig(
        "the audit log's key is not here: nothing can be written into it, or verified",
        field=VARIABLE,
        remedy="run this on the kernel's host, with its state directory; on another host put a "
        "copy of its audit/key there",
    )


def line_hash(key: bytes, previous: str, seq: int, at: datetime, line: AuditLine) -> str:
    """Return the HMAC-SHA256, in hex, of a line with the hash before it."""
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    *told, _ = structs.astuple(line)
    return _keyed(key, previous, seq, moment, *told, _detail(line))


def _is_proven(key: bytes, row: Any) -> bool:  # noqa: ANN401  a row of psycopg's
    told = (row.tenant, row.actor, row.action, row.object, row.outcome, row.syscall_id, row.detail)
    wanted = _keyed(key, row.previous_hash, row.seq, row.moment, *told)
    return hmac.compare_digest(wanted.encode(), row.hash.encode())


def _keyed(key: bytes, *material: object) -> str:
    return hmac.new(key, msgspec.json.encode(material), hashlib.sha256).hexdigest()


async def verify(read: Read, key: bytes, noted: NotedLine | None) -> AuditVerdict:
    """Walk the newest chain, and what was proven before it when it began.

    `read`: `in_one(cursor)` or `in_pieces(store)`.

    It proves that whoever has not the key has changed, added and removed no line of it: those
    excepted that were cut off its end before one behind them was noted.
    """
    walks = await _walks(read, key, noted)
    *before, newest = walks
    told = next((walk for walk in walks if walk.broken_seq is not None), newest)
    lines = sum(walk.lines for walk in walks[: walks.index(told) + 1])
    unproven = 0
    if newest.first > 1:
        proven = sum(walk.lines for walk in before)
        unproven = max(0, await _count_before(read, newest.first) - proven)
    noted_seq = None if noted is None else noted.seq
    return AuditVerdict(lines, told.broken_seq, told.why, told.hash, unproven, noted_seq)


async def _count_before(read: Read, seq: int) -> int:
    [row] = await read("SELECT count(*) AS lines FROM audit WHERE seq < %s", (seq,))
    lines: int = row.lines
    return lines


async def _walks(read: Read, key: bytes, noted: NotedLine | None) -> "list[_Walk]":
    """Walk all that is to be proven, in order: the newest chain last, to the end of the log.

    Where no chain was begun by the operator's word it is the only one.
    """
    begun = next((row for row in await read(_BEGUN, ()) if _is_proven(key, row)), None)
    walks: list[_Walk] = []
    if begun is not None:
        before = msgspec.json.decode(begun.detail, type=Beginning)
        walks = [_Walk(key, noted, each.first, each) for each in before.proven]
    walks.append(_Walk(key, noted, 1 if begun is None else begun.seq))
    for walk in walks:
        await walk.go(read, _LOWEST if walks[-1].first == 1 else walk.first)
    return walks


class _Walk:
    """Lines one after the other, what has to come next, and the first that is not as written.

    `expected`: lines that are known to have been there; None: all that come are of the chain.
    """

    def __init__(
        self, key: bytes, noted: NotedLine | None, first: int, expected: ProvenLines | None = None
    ) -> None:
        self.first = first
        self.lines = 0  # that were walked, the broken one included
        self.broken_seq: int | None = None
        self.why = ""
        self.hash = FIRST_HASH  # of the last one that is as written
        self._next = first
        self._key = key
        self._noted = noted
        self._expected = expected

    @property
    def proven(self) -> ProvenLines | None:
        """The lines that are as written."""
        last = self._next - 1
        return ProvenLines(self.first, last, self.hash) if last >= self.first else None

    async def go(self, read: Read, at: int) -> None:
        """Read the lines from a number on, to the end or to one behind which nothing is proven."""
        last = _HIGHEST if self._expected is None else self._expected.last
        while True:
            rows = await read(_WALK, (at, last))
            if not rows:
                break
            for row in rows:
                if not self._take(row):
                    return
            at = rows[-1].seq + 1
        seq, why = self._cut_off() if self._expected is None else self._replaced(self._expected)
        if why:
            self._note(seq, why)

    def _take(self, row: Any) -> bool:  # noqa: ANN401  a row of psycopg's
        """Look at the next line; return whether the next one may follow."""
        self.lines += 1
        if row.seq < self._next:
            self._note(row.seq, "it was put in")
            return True  # the others stand as if it were not there
        why = self._wrong(row)
        if why:
            self._note(row.seq, why)
            return False
        self.hash, self._next = row.hash, row.seq + 1
        return True

    def _wrong(self, row: Any) -> str:  # noqa: ANN401  a row of psycopg's
        """Return what is wrong with the next line, or the empty string."""
        if row.seq > self._next:
            return f"line {self._next} is missing"
        # What the first one follows its own hash says.
        if row.previous_hash != self.hash and (row.seq != self.first or self.first == 1):
            return "it does not follow the line before it"
        if not _is_proven(self._key, row):
            return "it was changed after it was written, or not written with this key"
        if self._noted is not None and self._noted.seq == row.seq and self._noted.hash != row.hash:
            return "another line was noted in its place: lines were cut off, and others added"
        return ""

    def _cut_off(self) -> tuple[int, str]:
        """Return the first line that lacks at the end of the log, and what is known of it."""
        if self._noted is None or self._noted.seq < self._next:
            return self._next, ""
        noted_at = datetime.fromtimestamp(self._noted.at, UTC)
        why = f"it is missing; line {self._noted.seq} was noted at {noted_at:%F %T} UTC"
        return self._next, why

    def _replaced(self, expected: ProvenLines) -> tuple[int, str]:
        """Return which of the expected lines lacks at their end, or is another one."""
        if self._next <= expected.last:
            return self._next, f"line {self._next} is missing"
        if self.hash != expected.hash:
            return expected.last, "another line was here when the chain behind it began"
        return expected.last, ""

    def _note(self, seq: int, why: str) -> None:
        if self.broken_seq is None:
            self.broken_seq, self.why = seq, why


class AuditWatch:
    """Notes the newest line outside the database; says so where a noted one is gone.

    A line that was not written with the kernel's key is not noted: forged and taken away again, it
    would be missed for ever.
    """

    def __init__(self, store: Store, folder: AuditFolder) -> None:
        self._store = store
        self._folder = folder

    async def step(self) -> float:
        """Look once; return how long to wait before the next time, in s.

        Raises:
            KernelError: lines that were there are missing, or were replaced; or the newest one is
                not the kernel's.
        """
        noted = self._folder.noted()
        async with self._store.as_steward() as cursor:
            await cursor.execute(_LAST)
            last = await cursor.fetchone()
            if noted is not None:
                await cursor.execute(_ONE, (noted.seq,))
                found = await cursor.fetchone()
                if found is None or found.hash != noted.hash:
                    raise KernelError(
                        f"line {noted.seq} of the audit log, which was noted, is no more in it",
                        remedy="see what lacks: `aios audit verify`",
                    )
            _require_proven(_key_of(cursor), last)
        if last is not None and (noted is None or noted.seq < last.seq):
            line = NotedLine(last.seq, last.hash, time.time())
            await asyncio.to_thread(self._folder.note, line)
        return NOTED_EVERY_S


async def newest_lines(
    cursor: Cursor, *, tenant: str | None, actor: str | None, limit: int, before: int | None = None
) -> tuple[AuditEntry, ...]:
    """Return the newest lines that the cursor may see, newest first; those before a number."""
    values = {"tenant": tenant, "actor": actor, "limit": limit, "before": before}
    await cursor.execute(_NEWEST, values)
    return tuple(msgspec.convert(row._asdict(), AuditEntry) for row in await cursor.fetchall())
