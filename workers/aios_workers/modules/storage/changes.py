"""Several files written and deleted in one transaction: all of it happens, or nothing."""

from collections import Counter
from collections.abc import Iterable

from aios_broker.contract.errors import InvalidSyscall, VersionConflict
from aios_broker.contract.storage import (
    Entries,
    Entry,
    FileChange,
    StorageApply,
    StorageDelete,
    StorageWrite,
)
from aios_workers.approvals.irreversible import Irreversible, Seen, digest_of_parts
from aios_workers.modules.storage.files import write
from aios_workers.modules.storage.moves import delete
from aios_workers.modules.storage.namespace import (
    FileWork,
    ResolvedPath,
    permitted_path,
    unversioned,
)

MAX_NAMED = 20  # of those that are not as they were, in the error


async def apply(work: FileWork[StorageApply]) -> Entries:
    """Write and delete the files; each is answered as it is, one that goes as it was.

    Raises:
        VersionConflict: Some are not as they were asked to be; names them all, changes nothing.
    """
    changes = work.body.changes
    found = [await _found(work, at, one) for at, one in enumerate(changes)]
    _refuse_twice(found)
    _check_all(zip(changes, found, strict=True))
    done: dict[int, Entry] = {}
    order = sorted(range(len(changes)), key=lambda at: changes[at].content is not None)
    for at in order:  # what goes, first: it may stand in the way of what comes
        done[at] = await _changed(work, changes[at])
    _show_all(work, changes, found)
    return Entries(tuple(done[at] for at in range(len(changes))))


async def _found(work: FileWork[StorageApply], at: int, change: FileChange) -> ResolvedPath:
    field = f"body.changes.{at}.path"
    resolved = await permitted_path(work, change.path, "write", field)
    if resolved.mount is not None:
        raise unversioned(resolved)
    return resolved


def _refuse_twice(found: Iterable[ResolvedPath]) -> None:
    path, count = Counter(one.path for one in found).most_common(1)[0]
    if count > 1:
        raise InvalidSyscall(
            f"{path} is changed {count} times",
            field="body.changes",
            remedy="say once what comes of it",
        )


def _check_all(changes: Iterable[tuple[FileChange, ResolvedPath]]) -> None:
    others = [said for change, found in changes if (said := _other(change, found))]
    if others:
        named = "; ".join(others[:MAX_NAMED])
        more = f"; and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        raise VersionConflict(
            f"nothing was changed, since not all is as it was: {named}{more}",
            field="body.changes",
            remedy="read them again, and decide anew",
        )


def _other(change: FileChange, found: ResolvedPath) -> str:
    """Return how a file is another than was asked for; empty: it is that one."""
    file = found.file
    version = file.version if file is not None else 0
    if change.if_version is not None and change.if_version != version:
        now = f"is at version {version}" if file is not None else "is not there"
        return f"{found.path} {now}, not {_version_asked(change.if_version)}"
    if change.if_sha256 is not None and (file is None or file.sha256 != change.if_sha256):
        return f"{found.path} has other content" if file is not None else f"{found.path} is gone"
    if change.content is None and file is None:
        return f"there is no file {found.path}"
    return ""


def _version_asked(version: int) -> str:
    return f"version {version}" if version else "new"


async def _changed(work: FileWork[StorageApply], change: FileChange) -> Entry:
    if change.content is None:
        return await delete(work.step(StorageDelete(change.path, owner=work.body.owner)))
    content, encoding = change.content, change.encoding
    return await write(
        work.step(StorageWrite(change.path, content, encoding, owner=work.body.owner))
    )


def _show_all(
    work: FileWork[StorageApply], changes: Iterable[FileChange], found: Iterable[ResolvedPath]
) -> None:
    """Put all changes before what they take, for the person who decides about all."""
    taken = work.pending.taken
    if not taken:
        return
    lines = [f"{_verb(change, one)} {one.path}" for change, one in zip(changes, found, strict=True)]
    what = f"change {len(lines)} files of {work.owner.name}, all or none"
    told, called = digest_of_parts(lines), "all changes together"
    seen = Seen("changes", work.asked.syscall.id, count=len(lines), digest=told, name=called)
    shown = Irreversible(taken[0].operation, what, (seen,), lossy=False, diff="\n".join(lines))
    taken.insert(0, shown)


def _verb(change: FileChange, found: ResolvedPath) -> str:
    if change.content is None:
        return "delete"
    return "overwrite" if found.file is not None else "make"
