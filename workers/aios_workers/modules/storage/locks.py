"""Locks of files: others change them only when they are free again, or when the time is over."""

from __future__ import annotations

from aios_broker.contract.files import Entry
from aios_broker.contract.storage import StorageLock, StorageUnlock
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.namespace import (
    FileRow,
    check_unlocked,
    file_at,
    file_entry,
    file_row,
    look_up,
    require,
)

_SET = """
    UPDATE file SET locked_by = %(by)s, locked_until = now() + make_interval(secs => %(ttl)s)
     WHERE id = %(file)s
    RETURNING *, (SELECT a.name FROM agent a WHERE a.id = %(by)s) AS locker
"""
_FREE = """
    UPDATE file SET locked_by = NULL, locked_until = NULL WHERE id = %(file)s
    RETURNING *, NULL::text AS locker
"""


async def lock(work: FileWork[StorageLock]) -> Entry:
    """Keep others from changing a file for some time."""
    body = work.body
    file = await _changeable(work, body.path)
    rows = await work.rows(_SET, {"file": file.id, "by": work.agent.id, "ttl": body.ttl_s})
    return file_entry(file_row(rows[0]), work.owner)


async def unlock(work: FileWork[StorageUnlock]) -> Entry:
    """Let others change it again; one that is free stays so."""
    body = work.body
    file = await _changeable(work, body.path)
    rows = await work.rows(_FREE, {"file": file.id})
    return file_entry(file_row(rows[0]), work.owner)


async def _changeable(work: AnyWork, path: str) -> FileRow:
    """Return a file that nobody else has locked."""
    where = await look_up(work, path)
    await require(work, where, "write")
    file = file_at(where)
    check_unlocked(work, file)
    return file
