"""Operations that change notes, or the block itself; and who may do what with a note."""

from typing import Any

import msgspec

from aios_broker.access.grants import ObjectId
from aios_broker.contract.access import Acknowledged
from aios_broker.contract.errors import AccessDenied, InvalidSyscall, NotFound, VersionConflict
from aios_broker.contract.memory import (
    MAX_NOTE_BYTES,
    BlockStat,
    MemoryAlloc,
    MemoryBody,
    MemoryClear,
    MemoryRemove,
    MemoryRollback,
    MemoryShare,
    MemoryStat,
    MemoryTtl,
    MemoryUnshare,
    MemoryUpdate,
    Note,
)
from aios_broker.contract.names import Verb
from aios_broker.postgres.store import AgentRow
from aios_workers.approvals.irreversible import Irreversible, Seen
from aios_workers.modules.access.grants import share_object, unshare_object, verbs_on
from aios_workers.modules.memory.note import (
    KEPT_VERSIONS,
    LIVING,
    NOTE_COLUMNS,
    BlockShape,
    Lock,
    NoteBody,
    Operation,
    body_of,
    enter_version,
    fetch_note,
    note_fields,
    note_in_version,
    note_of,
    seen_note,
    shape_of_block,
)
from aios_workers.modules.operation import Asked, Work, run_once
from aios_workers.search.corpora import NoteQuery, filters_of
from aios_workers.search.ranking import count_unembedded

AnyWork = Work[MemoryBody]  # what the operations share does not look at the body
MAX_SHOWN_CHARACTERS = 2_000  # of a note, for the person who decides

_REWRITE = f"""
    UPDATE note AS n SET content = %s, keywords = %s, tags = %s, category = %s, context = %s,
        links = %s, metadata = %s, version = n.version + 1, updated_at = clock_timestamp(),
        words = to_tsvector('english', %s), model_id = NULL, vector = NULL
    WHERE n.id = %s RETURNING {NOTE_COLUMNS}
"""
_SET_SHAPE = """
    INSERT INTO memory_block (owner_id, limit_bytes, k, correlated_s, high, low)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (owner_id) DO UPDATE
       SET limit_bytes = excluded.limit_bytes, k = excluded.k, low = excluded.low,
           correlated_s = excluded.correlated_s, high = excluded.high
"""
_EXPIRE = f"""
    UPDATE note AS n SET expires_at = clock_timestamp() + %s * interval '1 second'
     WHERE n.id = %s RETURNING {NOTE_COLUMNS}
"""
_DELETE = """
    WITH grants AS (DELETE FROM access_grant WHERE object_kind = 'note' AND object_id = %(note)s)
    DELETE FROM note WHERE id = %(note)s
"""
# What has expired goes, too, and is nothing that anybody could lose.
_DELETE_ALL = f"""
    WITH grants AS (DELETE FROM access_grant WHERE object_kind = 'note' AND owner_id = %(owner)s
        AND object_id IN (SELECT n.id FROM note n WHERE n.owner_id = %(owner)s AND <narrowing>)),
    gone AS (DELETE FROM note n WHERE owner_id = %(owner)s AND <narrowing>
             RETURNING n.id, n.version, {LIVING} AS is_living)
    SELECT count(*) AS rows, count(*) FILTER (WHERE is_living) AS notes,
           encode(sha256(convert_to(string_agg(id || ':' || version, ',' ORDER BY id)
                                    FILTER (WHERE is_living), 'UTF8')), 'hex') AS digest
      FROM gone
"""
_COUNT = f"SELECT count(*) AS notes FROM note n WHERE n.owner_id = %s AND {LIVING}"


async def alloc(asked: Asked[MemoryAlloc]) -> BlockStat:
    """Set the block's shape; what is too much for it is swapped out before the answer."""
    body = asked.body
    if body.low >= body.high:
        raise InvalidSyscall(
            f"the low watermark {body.low:g} is not below the high one {body.high:g}",
            field="low",
            remedy="choose a lower one",
        )

    async def put_shape(work: Work[MemoryAlloc]) -> Acknowledged:
        values = (body.bytes, body.k, body.correlated_s, body.high, body.low)
        await work.cursor.execute(_SET_SHAPE, (work.agent.id, *values))
        return Acknowledged()

    await run_once(asked, put_shape)
    await asked.services.blocks.configure(asked.agent)
    return await stat(asked)


async def stat(asked: Asked[MemoryAlloc] | Asked[MemoryStat]) -> BlockStat:
    """Return the block in numbers."""
    async with asked.transaction() as work:
        notes = await _count(work)
        unindexed = await count_unembedded(work.cursor, NoteQuery("", owners=(asked.agent.id,)))
    held = await asked.services.blocks.of(asked.agent).stat(notes_in_all=notes)
    return msgspec.structs.replace(held, unindexed_notes=unindexed)


