"""Look up a path in a namespace, and decide whether the asker may do there what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aios_broker.contract.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidPath,
    NotFound,
    ObjectLocked,
)
from aios_broker.contract.files import Entry
from aios_broker.contract.names import Verb
from aios_broker.contract.paths import ROOT, below, normal_path, prefixes_of
from aios_broker.postgres.session import AgentRow
from aios_workers.modules.access.grant_rows import verbs_on
from aios_workers.modules.storage.change import AnyWork

_LOOK_UP = """
    SELECT 'directory' AS kind, id, path, ancestors, NULL::bigint AS directory_id, 0 AS version,
           0::bigint AS size_bytes, '' AS sha256, created_at, created_at AS updated_at,
           NULL::bigint AS locked_by, NULL::text AS locker, NULL::timestamptz AS locked_until,
           NULL::text AS source, NULL::boolean AS writable
      FROM directory WHERE owner_id = %(owner)s AND path = ANY(%(prefixes)s)
    UNION ALL
    SELECT 'file', f.id, f.path, NULL, f.directory_id, f.version, f.size_bytes, f.sha256,
           f.created_at, f.updated_at, f.locked_by,
           (SELECT a.name FROM agent a WHERE a.id = f.locked_by), f.locked_until, NULL, NULL
      FROM file f WHERE f.owner_id = %(owner)s AND f.path = ANY(%(prefixes)s)
    UNION ALL
    SELECT 'mount', m.id, m.path, NULL, NULL, 0, 0, '', m.created_at, m.created_at, NULL, NULL,
           NULL, m.source, m.writable
      FROM mount m WHERE m.owner_id = %(owner)s AND m.path = ANY(%(prefixes)s)
