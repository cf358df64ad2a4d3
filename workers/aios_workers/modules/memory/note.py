"""Notes in Postgres: rows, their versions, and the shapes of blocks. The truth about them.

A note that has expired is not there, whether it is deleted yet or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from aios_broker.access.tables import inserted, selected
from aios_broker.contract.errors import NotFound
from aios_broker.contract.memory import DEFAULT_BLOCK_BYTES, MemoryAdd, Note
from aios_broker.postgres.store import AgentRow, Cursor
from aios_workers.approvals.irreversible import Seen, digest_of_parts
from aios_workers.modules import tables
from aios_workers.search.numbers import as_jsonb

Lock = Literal["", "FOR SHARE", "FOR UPDATE"]
Operation = Literal["add", "restore", "update", "rollback", "evolve", "undo"]
SHOWN_CHARACTERS = 60  # of its beginning, to who decides about it
KEPT_VERSIONS = 100  # of a note; older ones go with the next change

_UNSEEN = (
    *("tenant_id", "program", "turn", "content_hash", "old_bytes"),
    *("words", "length", "model_id", "vector"),
)
NOTE_COLUMNS = selected(tables.note, "n", but=_UNSEEN)
LIVING = "(n.expires_at IS NULL OR n.expires_at > now())"
_FETCH = f"SELECT {NOTE_COLUMNS} FROM note n WHERE n.owner_id = %s AND n.id = %s AND {LIVING} "
_FETCH_MANY = (
    f"SELECT {NOTE_COLUMNS} FROM note n WHERE n.owner_id = %s AND n.id = ANY(%s) AND {LIVING} "
    "ORDER BY n.id "
)
_ENTER = inserted(tables.note_version, but=("at",))
# What is lost: what no version that is kept says, too.
_PUSH_OUT = """
    DELETE FROM note_version v WHERE note_id = %(note)s AND version <= %(last)s
    RETURNING version, NOT EXISTS (
        SELECT FROM note_version k
         WHERE k.note_id = v.note_id AND k.version > %(last)s AND k.body = v.body) AS is_lost