async def update(work: Work[MemoryUpdate]) -> Note:
    """Change what is given of a note."""
    body = work.body
    given: dict[str, Any] = {
        name: value
        for name in NoteBody.__struct_fields__
        if (value := getattr(body, name)) is not None
    }
    owner, note = await _locked(work, body.owner, body.note)
    if body.if_version not in (None, note.version):
        raise VersionConflict(
            f"the note is of version {note.version}, not {body.if_version}",
            field="if_version",
            remedy="read it again, and decide anew",
        )
    if body.metadata is not None:
        merged = {**note.metadata, **body.metadata}
        given["metadata"] = {key: value for key, value in merged.items() if value is not None}
    after = msgspec.structs.replace(body_of(note), **given)
    return await _rewrite(work, owner, note, after, "update")


async def rollback(work: Work[MemoryRollback]) -> Note:
    """Make an older version the newest."""
    body = work.body
    owner, note = await _locked(work, body.owner, body.note)
    old = await note_in_version(work.cursor, note, body.version)
    newer = note.version - body.version
    what = f"roll note {note.id} back over {newer} newer versions"
    await work.take(Irreversible("rollback", what, (seen_note(note),), lossy=newer > 0))
    return await _rewrite(work, owner, note, body_of(old), "rollback")


async def remove(work: Work[MemoryRemove]) -> Acknowledged:
    """Delete a note and its versions."""
    owner, note = await _locked(work, work.body.owner, work.body.note)
    what = f"delete note {note.id} of {owner.name} ({note.version} versions)"
    await work.take(_deletion(what, note))
    await work.ask()
    await work.services.blocks.of(owner).invalidate([note.id], forget=True)
    await work.cursor.execute(_DELETE, {"note": note.id})
    return Acknowledged()


async def ttl(work: Work[MemoryTtl]) -> Note:
    """Let a note expire, or not."""
    owner, locked = await _locked(work, None, work.body.note)
    [row] = await work.rows(_EXPIRE, (work.body.ttl_s, locked.id))
    note = note_of(row, owner.name)
    if _ends_sooner(locked.expires_at, note.expires_at):
        what = f"let note {note.id} of {owner.name} expire in {work.body.ttl_s:g} s"
        await work.take(_deletion(f"{what} ({note.version} versions)", locked))
        await work.ask()
    token = await work.services.blocks.of(owner).invalidate([locked.id])
    keep(work, owner, note, token)
    return note


async def clear(work: Work[MemoryClear]) -> Acknowledged:
    """Delete all of the agent's notes, or those that are meant."""
    narrowing, values = filters_of(work.body, "n")
    meant = _DELETE_ALL.replace("<narrowing>", " AND ".join(("true", *narrowing)))
    [gone] = await work.rows(meant, {**values, "owner": work.agent.id})
    if gone.notes:
        every = "the only note" if gone.notes == 1 else f"all {gone.notes:,} notes"
        which = f"{gone.notes:,} of the notes" if narrowing else every
        what = f"delete {which} of {work.agent.name}"
        called = f"notes of agent {work.agent.name}"
        seen = Seen("notes", str(work.agent.id), count=gone.notes, digest=gone.digest, name=called)
        await work.take(Irreversible("clear", what, (seen,)))
        await work.ask()
    await work.services.blocks.of(work.agent).drop()
    return Acknowledged(changed=gone.rows > 0)


def _deletion(what: str, note: Note) -> Irreversible:
    return Irreversible(
        "delete", what, (seen_note(note),), diff=note.content[:MAX_SHOWN_CHARACTERS]
    )


def _ends_sooner(before: float | None, now: float | None) -> bool:
    """Whether a note that was there until then (None: for good) is there for less long now."""
    return now is not None and (before is None or now < before)


async def share(work: Work[MemoryShare]) -> Acknowledged:
    """Grant verbs on a note or on all notes."""
    await share_object(work, await _object(work))
    return Acknowledged()


async def unshare(work: Work[MemoryUnshare]) -> Acknowledged:
    """Take grants back; neither agent nor group: all of them."""
    note_id = work.body.note
    what = "all notes" if note_id is None else f"note {note_id}"
    count = await unshare_object(work, await _object(work), what)
    return Acknowledged(changed=count > 0)


async def _object(work: Work[MemoryShare] | Work[MemoryUnshare]) -> ObjectId:
    note_id = work.body.note
    if note_id is None:
        return "block", str(work.agent.id)
    await permitted(work, work.agent, note_id, "share")
    return "note", note_id


async def _count(work: AnyWork) -> int:
    [row] = await work.rows(_COUNT, (work.agent.id,))
    return int(row.notes)


