"""Content of files in Postgres: a version for each change, each content once, the quota kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aios_broker.contract.errors import AccessDenied, NotFound, QuotaExceeded
from aios_workers.modules.storage.change import AnyWork
from aios_workers.modules.storage.contents import digest_of, text_of
from aios_workers.modules.storage.cutting import parts_of
from aios_workers.modules.storage.namespace import FileRow, file_row

VersionOperation = Literal["create", "write", "append", "copy", "rollback"]

# What search looks at, as the two statements below write it: the vectors follow (a duty of the
# worker makes them).
_NEW_PARTS = """
    WITH new_parts AS (
        SELECT p.ordinal - 1 AS ordinal, p.start, p.text, to_tsvector('english', p.text) AS words
          FROM unnest(%(starts)s::int[], %(texts)s::text[])
               WITH ORDINALITY AS p(start, text, ordinal)
    )"""
_INSERT_FILE = f"""{_NEW_PARTS}, f AS (
        INSERT INTO file (tenant_id, owner_id, directory_id, path, version, size_bytes, sha256)
        VALUES (%(tenant)s, %(owner)s, %(directory)s, %(path)s, 1, %(size)s, %(sha)s)
        RETURNING *
    ), v AS (
        INSERT INTO file_version (file_id, version, owner_id, sha256, size_bytes, by_agent_id,
                                  operation, syscall_id)
        SELECT f.id, 1, f.owner_id, f.sha256, f.size_bytes, %(by)s, %(operation)s, %(syscall)s
          FROM f
    ), parts AS (
        INSERT INTO file_chunk (file_id, ordinal, owner_id, version, start, text, words)
        SELECT f.id, p.ordinal, f.owner_id, f.version, p.start, p.text, p.words FROM f, new_parts p
    )
    SELECT f.*, NULL::text AS locker, '{{}}'::text[] AS dropped FROM f
"""
_NEXT_VERSION = f"""{_NEW_PARTS}, f AS (
        UPDATE file SET version = version + 1, size_bytes = %(size)s, sha256 = %(sha)s,
                        updated_at = now()
         WHERE id = %(file)s RETURNING *
    ), v AS (
        INSERT INTO file_version (file_id, version, owner_id, sha256, size_bytes, by_agent_id,
                                  operation, syscall_id)
        SELECT f.id, f.version, f.owner_id, f.sha256, f.size_bytes, %(by)s, %(operation)s,
               %(syscall)s FROM f
    ), dropped AS (
        DELETE FROM file_version WHERE file_id = %(file)s
           AND version <= (SELECT version FROM f) - %(keep)s RETURNING sha256
    ), fewer AS (
        DELETE FROM file_chunk
         WHERE file_id = (SELECT id FROM f) AND ordinal >= cardinality(%(starts)s::int[])
    ), parts AS (
        INSERT INTO file_chunk (file_id, ordinal, owner_id, version, start, text, words)
        SELECT f.id, p.ordinal, f.owner_id, f.version, p.start, p.text, p.words FROM f, new_parts p
        ON CONFLICT (file_id, ordinal) DO UPDATE
           SET version = excluded.version, start = excluded.start, text = excluded.text,
               words = excluded.words, model_id = NULL, vector = NULL
    )
    SELECT f.*, (SELECT a.name FROM agent a WHERE a.id = f.locked_by) AS locker,
           ARRAY(SELECT sha256 FROM dropped) AS dropped FROM f
"""
# The version rows are written before: content that none has any more goes, and the owner's
# account moves by what came and what went. No row: it would be over the limit.
_SETTLE = """
    WITH came AS (
        INSERT INTO blob (owner_id, sha256, bytes, size_bytes)
        SELECT %(owner)s, %(sha)s, %(bytes)s::bytea, octet_length(%(bytes)s::bytea)
         WHERE %(bytes)s::bytea IS NOT NULL
        ON CONFLICT (owner_id, sha256) DO NOTHING RETURNING size_bytes
    ), went AS (
        DELETE FROM blob b WHERE b.owner_id = %(owner)s AND b.sha256 = ANY(%(gone)s)
           AND NOT EXISTS (SELECT FROM file_version v
                            WHERE v.owner_id = b.owner_id AND v.sha256 = b.sha256)
        RETURNING size_bytes
    ), moved AS (
        SELECT (SELECT coalesce(sum(size_bytes), 0) FROM came)
             - (SELECT coalesce(sum(size_bytes), 0) FROM went) AS by_bytes
    )
    UPDATE agent a SET storage_used_bytes = a.storage_used_bytes + m.by_bytes
      FROM moved m WHERE a.id = %(owner)s AND (m.by_bytes <= 0
           OR a.storage_used_bytes + m.by_bytes <= coalesce(a.storage_limit_bytes, %(limit)s))
    RETURNING a.storage_used_bytes
