"""Content of files: bytes on the wire, versions in Postgres, and the parts that search looks at.

It is text where it is text, else base64, and never changed. There is a version for each change;
each content is kept once, and the owner's quota with it.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aios_broker.access.links import CONTENT, content_values
from aios_broker.contract.errors import AccessDenied, InvalidSyscall, NotFound
from aios_broker.contract.limits import limit_met
from aios_broker.contract.storage import MAX_FILE_BYTES, Encoding
from aios_workers.approvals.irreversible import Seen
from aios_workers.modules.storage.namespace import (
    FILE,
    AnyWork,
    Node,
    node_of,
    seen_file,
    seen_version,
)

VersionOperation = Literal["create", "write", "append", "copy", "rollback"]

_LONGEST_CHARACTER_BYTES = 4
PART_CHARACTERS = 1_000
OVERLAP_CHARACTERS = 100  # a sentence on a border is whole in one of the two
MAX_PARTS = 2_000  # about 1.8 MB of text; what comes after is not searched

# Where a part may end, the best first; all are looked for in the part's last third.
_BORDERS = ("\n\n", "\n", ". ", "! ", "? ", " ")
# What search looks at, as the two statements below write it: the vectors follow
# (`search/indexing.py`).
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
    SELECT {FILE}, '{{}}'::text[] AS dropped FROM f
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
    SELECT {FILE}, ARRAY(SELECT sha256 FROM dropped) AS dropped FROM f
"""
# Versions that the next one pushes out of those that are kept, newest first. What one was is kept
# where another has its content, or where what follows it only appends.
_PUSHED_OUT = """
    SELECT v.version, v.sha256, v.size_bytes,
           coalesce((SELECT n.operation FROM file_version n
                      WHERE n.file_id = v.file_id AND n.version > v.version
                      ORDER BY n.version LIMIT 1), %(operation)s) AS next_operation,
           v.sha256 = %(sha)s OR EXISTS (
               SELECT FROM file_version k WHERE k.file_id = v.file_id
                  AND k.version > %(last)s AND k.sha256 = v.sha256) AS is_kept
      FROM file_version v WHERE v.file_id = %(file)s AND v.version <= %(last)s
     ORDER BY v.version DESC
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
             - (SELECT coalesce(sum(size_bytes), 0) FROM went) AS by_bytes,
               coalesce((SELECT aios_most(o.id, o.tenant_id, 'file_bytes') FROM agent o
                          WHERE o.id = %(owner)s), %(limit)s) AS most
    )
    UPDATE agent a SET storage_used_bytes = a.storage_used_bytes + m.by_bytes
      FROM moved m WHERE a.id = %(owner)s AND (m.by_bytes <= 0
           OR a.storage_used_bytes + m.by_bytes <= m.most)
    RETURNING a.storage_used_bytes
"""
_MOST = "SELECT aios_most(id, tenant_id, 'file_bytes') AS most FROM agent WHERE id = %s"


def content_bytes(content: str, encoding: Encoding) -> bytes:
    """Return the bytes that a body carries.

    Raises:
        InvalidSyscall: It is not base64, or not text that UTF-8 can hold.
    """
    try:
        if encoding == "base64":
            return base64.b64decode(content, validate=True)
        return content.encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidSyscall(
            f"not {encoding}: {error}",
            field="body.content",
            remedy="encode bytes in standard base64 with padding, and set encoding to base64",
        ) from error


def check_size(size_bytes: int) -> None:
    """Refuse what is too large for one file.

    Raises:
        InvalidSyscall: It is over MAX_FILE_BYTES.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise InvalidSyscall(
            f"the file would have {size_bytes} bytes, the limit is {MAX_FILE_BYTES}",
            field="body.content",
            remedy="split it over several files",
        )


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of content, in hex."""
    return hashlib.sha256(content).hexdigest()


def text_of(content: bytes) -> str | None:
    """Return the text that content is; None: not UTF-8, or nothing Postgres keeps as text."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\x00" in text else text


def shown(part: bytes, *, is_end: bool) -> tuple[str, Encoding, int]:
    """Return a part of a file for the wire, its encoding, and how many of its bytes that are.

    A character that the end of the part cuts is left for the next one.
    """
    kept = part if is_end else part[: len(part) - _cut_bytes(part)]
    if kept or not part:
        try:
            return kept.decode(), "utf-8", len(kept)
        except UnicodeDecodeError:
            pass
    return base64.b64encode(part).decode(), "base64", len(part)


def _cut_bytes(part: bytes) -> int:
    """Return how many bytes at the end belong to a character that is not complete."""
    for back in range(1, min(_LONGEST_CHARACTER_BYTES, len(part) + 1)):
        byte = part[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue  # in the middle of a character
        width = 4 if byte >= 0b1111_0000 else 3 if byte >= 0b1110_0000 else 2
        return back if byte >= 0b1100_0000 and back < width else 0
    return 0


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text, and where it starts, in characters."""

    start: int
    text: str


