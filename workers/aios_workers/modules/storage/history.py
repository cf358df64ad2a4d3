"""What a file was: its versions, what changed between two, and back to one of them."""

from __future__ import annotations

import asyncio

from aios_broker.contract.errors import InvalidSyscall, NotFound
from aios_broker.contract.files import Diff, Entry, FileVersion, FileVersions
from aios_broker.contract.storage import StorageDiff, StorageRollback, StorageVersions
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.files import MAX_COMPARED_BYTES, shown_diff, unified
from aios_workers.modules.storage.namespace import (
    FileRow,
    check_unlocked,
    file_at,
    file_entry,
    look_up,
    require,
)
from aios_workers.modules.storage.versions import add_version, content_of, no_version

_VERSIONS = """
    SELECT v.version, v.at, v.operation, v.size_bytes, v.sha256, v.syscall_id,
           (SELECT a.name FROM agent a WHERE a.id = v.by_agent_id) AS by
      FROM file_version v WHERE v.file_id = %(file)s ORDER BY v.version DESC LIMIT %(limit)s
"""
_VERSION_AT = """
    SELECT max(version) AS version FROM file_version
     WHERE file_id = %(file)s AND at <= to_timestamp(%(at)s)
"""
_NEWER = """
    SELECT (SELECT sha256 FROM file_version WHERE file_id = %(file)s AND version = %(version)s)
               AS sha256,
           EXISTS (SELECT FROM file_version n
                    WHERE n.file_id = %(file)s AND n.version > %(version)s
                      AND n.sha256 <> (SELECT sha256 FROM file_version
                                        WHERE file_id = %(file)s AND version = %(version)s)
           ) AS has_other
"""


async def versions(work: FileWork[StorageVersions]) -> FileVersions:
    """List the versions of a file, newest first."""
    body = work.body
    file = await _readable(work, body.path)
    rows = await work.rows(_VERSIONS, {"file": file.id, "limit": body.limit})
    return FileVersions(
        tuple(
            FileVersion(
                row.version,
                row.at.timestamp(),
                row.by or "another agent",
                row.operation,
                row.size_bytes,
                row.sha256,
                row.syscall_id,
            )
            for row in rows
        )
    )


async def diff(work: FileWork[StorageDiff]) -> Diff:
    """Return what changed between two versions of a text file."""
    body = work.body
    file = await _readable(work, body.path)
    b = file.version if body.b is None else body.b
    old, new = await content_of(work, file, body.a), await content_of(work, file, b)
    names = (f"{file.path}@{body.a}", f"{file.path}@{b}")
    text = await asyncio.to_thread(unified, old.content, new.content, *names)
    if text is None:
        raise InvalidSyscall(
            f"{file.path} is not UTF-8 text of at most {MAX_COMPARED_BYTES} bytes in both versions",
            field="body.path",
            remedy="read both versions and compare them yourself",
        )
    return Diff(file.path, body.a, b, text)


async def rollback(work: FileWork[StorageRollback]) -> Entry:
    """Make an older version the newest one."""
    body = work.body
    if (body.version is None) == (body.at is None):
        raise InvalidSyscall(
            "exactly one of version and at is given",
            field="body.version",
            remedy="give the version, or the time",
        )
    where = await look_up(work, body.path)
    await require(work, where, "write")
    file = file_at(where)
    check_unlocked(work, file)
    version = await _version_of(work, file, body)
    [row] = await work.rows(_NEWER, {"file": file.id, "version": version})
    if row.sha256 is None:
        raise no_version(file, version)
    old = await content_of(work, file, version)
    if row.has_other:
        what = (
            f"roll {file.path} of {work.owner.name} back from version {file.version} to {version}"
        )

        async def diff() -> str:
            now = await content_of(work, file)
            return shown_diff(now.content, old.content, file.path)

        await work.confirm_on("rollback", what, [file.path], diff=diff)
    return file_entry(await add_version(work, file, old.content, "rollback"), work.owner)


async def _version_of(work: AnyWork, file: FileRow, body: StorageRollback) -> int:
    if body.version is not None:
        return body.version
    [row] = await work.rows(_VERSION_AT, {"file": file.id, "at": body.at})
    if row.version is None:
        raise NotFound(
            f"{file.path} has no version of that time",
            field="body.at",
            remedy="look at what there is: storage.versions",
        )
    return int(row.version)


async def _readable(work: AnyWork, path: str) -> FileRow:
    where = await look_up(work, path)
    await require(work, where, "read")
    return file_at(where)
