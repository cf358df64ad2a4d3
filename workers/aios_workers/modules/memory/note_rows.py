"""Notes in Postgres: rows, their versions, and the shapes of blocks. The truth about them.

A note that has expired is not there, whether it is deleted yet or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from psycopg.types.json import Jsonb

from aios_broker.contract.memory import Note, NoteVersion
from aios_broker.postgres.session import AgentRow, Cursor, only_row
from aios_workers.modules.memory.block import BlockShape

Lock = Literal["", "FOR SHARE", "FOR UPDATE"]
Operation = Literal["add", "update", "rollback", "evolve", "undo"]
KEPT_VERSIONS = 100  # of a note; older ones go with the next change

_COLUMNS = """
    n.id, n.owner_id, n.seq, n.content, n.keywords, n.tags, n.category, n.context, n.links,
    n.metadata, n.version, extract(epoch FROM n.created_at)::float8 AS created_at,
    extract(epoch FROM n.updated_at)::float8 AS updated_at,
    extract(epoch FROM n.expires_at)::float8 AS expires_at
"""
_LIVING = "(n.expires_at IS NULL OR n.expires_at > now())"
_FETCH = f"SELECT {_COLUMNS} FROM note n WHERE n.owner_id = %s AND n.id = %s AND {_LIVING} "
_FETCH_MANY = (
    f"SELECT {_COLUMNS} FROM note n WHERE n.owner_id = %s AND n.id = ANY(%s) AND {_LIVING} "
    "ORDER BY n.id "
)
_SEEN = (
    f"SELECT {_COLUMNS}, a.name AS owner_name FROM note n JOIN agent a ON a.id = n.owner_id "
    f"WHERE n.id = ANY(%s) AND {_LIVING}"
)
_INSERT = f"""
    INSERT INTO note AS n (id, tenant_id, owner_id, program, content, keywords, tags, category,
                           context, links, metadata, expires_at, words)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, now() + %s * interval '1 second',
            to_tsvector('english', %s))
    RETURNING {_COLUMNS}
"""
_REWRITE = f"""
    UPDATE note AS n SET content = %s, keywords = %s, tags = %s, category = %s, context = %s,
        links = %s, metadata = %s, version = n.version + 1, updated_at = clock_timestamp(),
        words = to_tsvector('english', %s), model_id = NULL, vector = NULL
    WHERE n.id = %s RETURNING {_COLUMNS}
"""
_PAGE = f"""
    SELECT {_COLUMNS} FROM note n
    WHERE n.owner_id = %(owner)s AND {_LIVING} AND n.tags @> %(tags)s
      AND (%(category)s::text IS NULL OR n.category = %(category)s)
      AND n.seq > coalesce((SELECT seq FROM note WHERE id = %(after)s), 0)
      AND (%(ids)s::text[] IS NULL OR n.id = ANY(%(ids)s))
    ORDER BY n.seq LIMIT %(limit)s
"""
_VERSIONS = f"""
    SELECT v.version, extract(epoch FROM v.at)::float8 AS at, v.by_agent_id, v.operation,
           v.syscall_id, v.body,
           (SELECT name FROM agent WHERE id = v.by_agent_id) AS by_name
    FROM note_version v WHERE v.note_id = %s ORDER BY v.version DESC LIMIT {KEPT_VERSIONS}
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


def body_of(note: Note) -> NoteBody:
    """Return what versions keep of a note."""
    return NoteBody(
        note.content,
        note.keywords,
        note.tags,
        note.category,
        note.context,
        note.links,
        note.metadata,
    )


def note_of(row: Any, owner: str) -> Note:  # noqa: ANN401  a row of psycopg's
    """Return a row as what agents get."""
    return Note(
        id=row.id,
        owner=owner,
        content=row.content,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
        keywords=tuple(row.keywords),
        tags=tuple(row.tags),
        category=row.category,
        context=row.context,
        links=tuple(row.links),
        metadata=row.metadata,
        expires_at=row.expires_at,
    )