"""


class NoteBody(Struct, frozen=True):
    """What of a note its versions keep."""

    content: str
    keywords: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    category: str = ""
    context: str = ""
    links: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}

    @property
    def size_bytes(self) -> int:
        """Return what the note takes of a block: the UTF-8 of its content and its fields."""
        words = (self.content, self.category, self.context, *self.keywords, *self.tags, *self.links)
        metadata_bytes = len(msgspec.json.encode(self.metadata)) if self.metadata else 0
        return sum(len(word.encode()) for word in words) + metadata_bytes

    @property
    def search_text(self) -> str:
        """Return what keyword search looks at."""
        return "\n".join((self.content, self.context, *self.keywords, *self.tags))


def body_of(note: Note | MemoryAdd) -> NoteBody:
    """Return what versions keep of a note, or of one that is to be added."""
    return NoteBody(*(getattr(note, name) for name in NoteBody.__struct_fields__))


def note_of(row: Any, owner: str) -> Note:  # noqa: ANN401  a row of psycopg's
    """Return a row as what agents get."""
    return msgspec.convert({**row._asdict(), "owner": owner}, Note)


def note_fields(body: NoteBody) -> tuple[object, ...]:
    """Return a body as columns of the table `note`."""
    return (
        body.content,
        list(body.keywords),
        list(body.tags),
        body.category,
        body.context,
        list(body.links),
        as_jsonb(body.metadata),
    )


async def fetch_note(cursor: Cursor, owner: AgentRow, note_id: str, lock: Lock = "") -> Note | None:
    """Return a living note of this owner, locked until the transaction ends if asked for."""
    await cursor.execute(_FETCH + lock, (owner.id, note_id))
    row = await cursor.fetchone()
    return None if row is None else note_of(row, owner.name)


async def fetch_notes(
    cursor: Cursor, owner: AgentRow, note_ids: Sequence[str], lock: Lock = ""
) -> dict[str, Note]:
    """Return those that are there, locked in the order of their ids."""
    await cursor.execute(_FETCH_MANY + lock, (owner.id, list(note_ids)))
    return {row.id: note_of(row, owner.name) for row in await cursor.fetchall()}


def seen_note(note: Note) -> Seen:
    """Return a note as an approval is bound to it."""
    digest = digest_of_parts([msgspec.to_builtins(body_of(note))])
    begins = note.content[:SHOWN_CHARACTERS]
    begins += "" if begins == note.content else " ..."
    return Seen("note", note.id, note.version, digest=digest, name=f"note {note.id}, {begins!r}")


def _first_version(
    owner: AgentRow, note_id: str, body: NoteBody, syscall_id: str
) -> dict[str, object]:
    return {
        "note_id": note_id,
        "version": 1,
        "owner_id": owner.id,
        "by_agent_id": owner.id,
        "operation": "restore",
        "syscall_id": syscall_id,
        "body": as_jsonb(msgspec.to_builtins(body)),
    }


async def enter_restored(
    cursor: Cursor, owner: AgentRow, notes: Mapping[str, NoteBody], syscall_id: str
) -> None:
    """Keep the first versions of notes that were just restored."""
    values = [_first_version(owner, each, body, syscall_id) for each, body in notes.items()]
    await cursor.executemany(_ENTER, values)


async def enter_version(
    cursor: Cursor, owner: AgentRow, note: Note, by: int, operation: Operation, syscall_id: str
) -> list[int]:
    """Keep what a note is now as the version that it has; the oldest beyond a hundred goes.

    Return the versions that are lost by that.
    """
    values = {
        "note_id": note.id,
        "version": note.version,
        "owner_id": owner.id,
        "by_agent_id": by,
        "operation": operation,
        "syscall_id": syscall_id,
        "body": as_jsonb(msgspec.to_builtins(body_of(note))),
    }
    await cursor.execute(_ENTER, values)
    if note.version <= KEPT_VERSIONS:
        return []
    await cursor.execute(_PUSH_OUT, {"note": note.id, "last": note.version - KEPT_VERSIONS})
    return sorted(row.version for row in await cursor.fetchall() if row.is_lost)


async def note_in_version(cursor: Cursor, note: Note, version: int) -> Note:
    """Return a note as it was in a version.

    Raises:
        NotFound: It never had such a version, or has it no more.
    """
    await cursor.execute(
        "SELECT body, extract(epoch FROM at)::float8 AS at FROM note_version "
        "WHERE note_id = %s AND version = %s",
        (note.id, version),
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFound(
            f"the note has no version {version}", field="version", remedy="see memory.history"
        )
    return as_version(note, version, row.body, row.at)


def as_version(note: Note, version: int, body: dict[str, Any], at: float) -> Note:
    """Return a note with the body that a version of it had."""
    old = msgspec.structs.asdict(msgspec.convert(body, NoteBody))
    return msgspec.structs.replace(note, version=version, updated_at=at, **old)


@dataclass(frozen=True, slots=True)
class BlockShape:
    """How large a block is, and how its notes are chosen to leave it."""

    limit_bytes: int = DEFAULT_BLOCK_BYTES
    k: int = 2
    correlated_s: float = 1.0
    high: float = 0.8
    low: float = 0.6


async def shape_of_block(cursor: Cursor, owner: AgentRow, lock: Lock = "") -> BlockShape:
    """Return what an agent's block is to be like."""
    await cursor.execute(
        "SELECT limit_bytes, k, correlated_s, high, low FROM memory_block WHERE owner_id = %s "
        + lock,
        (owner.id,),
    )
    row = await cursor.fetchone()
    if row is None:
        return BlockShape()
    return BlockShape(row.limit_bytes, row.k, row.correlated_s, row.high, row.low)