async def _locked(work: AnyWork, owner_name: str | None, note_id: str) -> tuple[AgentRow, Note]:
    """Return a note that the agent may write, and its owner; nobody else writes it now."""
    owner = await work.agent_named(owner_name)
    return owner, await permitted(work, owner, note_id, "write", "FOR UPDATE")


async def _rewrite(
    work: AnyWork, owner: AgentRow, note: Note, after: NoteBody, operation: Operation
) -> Note:
    ensure_storable(after)
    await ensure_fits(work, owner, after)
    written = await rewrite_note(work, owner, note.id, after, operation)
    await work.ask()
    token = await work.services.blocks.of(owner).invalidate([note.id])
    keep(work, owner, written, token)
    return written


def keep(work: AnyWork, owner: AgentRow, note: Note, token: str) -> None:
    """Have a note that was written put into its owner's block, once that is committed."""

    async def put() -> None:
        work.services.unembedded.set()
        await work.services.blocks.keep(owner, note, token)

    work.then(put)


async def permitted(
    work: AnyWork, owner: AgentRow, note_id: str, verb: Verb, lock: Lock = ""
) -> Note:
    """Return a note that the agent may do this with, locked if asked for.

    Raises:
        NotFound: there is none, or the agent may not even read it.
        AccessDenied: it may read it, and not do this.
    """
    if owner.id != work.agent.id:
        wider = ("block", str(owner.id))
        verbs = await verbs_on(work, [("note", note_id), wider])
        if "read" not in verbs:
            raise no_such_note(note_id)
        if verb not in verbs:
            raise AccessDenied(
                f"no grant of agent {owner.name!r} lets {work.agent.name!r} {verb} this note",
                field="note",
                remedy=f"ask {owner.name!r} for the verb {verb!r}",
            )
    note = await fetch_note(work.cursor, owner, note_id, lock)
    if note is None:
        raise no_such_note(note_id)
    return note


def no_such_note(note_id: str) -> NotFound:
    """Return the error for a note that is not there, or not for this agent."""
    return NotFound(
        f"there is no note {note_id} of this owner that you may read",
        field="note",
        remedy="see memory.list; name its owner if it is another agent's",
    )


def ensure_storable(body: NoteBody) -> None:
    """Refuse what Postgres cannot keep as text, and what is too long.

    Raises:
        InvalidSyscall: a NUL character; `field` says where. Or more bytes than a note may have.
    """
    if (size_bytes := len(body.content.encode())) > MAX_NOTE_BYTES:
        raise InvalidSyscall(
            f"the content has {size_bytes} bytes, a note at most {MAX_NOTE_BYTES}",
            field="content",
            remedy="shorten it, or keep it in storage",
        )
    fields = {
        "content": [body.content],
        "keywords": body.keywords,
        "tags": body.tags,
        "category": [body.category],
        "context": [body.context],
        "metadata": [repr(body.metadata)],
    }
    for field, texts in fields.items():
        if any("\x00" in text or (field == "metadata" and "\\x00" in text) for text in texts):
            raise InvalidSyscall(
                "it has a NUL character, which text cannot keep",
                field=field,
                remedy="leave it out, or keep bytes in storage",
            )


async def ensure_fits(
    work: AnyWork, owner: AgentRow, body: NoteBody, shape: BlockShape | None = None
) -> None:
    """Refuse a note that its block could never hold; `shape`: the block's, where it is known.

    Raises:
        InvalidSyscall: larger than the whole block.
    """
    shape = shape or await shape_of_block(work.cursor, owner)
    if body.size_bytes > shape.limit_bytes:
        raise InvalidSyscall(
            f"the note has {body.size_bytes} bytes, the block of agent {owner.name!r} "
            f"{shape.limit_bytes}",
            field="content",
            remedy="shorten it, or make the block larger (memory.alloc)",
        )


async def rewrite_note(
    work: AnyWork, owner: AgentRow, note_id: str, body: NoteBody, operation: Operation
) -> Note:
    """Write the next version of a note whose row is locked; it is to be embedded again.

    It may push the oldest version out: that is taken, and to be asked for.
    """
    rows = await work.rows(_REWRITE, (*note_fields(body), body.search_text, note_id))
    return await enter_note(work, owner, rows[0], operation)


async def enter_note(work: AnyWork, owner: AgentRow, row: Any, operation: Operation) -> Note:  # noqa: ANN401
    """Return the row that was just written, entered as the version that it has."""
    note = note_of(row, owner.name)
    entered = (owner, note, work.agent.id, operation, work.asked.syscall.id)
    if lost := await enter_version(work.cursor, *entered):
        numbers = ", ".join(map(str, lost))
        what = f"push version {numbers} of note {note.id} out of the {KEPT_VERSIONS} that are kept"
        seen = tuple(
            Seen("version", note.id, each, name=f"version {each} of note {note.id}")
            for each in lost
        )
        await work.take(Irreversible("overwrite", what, seen))
    return note
