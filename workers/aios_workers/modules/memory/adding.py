"""Operations that add notes: one, a turn of a conversation, one that may be there already."""

import hashlib

from msgspec import structs

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.memory import MemoryAdd, MemoryLog, Note
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_workers.modules.memory.changing import (
    AnyWork,
    ensure_fits,
    ensure_storable,
    enter_note,
    keep,
)
from aios_workers.modules.memory.note import (
    LIVING,
    NOTE_COLUMNS,
    NoteBody,
    body_of,
    note_fields,
    note_of,
)
from aios_workers.modules.operation import Asked, run_once

PAUSE_S = 6 * 3_600.0  # a turn that comes later does not belong to the one before
AHEAD_S = 60.0  # of Postgres' clock: another one may be so much

INSERT = """
    INSERT INTO note AS n (id, tenant_id, owner_id, program, content, keywords, tags, category,
                           context, links, metadata, words, turn,
                           created_at, updated_at, expires_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, to_tsvector('english', %s), %s,
            coalesce(to_timestamp(%s::float8), now()), coalesce(to_timestamp(%s::float8), now()),
            coalesce(to_timestamp(%s::float8), now() + %s * interval '1 second'))
"""
_INSERT_ONE = f"{INSERT} RETURNING {NOTE_COLUMNS}"
# The last turn of the program's log, if it has one, and the time. Who asks has the log's lock.
LAST_TURN = """
    SELECT last.turn, last.at, extract(epoch FROM clock_timestamp())::float8 AS now
      FROM (SELECT) one LEFT JOIN LATERAL (
        SELECT n.turn, extract(epoch FROM n.created_at)::float8 AS at FROM note n
         WHERE n.owner_id = %s AND n.program = %s AND n.turn IS NOT NULL
         ORDER BY n.turn DESC LIMIT 1) last ON true
"""
_LOCK_LOG = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))"
_IDENTICAL = f"""
    SELECT {NOTE_COLUMNS} FROM note n
     WHERE n.owner_id = %(owner)s AND n.content_hash = hashtextextended(%(content)s, 0)
       AND n.content = %(content)s AND n.turn IS NULL AND {LIVING}
     ORDER BY n.seq LIMIT 1 FOR UPDATE
"""
_EXPIRE_LATER = f"""
    UPDATE note AS n SET expires_at = CASE WHEN %(ttl_s)s::float8 IS NOT NULL THEN
        greatest(n.expires_at, clock_timestamp() + %(ttl_s)s * interval '1 second') END
     WHERE n.id = %(note)s RETURNING {NOTE_COLUMNS}
"""


async def add(asked: Asked[MemoryAdd]) -> Result:
    """Add a note; with `dedupe` return the one that says the same, if it is there."""
    body, new = asked.body, body_of(asked.body)
    ensure_storable(new)
    # Before: to open a block takes a transaction of its own, and so another connection.
    token = await asked.services.blocks.of(asked.agent).token()

    async def write(work: AnyWork) -> Note:
        known = await identical(work, new.content, body.ttl_s) if body.dedupe else None
        if known is not None:
            return known
        note = await insert_note(work, new, body.ttl_s)
        keep(work, work.agent, note, token)
        return note

    return await run_once(asked, write, *dedupe_locks(asked, new.content))


async def log(asked: Asked[MemoryLog]) -> Result:
    """Append a turn to the program's log."""
    body = asked.body
    said = {"role": body.role, "program": asked.syscall.program}
    if body.tool:
        said["tool"] = body.tool
    new = NoteBody(
        content=body.content,
        category="tool" if body.role == "tool" else "conversation",
        metadata={**body.metadata, **said},
    )
    ensure_storable(new)
    token = await asked.services.blocks.of(asked.agent).token()

    async def write(work: AnyWork) -> Note:
        turn = await _next_turn(work, body.at)
        note = await insert_note(work, new, body.ttl_s, turn, body.at)
        keep(work, work.agent, note, token)
        return note

    return await run_once(asked, write)


def dedupe_locks(asked: Asked[MemoryAdd], content: str) -> tuple[str, ...]:
    """Return what keeps two that add the same text with `dedupe` from both finding it new."""
    if not asked.body.dedupe:
        return ()
    digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    return (f"dedupe {asked.agent.id} {digest}",)


async def identical(work: AnyWork, content: str, ttl_s: float | None) -> Note | None:
    """Return the agent's oldest note with exactly this content, no turn of a log; None: none.

    It lives as long as the new one would have lived, at least.
    """
    agent, blocks = work.agent, work.services.blocks
    rows = await work.rows(_IDENTICAL, {"owner": agent.id, "content": content})
    if not rows:
        return None
    note = note_of(rows[0], agent.name)
    if note.expires_at is not None:
        [row] = await work.rows(_EXPIRE_LATER, {"ttl_s": ttl_s, "note": note.id})
        later = note_of(row, agent.name)
        if later.expires_at != note.expires_at:
            token = await blocks.of(agent).invalidate([note.id])
            keep(work, agent, later, token)
        note = later

    async def touch() -> None:
        await blocks.of(agent).touch([note.id])

    work.then(touch)
    return structs.replace(note, existing=True)


def id_of_new_note(syscall: Syscall) -> str:
    """Return the id of the note that an agent's syscall adds: the same each time it runs."""
    return note_id("note", *syscall.owner, syscall.id)


def note_id(*names: str) -> str:
    """Return the id of the note that has these names."""
    named = "\x1f".join(names)
    return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()


async def lock_log(work: AnyWork, program: str) -> None:
    """Return when nobody else numbers turns of this program's log, until the transaction ends."""
    await work.cursor.execute(_LOCK_LOG, (f"{work.agent.id}\x1f{program}",))


async def _next_turn(work: AnyWork, at: float | None) -> int:
    """Return the number of the next turn in the program's log; nobody else takes it.

    Raises:
        InvalidSyscall: it is said to come before the last one, or later than now.
    """
    program = work.asked.syscall.program
    await lock_log(work, program)
    [last] = await work.rows(LAST_TURN, (work.agent.id, program))
    if at is not None:
        refuse_future(at, last.now, "body.at")
    if last.turn is None:
        return 1
    if at is not None and at < last.at:
        raise InvalidSyscall(
            f"the turn is of {at:.3f}, the last one of program {program!r} of {last.at:.3f}",
            field="body.at",
            remedy="log turns in the order of their times, or into another program",
        )
    paused = (last.now if at is None else at) - last.at > PAUSE_S
    return int(last.turn) + (2 if paused else 1)


def refuse_future(at: float, now: float, field: str) -> None:
    """Return when a time is not later than now.

    Raises:
        InvalidSyscall: it is; `field` says which.
    """
    if at > now + AHEAD_S:
        raise InvalidSyscall(
            f"{at:.3f} lies {at - now:.0f} s in the future",
            field=field,
            remedy="give Unix time in seconds (UTC), not later than now",
        )


async def insert_note(
    work: AnyWork,
    body: NoteBody,
    ttl_s: float | None,
    turn: int | None = None,
    at: float | None = None,
) -> Note:
    """Insert a note of the agent that asks, with its first version."""
    agent, syscall = work.agent, work.asked.syscall
    await ensure_fits(work, agent, body)
    known = (id_of_new_note(syscall), agent.tenant_id, agent.id, syscall.program)
    values = (*known, *note_fields(body), body.search_text, turn, at, at, None, ttl_s)
    rows = await work.rows(_INSERT_ONE, values)
    return await enter_note(work, agent, rows[0], "add")
