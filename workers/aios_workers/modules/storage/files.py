"""Files: made, read, written."""

from __future__ import annotations

import difflib

from aios_broker.contract.errors import VersionConflict
from aios_broker.contract.files import Content, Entry
from aios_broker.contract.storage import (
    MAX_FILE_BYTES,
    StorageAppend,
    StorageCreate,
    StorageRead,
    StorageStat,
    StorageWrite,
)
from aios_workers.modules.storage.change import AnyWork, FileWork
from aios_workers.modules.storage.contents import (
    check_size,
    content_bytes,
    digest_of,
    shown,
    text_of,
)
from aios_workers.modules.storage.directories import directory_for
from aios_workers.modules.storage.mounts import (
    append_mounted,
    read_mounted,
    stat_mounted,
    unversioned,
    write_mounted,
)
from aios_workers.modules.storage.namespace import (
    FileRow,
    ResolvedPath,
    check_free_way,
    check_unlocked,
    directory_entry,
    file_at,
    file_entry,
    look_up,
    not_found,
    require,
    taken,
)
from aios_workers.modules.storage.versions import (
    VersionOperation,
    add_version,
    content_of,
    insert_file,
)

MAX_DIFF_CHARACTERS = 20_000  # of one that a person is shown
MAX_COMPARED_BYTES = 256 * 1024  # of either side: comparing takes time that others wait for


async def create(work: FileWork[StorageCreate]) -> Entry:
    """Make a new file."""
    body = work.body
    content = content_bytes(body.content, body.encoding)
    where = await _changeable(work, body.path)
    if where.mount is not None:
        return await write_mounted(work, where, content, is_new=True)
    if not where.is_free:
        raise taken(where)
    return await _make(work, where, content, "create")


async def write(work: FileWork[StorageWrite]) -> Entry:
    """Replace the content of a file, or make the file."""
    body = work.body
    content = content_bytes(body.content, body.encoding)
    where = await _changeable(work, body.path)
    if where.mount is not None:
        if body.if_version is not None:
            raise unversioned(where)
        return await write_mounted(work, where, content, is_new=False)
    if where.directory is not None:
        raise taken(where)
    check_version(where.path, where.file.version if where.file else 0, body.if_version)
    if where.file is None:
        return await _make(work, where, content, "write")
    check_unlocked(work, where.file)
    await check_overwrite(work, where.file, content)
    return file_entry(await add_version(work, where.file, content, "write"), work.owner)


async def append(work: FileWork[StorageAppend]) -> Entry:
    """Add to the end of a file, or make the file."""
    body = work.body
    added = content_bytes(body.content, body.encoding)
    where = await _changeable(work, body.path)
    if where.mount is not None:
        return await append_mounted(work, where, added, MAX_FILE_BYTES)
    if where.directory is not None:
        raise taken(where)
    if where.file is None:
        return await _make(work, where, added, "append")
    check_unlocked(work, where.file)
    check_size(where.file.size_bytes + len(added))
    before = await content_of(work, where.file)
    changed = await add_version(work, where.file, before.content + added, "append")
    return file_entry(changed, work.owner)


async def read(work: FileWork[StorageRead]) -> Content:
    """Return a file's content, or a part of it."""
    body = work.body
    where = await look_up(work, body.path)
    await require(work, where, "read")
    if where.mount is not None:
        return await read_mounted(work, where, body)
    return await shown_file(work, file_at(where), body)


async def shown_file(work: AnyWork, file: FileRow, body: StorageRead) -> Content:
    """Return the part of a file that a body asks for."""
    piece = await content_of(work, file, body.version, offset=body.offset, max_bytes=body.max_bytes)
    content = piece.content
    is_end = body.offset + len(content) >= piece.size_bytes
    text, encoding, used_bytes = shown(content, is_end=is_end)
    return Content(
        path=file.path,
        version=body.version or file.version,
        content=text,
        encoding=encoding,
        size_bytes=piece.size_bytes,
        offset=body.offset,
        end=is_end and used_bytes == len(content),
    )


async def stat(work: FileWork[StorageStat]) -> Entry:
    """Return what is known of a file or a directory."""
    body = work.body
    where = await look_up(work, body.path)
    await require(work, where, "read")
    if where.mount is not None:
        return await stat_mounted(work, where)
    if where.directory is not None:
        return directory_entry(where.directory, work.owner)
    if where.file is None:
        raise not_found(where)
    return file_entry(where.file, work.owner)


def check_version(path: str, version: int, asked: int | None) -> None:
    """Refuse a change that was meant for another version; 0 is that of a file that is not there.

    Raises:
        VersionConflict: It names both.
    """
    if asked is not None and asked != version:
        raise VersionConflict(
            f"{path} is at version {version}, not {asked}",
            field="body.if_version",
            remedy="read it again, and decide anew",
        )


async def check_overwrite(work: AnyWork, file: FileRow, content: bytes) -> None:
    """Let a person decide before other content takes the place of what is there."""
    lossy = file.size_bytes > 0 and file.sha256 != digest_of(content)
    what = (
        f"overwrite {file.path} of {work.owner.name} (version {file.version}, "
        f"{file.size_bytes} bytes) with {len(content)} bytes"
    )

    async def diff() -> str:
        before = await content_of(work, file)
        return shown_diff(before.content, content, file.path) if lossy else ""

    await work.confirm_on("overwrite", what, [file.path], lossy=lossy, diff=diff)


def shown_diff(a: bytes, b: bytes, path: str) -> str:
    """Return what a person is shown of a change of a file."""
    return (unified(a, b, path, path) or "")[:MAX_DIFF_CHARACTERS]


def unified(a: bytes, b: bytes, name_a: str, name_b: str) -> str | None:
    """Return the unified diff of two contents; None: one is not text, or too long."""
    old, new = text_of(a), text_of(b)
    if old is None or new is None or max(len(a), len(b)) > MAX_COMPARED_BYTES:
        return None
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), name_a, name_b
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


async def _changeable(work: AnyWork, path: str) -> ResolvedPath:
    """Return a where at which the asker may write."""
    where = await look_up(work, path)
    await require(work, where, "write")  # before anything is said of what is there
    check_free_way(where)
    return where


async def _make(
    work: AnyWork, where: ResolvedPath, content: bytes, operation: VersionOperation
) -> Entry:
    check_size(len(content))
    directory = await directory_for(work, where)
    file = await insert_file(work, directory.id, where.path, content, operation)
    return file_entry(file, work.owner)