def _fields(body: NoteBody) -> tuple[object, ...]:
    return (
        body.content,
        list(body.keywords),
        list(body.tags),
        body.category,
        body.context,
        list(body.links),
        Jsonb(body.metadata),
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


async def fetch_seen(cursor: Cursor, note_ids: Sequence[str]) -> dict[str, Note]:
    """Return those, of whomever, that the cursor's agent may see."""
    await cursor.execute(_SEEN, (list(note_ids),))
    return {row.id: note_of(row, row.owner_name) for row in await cursor.fetchall()}


async def evolved_by(cursor: Cursor, owner: AgentRow, syscall_id: str) -> dict[str, int]:
    """Return the notes of an owner that an evolution rewrote, and the version that made of each."""
    await cursor.execute(
        "SELECT note_id, version FROM note_version WHERE syscall_id = %s AND owner_id = %s "
        "AND operation = 'evolve'",
        (syscall_id, owner.id),
    )
    return {row.note_id: row.version for row in await cursor.fetchall()}


async def insert_note(
    cursor: Cursor,
    owner: AgentRow,
    note_id: str,
    body: NoteBody,
    *,
    program: str,
    ttl_s: float | None,
) -> Note:
    """Insert a new note; its version is for `enter_version`."""
    await cursor.execute(
        _INSERT,
        (note_id, owner.tenant_id, owner.id, program, *_fields(body), ttl_s, body.search_text),
    )
    return note_of(await cursor.fetchone(), owner.name)


async def rewrite_note(cursor: Cursor, owner: AgentRow, note_id: str, body: NoteBody) -> Note:
    """Change a note whose row is locked; it is one version on, and to be embedded again."""
    await cursor.execute(_REWRITE, (*_fields(body), body.search_text, note_id))
    return note_of(await cursor.fetchone(), owner.name)


async def enter_version(
    cursor: Cursor,
    owner: AgentRow,
    note: Note,
    *,
    by: AgentRow,
    operation: Operation,
    syscall_id: str,
) -> None:
    """Keep what a note is now as the version that it has; the oldest beyond a hundred goes."""
    await cursor.execute(
        "INSERT INTO note_version (note_id, version, owner_id, by_agent_id, operation, syscall_id, "
        "body) VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (
            note.id,
            note.version,
            owner.id,
            by.id,
            operation,
            syscall_id,
            Jsonb(msgspec.to_builtins(body_of(note))),
        ),
    )
    if note.version > KEPT_VERSIONS:
        await cursor.execute(
            "DELETE FROM note_version WHERE note_id = %s AND version <= %s",
            (note.id, note.version - KEPT_VERSIONS),
        )


async def note_versions(cursor: Cursor, note: Note) -> tuple[NoteVersion, ...]:
    """Return a note's versions, newest first."""
    await cursor.execute(_VERSIONS, (note.id,))
    return tuple(
        NoteVersion(
            row.version,
            row.at,
            row.by_name or "",
            row.operation,
            row.syscall_id,
            as_version(note, row.version, row.body, row.at),
        )
        for row in await cursor.fetchall()
    )


async def note_in_version(cursor: Cursor, note: Note, version: int) -> Note | None:
    """Return a note as it was in a version; None: it had no such one."""
    await cursor.execute(
        "SELECT body, extract(epoch FROM at)::float8 AS at FROM note_version "
        "WHERE note_id = %s AND version = %s",
        (note.id, version),
    )
    row = await cursor.fetchone()
    return None if row is None else as_version(note, version, row.body, row.at)


def as_version(note: Note, version: int, body: dict[str, Any], at: float) -> Note:
    """Return a note with the body that a version of it had."""
    old = msgspec.convert(body, NoteBody)
    return msgspec.structs.replace(
        note,
        version=version,
        updated_at=at,
        content=old.content,
        keywords=old.keywords,
        tags=old.tags,
        category=old.category,
        context=old.context,
        links=old.links,
        metadata=old.metadata,
    )


async def delete_note(cursor: Cursor, note_id: str) -> None:
    """Delete a note with its versions, and the grants on it."""
    await cursor.execute("DELETE FROM note WHERE id = %s", (note_id,))
    await cursor.execute(
        "DELETE FROM access_grant WHERE object_kind = 'note' AND object_id = %s", (note_id,)
    )


async def delete_all_notes(cursor: Cursor, owner: AgentRow) -> int:
    """Delete all notes of an owner, expired ones too; return how many."""
    await cursor.execute("DELETE FROM note WHERE owner_id = %s", (owner.id,))
    count = cursor.rowcount
    await cursor.execute(
        "DELETE FROM access_grant WHERE object_kind = 'note' AND owner_id = %s", (owner.id,)
    )
    return count