"""


_NEEDED: dict[Verb, tuple[Verb, ...]] = {"write": ("read",)}  # an answer shows what is there


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as it is now."""

    id: int
    path: str
    directory_id: int
    version: int
    size_bytes: int
    sha256: str
    created_at: datetime
    updated_at: datetime
    locked_by: int | None
    locker: str | None
    locked_until: datetime | None

    @property
    def is_locked(self) -> bool:
        """Whether its lock still holds."""
        return self.locked_until is not None and self.locked_until > datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class DirectoryRow:
    """A directory; `ancestors` has the ids from the root down, its own last."""

    id: int
    path: str
    ancestors: tuple[int, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class MountRow:
    """A real directory, shown at a path."""

    id: int
    path: str
    source: str
    writable: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ResolvedPath:
    """What is at a path, and what is above it."""

    path: str
    owner: AgentRow
    file: FileRow | None
    directory: DirectoryRow | None
    nearest: DirectoryRow | None  # the last directory on the way that there is; None: no root yet
    blocking: FileRow | None  # a file where the way needs a directory
    mount: MountRow | None

    @property
    def is_free(self) -> bool:
        """Whether nothing is there."""
        return self.file is None and self.directory is None and self.mount is None

    @property
    def inner(self) -> str:
        """The path within the mount; empty for the mounted directory itself."""
        assert self.mount is not None
        return self.path[len(self.mount.path) :].removeprefix("/")


async def look_up(work: AnyWork, path: str, field: str = "body.path") -> ResolvedPath:
    """Return what is at a path.

    Another agent's namespace is looked at with the kernel's eyes: `require` decides then.

    Raises:
        InvalidPath: It cannot be a path.
    """
    at = normal_path(path, field)
    values = {"owner": work.owner.id, "prefixes": prefixes_of(at)}
    rows = await (work.rows if work.is_own else work.kernel_rows)(_LOOK_UP, values)
    return _spot(at, work.owner, rows)


def _spot(path: str, owner: AgentRow, rows: list[Any]) -> ResolvedPath:
    directories = sorted(
        (
            DirectoryRow(row.id, row.path, tuple(row.ancestors), row.created_at)
            for row in rows
            if row.kind == "directory"
        ),
        key=lambda row: len(row.path),
    )
    files = {row.path: file_row(row) for row in rows if row.kind == "file"}
    mounts = [
        MountRow(row.id, row.path, row.source, row.writable, row.created_at)
        for row in rows
        if row.kind == "mount"
    ]
    file = files.pop(path, None)
    nearest = directories[-1] if directories else None
    return ResolvedPath(
        path=path,
        owner=owner,
        file=file,
        directory=nearest if nearest is not None and nearest.path == path else None,
        nearest=nearest,
        blocking=next(iter(files.values()), None),
        mount=mounts[0] if mounts else None,
    )


def file_row(row: Any) -> FileRow:  # noqa: ANN401  a row of psycopg's
    """Return a row of the table `file` with its locker's name."""
    return FileRow(
        row.id,
        row.path,
        row.directory_id,
        row.version,
        row.size_bytes,
        row.sha256,
        row.created_at,
        row.updated_at,
        row.locked_by,
        row.locker,
        row.locked_until,
    )


async def require(work: AnyWork, where: ResolvedPath, verb: Verb) -> None:
    """Return when the asker may do this at a where; where nothing is, the directory above decides.

    Raises:
        NotFound: It may not even know what is there.
        AccessDenied: It may read it, and not do this.
    """
    if work.is_own:
        return
    verbs = frozenset() if where.mount is not None else await _verbs(work, where)
    if {verb, *_NEEDED.get(verb, ())} <= verbs:
        return
    if "read" in verbs:
        raise AccessDenied(
            f"{where.path} is {where.owner.name}'s, and no grant allows {verb}",
            field="owner",
            remedy=f"ask {where.owner.name} to grant {verb} on it (access.grant)",
        )
    raise not_found(where)


async def _verbs(work: AnyWork, where: ResolvedPath) -> frozenset[str]:
    """Return what the asker may do at a where of another's."""
    ancestors = where.nearest.ancestors if where.nearest is not None else ()
    objects = [("directory", str(each)) for each in ancestors]
    if where.file is not None:
        objects.append(("file", str(where.file.id)))
    return await verbs_on(work.cursor, work.agent, objects)


def not_found(where: ResolvedPath) -> NotFound:
    """Return the error that says the same of what is not there and of what may not be known."""
    return NotFound(
        f"{where.owner.name} has nothing at {where.path} that you may read",
        field="body.path",
        remedy="look at what is there: storage.list",
    )


def taken(where: ResolvedPath, field: str = "body.path") -> AlreadyExists:
    """Return the error of a path at which something is already."""
    what = "a file" if where.file is not None else "a directory"
    return AlreadyExists(
        f"there is {what} at {where.path}",
        field=field,
        remedy="choose another path, or delete or overwrite it",
    )


def file_at(where: ResolvedPath) -> FileRow:
    """Return the file at a where.

    Raises:
        NotFound: Nothing is there.
        InvalidPath: A directory is, or it lies in a mounted one.
    """
    if where.mount is not None:
        raise InvalidPath(
            f"{where.path} is on the host, mounted at {where.mount.path}: it has no versions, "
            "locks or shares here",
            field="body.path",
            remedy="copy it into the namespace first",
        )
    if where.directory is not None:
        raise InvalidPath(
            f"{where.path} is a directory", field="body.path", remedy="name a file in it"
        )
    if where.file is None:
        raise not_found(where)
    return where.file


def check_free_way(where: ResolvedPath, field: str = "body.path") -> None:
    """Refuse a path that leads through a file, or the root itself.

    Raises:
        InvalidPath: It does.
    """
    if where.path == ROOT:
        raise InvalidPath(
            "that is the root of the namespace", field=field, remedy="name something in it"
        )
    if where.blocking is not None:
        raise InvalidPath(
            f"{where.blocking.path} is a file, nothing can lie below it",
            field=field,
            remedy="choose another path, or move the file away",
        )


def check_unlocked(work: AnyWork, file: FileRow) -> None:
    """Refuse to change what another agent has locked.

    Raises:
        ObjectLocked: It names who, and until when.
    """
    if file.is_locked and file.locked_by != work.agent.id:
        raise locked_error(file.path, file.locker, file.locked_until)


def locked_error(path: str, locker: str | None, until: datetime | None) -> ObjectLocked:
    """Return the error that says who has locked a file, and until when."""
    left_s = 0.0 if until is None else (until - datetime.now(UTC)).total_seconds()
    return ObjectLocked(
        f"{path} is locked by {locker or 'another agent'} until {until:%Y-%m-%dT%H:%M:%SZ}",
        field="body.path",
        remedy="wait until then, or ask for it to be unlocked",
        retry_after_s=max(0.0, round(left_s, 3)),
    )


def file_entry(file: FileRow, owner: AgentRow) -> Entry:
    """Return a file as the asker sees it."""
    return Entry(
        path=file.path,
        kind="file",
        owner=owner.name,
        version=file.version,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        created_at=file.created_at.timestamp(),
        updated_at=file.updated_at.timestamp(),
        locked_by=(file.locker or "another agent") if file.is_locked else "",
        locked_until=file.locked_until.timestamp()
        if file.is_locked and file.locked_until is not None
        else None,
    )


def directory_entry(directory: DirectoryRow | MountRow, owner: AgentRow) -> Entry:
    """Return a directory as the asker sees it."""
    at = directory.created_at.timestamp()
    return Entry(
        directory.path,
        "directory",
        owner.name,
        created_at=at,
        updated_at=at,
        mounted=isinstance(directory, MountRow),
    )


def below_of(path: str) -> dict[str, str]:
    """Return the values of a query for a path and all below it."""
    return {"path": path, "below": below(path)}