"""
_CONTENT = """
    SELECT substring(b.bytes FROM %(from)s FOR %(count)s) AS bytes, v.size_bytes, v.sha256
      FROM file_version v JOIN blob b ON b.owner_id = v.owner_id AND b.sha256 = v.sha256
     WHERE v.file_id = %(file)s AND v.version = %(version)s
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the content of one version."""

    content: bytes
    size_bytes: int  # of all of it


async def insert_file(
    work: AnyWork, directory_id: int, path: str, content: bytes, operation: VersionOperation
) -> FileRow:
    """Make a file with its first version.

    Raises:
        QuotaExceeded: The owner of the namespace has no room for it.
    """
    values = _version_values(work, content, operation)
    rows = await work.rows(_INSERT_FILE, values | {"directory": directory_id, "path": path})
    file = file_row(rows[0])
    await settle(work, content=content)
    return file


async def add_version(
    work: AnyWork, file: FileRow, content: bytes, operation: VersionOperation
) -> FileRow:
    """Give a file its next version; versions over the limit of the operator go.

    Raises:
        QuotaExceeded: The owner of the namespace has no room for it.
    """
    values = _version_values(work, content, operation)
    rows = await work.rows(
        _NEXT_VERSION, values | {"file": file.id, "keep": work.limits.keep_versions}
    )
    if not rows:
        raise AccessDenied(
            f"{file.path} is {work.owner.name}'s, and no grant allows this",
            field="owner",
            remedy="ask its owner for a grant (access.grant)",
        )
    changed = file_row(rows[0])
    await settle(work, content=content, gone=rows[0].dropped)
    return changed


async def settle(work: AnyWork, *, content: bytes | None = None, gone: Sequence[str] = ()) -> None:
    """Keep new content, free content that no version has any more, and keep the owner's account.

    Raises:
        QuotaExceeded: The owner would be over its limit.
    """
    rows = await work.kernel_rows(
        _SETTLE,
        {
            "owner": work.owner.id,
            "sha": None if content is None else digest_of(content),
            "bytes": content,
            "gone": list(gone),
            "limit": work.limits.max_bytes,
        },
    )
    if not rows:
        raise over_quota(work)


def over_quota(work: AnyWork) -> QuotaExceeded:
    """Return the error of an owner who has no room left."""
    return QuotaExceeded(
        f"{work.owner.name} has no room for it in storage; old versions count too",
        field="AIOS_STORAGE_MAX_BYTES",
        remedy="delete files (storage.delete), or have the operator raise the limit",
    )


async def content_of(
    work: AnyWork,
    file: FileRow,
    version: int | None = None,
    *,
    offset: int = 0,
    max_bytes: int | None = None,
) -> Piece:
    """Return the content of a version of a file, or a part of it.

    Raises:
        NotFound: There is no such version, or none any more.
    """
    asked = file.version if version is None else version
    rows = await work.rows(
        _CONTENT,
        {
            "file": file.id,
            "version": asked,
            "from": min(offset, 2**31 - 2) + 1,
            "count": 2**30 if max_bytes is None else max_bytes,
        },
    )
    if not rows:
        raise no_version(file, asked)
    return Piece(bytes(rows[0].bytes), rows[0].size_bytes)


def no_version(file: FileRow, version: int) -> NotFound:
    """Return the error of a version that is not there."""
    return NotFound(
        f"{file.path} has no version {version}; the newest is {file.version}",
        field="body.version",
        remedy="look at what there is: storage.versions",
    )


def _version_values(
    work: AnyWork, content: bytes, operation: VersionOperation
) -> dict[str, object]:
    text = text_of(content)
    parts = parts_of(text) if text else []
    return {
        "tenant": work.owner.tenant_id,
        "owner": work.owner.id,
        "by": work.agent.id,
        "size": len(content),
        "sha": digest_of(content),
        "operation": operation,
        "syscall": work.asked.syscall.id,
        "starts": [part.start for part in parts],
        "texts": [part.text for part in parts],
    }