async def count_notes(cursor: Cursor, owner: AgentRow) -> int:
    """Return how many living notes an owner has."""
    await cursor.execute(
        f"SELECT count(*) AS notes FROM note n WHERE n.owner_id = %s AND {_LIVING}", (owner.id,)
    )
    return int((await only_row(cursor)).notes)


async def page_of_notes(  # noqa: PLR0913  what a page is chosen by
    cursor: Cursor,
    owner: AgentRow,
    *,
    tags: Iterable[str],
    category: str | None,
    after: str | None,
    ids: Sequence[str] | None,
    limit: int,
) -> list[Note]:
    """Return the living notes after one of them, oldest first; `ids`: none but these."""
    await cursor.execute(
        _PAGE,
        {
            "owner": owner.id,
            "tags": list(tags),
            "category": category,
            "after": after,
            "ids": None if ids is None else list(ids),
            "limit": limit,
        },
    )
    return [note_of(row, owner.name) for row in await cursor.fetchall()]


async def set_expiry(cursor: Cursor, owner: AgentRow, note_id: str, ttl_s: float | None) -> Note:
    """Let a note whose row is locked expire, or not."""
    await cursor.execute(
        "UPDATE note AS n SET expires_at = clock_timestamp() + %s * interval '1 second' "
        f"WHERE n.id = %s RETURNING {_COLUMNS}",
        (ttl_s, note_id),
    )
    return note_of(await cursor.fetchone(), owner.name)


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


async def set_shape(cursor: Cursor, owner: AgentRow, shape: BlockShape) -> None:
    """Say what an agent's block is to be like."""
    await cursor.execute(
        "INSERT INTO memory_block (owner_id, limit_bytes, k, correlated_s, high, low) "
        "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (owner_id) DO UPDATE SET "
        "limit_bytes = excluded.limit_bytes, k = excluded.k, "
        "correlated_s = excluded.correlated_s, high = excluded.high, low = excluded.low",
        (owner.id, shape.limit_bytes, shape.k, shape.correlated_s, shape.high, shape.low),
    )


async def versions_there(cursor: Cursor, note_ids: Sequence[str]) -> dict[str, int]:
    """Return which version each of these notes has."""
    await cursor.execute("SELECT id, version FROM note WHERE id = ANY(%s)", (list(note_ids),))
    return {row.id: row.version for row in await cursor.fetchall()}


async def write_back(cursor: Cursor, owner: AgentRow, note: Note) -> None:
    """Write a note that the block has and Postgres has not, or only in an older version.

    Nothing of the kernel's brings that about: a database that was restored does.
    """
    body = body_of(note)
    await cursor.execute(
        "INSERT INTO note AS n (id, tenant_id, owner_id, content, keywords, tags, category, "
        "context, links, metadata, version, created_at, updated_at, expires_at, words) VALUES "
        "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), to_timestamp(%s), "
        "to_timestamp(%s), to_tsvector('english', %s)) ON CONFLICT (id) DO UPDATE SET "
        "content = excluded.content, keywords = excluded.keywords, tags = excluded.tags, "
        "category = excluded.category, context = excluded.context, links = excluded.links, "
        "metadata = excluded.metadata, version = excluded.version, words = excluded.words, "
        "updated_at = excluded.updated_at, expires_at = excluded.expires_at, model_id = NULL, "
        "vector = NULL WHERE n.version < excluded.version",
        (
            note.id,
            owner.tenant_id,
            owner.id,
            *_fields(body),
            note.version,
            note.created_at,
            note.updated_at,
            note.expires_at,
            body.search_text,
        ),
    )
    await cursor.execute(
        "INSERT INTO note_version (note_id, version, owner_id, by_agent_id, operation, syscall_id, "
        "body) VALUES (%s, %s, %s, %s, 'update', '', %s) ON CONFLICT DO NOTHING",
        (note.id, note.version, owner.id, owner.id, Jsonb(msgspec.to_builtins(body))),
    )


async def delete_expired(cursor: Cursor, limit: int) -> int:
    """Delete notes that have expired, at most so many; return how many it was."""
    await cursor.execute(
        "WITH gone AS (DELETE FROM note WHERE id IN (SELECT id FROM note WHERE expires_at <= now() "
        "LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id) DELETE FROM access_grant "
        "WHERE object_kind = 'note' AND object_id IN (SELECT id FROM gone)",
        (limit,),
    )
    await cursor.execute("SELECT 1 FROM note WHERE expires_at <= now() LIMIT 1")
    return cursor.rowcount