def parts_of(text: str) -> list[Part]:
    """Return the parts of a text, in order; together they hold all of it, up to MAX_PARTS."""
    return [part for part, _ in zip(_parts(text), range(MAX_PARTS), strict=False)]


def _parts(text: str) -> Iterator[Part]:
    start = 0
    while start < len(text):
        end = _end_of_part(text, start)
        if piece := text[start:end]:
            yield Part(start, piece)
        if end >= len(text):
            return
        start = _start_after(text, start, end)


def _end_of_part(text: str, start: int) -> int:
    limit = start + PART_CHARACTERS
    if limit >= len(text):
        return len(text)
    earliest = limit - PART_CHARACTERS // 3
    for border in _BORDERS:
        at = text.rfind(border, earliest, limit)
        if at >= 0:
            return at + len(border)
    return limit


def _start_after(text: str, start: int, end: int) -> int:
    """Go back by the overlap, to the beginning of a word where there is one."""
    at = text.find(" ", max(start + 1, end - OVERLAP_CHARACTERS), end - 1)
    return at + 1 if at >= 0 else max(start + 1, end - OVERLAP_CHARACTERS)


async def insert_file(
    work: AnyWork, directory_id: int, path: str, content: bytes, operation: VersionOperation
) -> Node:
    """Make a file with its first version.

    Raises:
        QuotaExceeded: The owner of the namespace has no room for it.
    """
    values = _version_values(work, content, operation)
    rows = await work.rows(_INSERT_FILE, values | {"directory": directory_id, "path": path})
    file = node_of(rows[0])
    work.pending.made_files.add(file.id)
    await settle_account(work, content=content)
    return file


async def add_version(
    work: AnyWork, file: Node, content: bytes, operation: VersionOperation
) -> Node:
    """Give a file its next version; versions over the limit of the operator are taken away.

    Raises:
        QuotaExceeded: The owner of the namespace has no room for it.
    """
    values = _version_values(work, content, operation)
    values |= {"file": file.id, "keep": work.services.limits.keep_versions}
    await _push_out(work, file, values)
    rows = await work.rows(_NEXT_VERSION, values)
    if not rows:
        raise AccessDenied(
            f"{file.path} is {work.owner.name}'s, and no grant allows this",
            field="owner",
            remedy="ask its owner for a grant (access.grant)",
        )
    changed = node_of(rows[0])
    await settle_account(work, content=content, gone=rows[0].dropped)
    return changed


async def _push_out(work: AnyWork, file: Node, values: dict[str, Any]) -> None:
    """Take away what the next version of a file leaves no trace of."""
    last = file.version + 1 - values["keep"]
    if last < 1:
        return
    lost: list[Seen] = []
    is_safe = True  # whether the version after this one stays, in itself or in another
    for row in await work.rows(_PUSHED_OUT, values | {"last": last}):
        goes_on = row.next_operation == "append" and is_safe
        is_safe = row.is_kept or row.size_bytes == 0 or goes_on
        if not is_safe:
            lost.append(seen_version(file, row.version, row.sha256, row.size_bytes))
    if lost:
        numbers = ", ".join(str(each.version) for each in reversed(lost))
        what = f"push version {numbers} of {file.path} out of the {values['keep']} that are kept"
        await work.take_at("overwrite", what, file.path, (seen_file(file), *lost))


async def settle_account(
    work: AnyWork, *, content: bytes | None = None, gone: Sequence[str] = ()
) -> None:
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
            "limit": work.services.limits.max_bytes,
        },
    )
    if not rows:
        [said] = await work.kernel_rows(_MOST, (work.owner.id,))
        most = work.services.limits.max_bytes if said.most is None else said.most
        raise limit_met("file_bytes", f"agent {work.owner.name}", most)


async def content_of(work: AnyWork, file: Node, version: int | None = None) -> bytes:
    """Return the content of a version of a file.

    Raises:
        NotFound: There is no such version, or none any more.
    """
    content, _ = await part_of(work, file, version)
    return content


async def part_of(
    work: AnyWork,
    file: Node,
    version: int | None,
    *,
    offset: int = 0,
    max_bytes: int | None = None,
) -> tuple[bytes, int]:
    """Return a part of the content of a version, and the size of all of it."""
    asked = file.version if version is None else version
    count = 2**30 if max_bytes is None else max_bytes
    rows = await work.rows(CONTENT, content_values(file.id, asked, offset, count))
    if not rows:
        raise no_version(file, asked)
    return bytes(rows[0].bytes), rows[0].size_bytes


def no_version(file: Node, version: int) -> NotFound:
    """Return the error of a version that is not there."""
    return NotFound(
        f"{file.path} has no version {version}; the newest is {file.version}",
        field="body.version",
        remedy="look at what there is: storage.versions",
    )


def _version_values(work: AnyWork, content: bytes, operation: VersionOperation) -> dict[str, Any]:
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
