"""Look up a path in a namespace, and decide whether the asker may do there what it asks for.

The directories on the way to what is new are made here. `FileWork` is what every operation of the
module works with: a namespace, in one transaction.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from aios_broker.contract.access import OperationClass
from aios_broker.contract.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidPath,
    NotFound,
    ObjectLocked,
)
from aios_broker.contract.names import Verb
from aios_broker.contract.paths import ROOT, below, is_within, normal_path, parent_of, prefixes_of
from aios_broker.contract.reply import Result
from aios_broker.contract.storage import Entry, StorageBody
from aios_broker.postgres.store import AgentRow
from aios_workers.approvals.irreversible import Diff, Irreversible, Seen
from aios_workers.modules.access.grants import verbs_on
from aios_workers.modules.operation import Asked, Operation, Work, changes, reads
from aios_workers.modules.services import Services

# Below it an agent's own files are deleted and overwritten without a person: what was made there.
SCRATCH = "/scratch"

S = TypeVar("S", bound=StorageBody)
S_co = TypeVar("S_co", bound=StorageBody, covariant=True)


@dataclass(frozen=True, slots=True)
class FileWork(Work[S_co], Generic[S_co]):
    """One syscall in its transaction, on a namespace."""

    owner: AgentRow  # of the namespace
    in_plan: bool = False  # it is a step of a plan: all of it happens, or nothing

    @property
    def is_own(self) -> bool:
        """Whether the namespace is the asker's own."""
        return self.owner.id == self.agent.id

    async def take_at(
        self,
        operation: OperationClass,
        what: str,
        path: str,
        objects: Sequence[Seen],
        *,
        lossy: bool = True,
        diff: str | Diff = "",
    ) -> None:
        """Note what is taken away at a path of the namespace itself, not of the host."""
        made = self.pending.made_files
        if objects and objects[0].kind == "file" and int(objects[0].id) in made:
            return  # a step of the same plan made it
        scratch = self.is_scratch(path)
        await self.take(
            Irreversible(operation, what, tuple(objects), lossy=lossy, scratch=scratch, diff=diff)
        )

    def step(self, body: S) -> "FileWork[S]":
        """Return the work of one step of a plan, in the same transaction."""
        whole = self.asked
        asked = Asked(
            whole.services, whole.agent, whole.syscall, body, whole.irreversible, whole.limit_s
        )
        return FileWork(asked, self.cursor, self.pending, self.owner, in_plan=True)

    def is_scratch(self, path: str) -> bool:
        """Whether a path lies in the asker's own scratch space."""
        return self.is_own and is_within(path, SCRATCH)


AnyWork = FileWork[StorageBody]  # what the steps share does not look at the body
FileStep = Callable[[FileWork[S]], Awaitable[Result]]


def owner_name(body: StorageBody) -> str | None:
    """Return whose namespace a body means; None: the asker's."""
    owner: str | None = getattr(body, "owner", None)  # not all can name one
    return owner


def namespace_lock(asked: Asked[S], *, own: bool = False) -> tuple[str]:
    """Return the name under which changes of a namespace take turns.

    It is the one that the body means, or the asker's own.
    """
    owner = (None if own else owner_name(asked.body)) or asked.agent.name
    return (f"aios.storage {asked.agent.tenant}/{owner}",)


async def on_namespace(work: Work[S], *, own: bool = False) -> FileWork[S]:
    """Return a piece of work as one on the namespace that its body means, or on the asker's own."""
    owner = await work.agent_named(None if own else owner_name(work.body))
    return FileWork(work.asked, work.cursor, work.pending, owner)


def file_reads(body: type[S], step: FileStep[S]) -> Operation[S]:
    """Return the operation of a step that changes nothing."""

    async def on_named(work: Work[S]) -> Result:
        return await step(await on_namespace(work))

    return reads(body, on_named)


def file_changes(
    body: type[S],
    step: FileStep[S],
    *,
    irreversible: OperationClass | tuple[OperationClass, ...] = (),
    own: bool = False,
) -> Operation[S]:
    """Return the operation of a step that changes a namespace; one change of it at a time.

    With `own` it is the asker's namespace that changes, whoever's the body names.
    """

    async def on_locked(work: Work[S]) -> Result:
        return await step(await on_namespace(work, own=own))

    locks = partial(namespace_lock, own=own)
    return changes(body, on_locked, irreversible=irreversible, locks=locks, after=_announce)


async def _announce(services: Services) -> None:
    """Have what was written indexed at once."""
    services.unembedded.set()


# What a `Node` is made of, of a file `f`, a directory `d` and a mount `m`.
FILE = """
    'file' AS kind, f.id, f.path, f.created_at, f.updated_at, f.version, f.size_bytes, f.sha256,
    f.locked_by, (SELECT a.name FROM agent a WHERE a.id = f.locked_by) AS locker, f.locked_until,
    '{}'::bigint[] AS ancestors, NULL::text AS source, NULL::boolean AS writable
"""
DIRECTORY = """
    'directory' AS kind, d.id, d.path, d.created_at, d.created_at AS updated_at, 0 AS version,
    0::bigint AS size_bytes, '' AS sha256, NULL::bigint AS locked_by, NULL::text AS locker,
    NULL::timestamptz AS locked_until, d.ancestors, NULL::text AS source, NULL::boolean AS writable
"""
MOUNT = """
    'mount' AS kind, m.id, m.path, m.created_at, m.created_at AS updated_at, 0 AS version,
    0::bigint AS size_bytes, '' AS sha256, NULL::bigint AS locked_by, NULL::text AS locker,
    NULL::timestamptz AS locked_until, '{}'::bigint[] AS ancestors, m.source, m.writable
"""
NODE_COLUMNS = 14
_LOOK_UP = f"""
    SELECT {DIRECTORY} FROM directory d
     WHERE d.owner_id = %(owner)s AND d.path = ANY(%(prefixes)s)
    UNION ALL
    SELECT {FILE} FROM file f WHERE f.owner_id = %(owner)s AND f.path = ANY(%(prefixes)s)
    UNION ALL
    SELECT {MOUNT} FROM mount m WHERE m.owner_id = %(owner)s AND m.path = ANY(%(prefixes)s)
"""
# Two statements: row-level security looks at the way down, which a new row ends with its own id.
_INSERT_DIRECTORY = """
    INSERT INTO directory (tenant_id, owner_id, path, ancestors)
    VALUES (%(tenant)s, %(owner)s, %(path)s, %(ancestors)s) RETURNING id
"""
_COMPLETE_DIRECTORY = f"""
    UPDATE directory AS d SET ancestors = ancestors || id WHERE id = %(id)s RETURNING {DIRECTORY}
"""
_NEEDED: dict[Verb, tuple[Verb, ...]] = {"write": ("read",)}  # an answer shows what is there


@dataclass(frozen=True, slots=True)
class Node:
    """A file, a directory, or a real directory that is mounted, as it is now."""

    kind: Literal["file", "directory", "mount"]
    id: int
    path: str
    created_at: datetime
    updated_at: datetime
    version: int
    size_bytes: int
    sha256: str
    locked_by: int | None
    locker: str | None
    locked_until: datetime | None
    ancestors: Sequence[int]  # of a directory: the ids from the root down, its own last
    source: str  # of a mount: where it is on the host
    writable: bool

    @property
    def is_locked(self) -> bool:
        """Whether its lock still holds."""
        return self.locked_until is not None and self.locked_until > datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ResolvedPath:
    """What is at a path, and what is above it."""

    path: str
    owner: AgentRow
    file: Node | None
    directory: Node | None
    nearest: Node | None  # the last directory on the way that there is; None: no root yet
    blocking: Node | None  # a file where the way needs a directory
    mount: Node | None

    @property
    def is_free(self) -> bool:
        """Whether nothing is there."""
        return self.file is None and self.directory is None and self.mount is None

    @property
    def inner(self) -> str:
        """The path within the mount; empty for the mounted directory itself."""
        assert self.mount is not None
        return self.path[len(self.mount.path) :].removeprefix("/")


def seen_file(file: Node) -> Seen:
    """Return a file as an approval is bound to it: its number and version say all its content."""
    return Seen(
        "file",
        str(file.id),
        file.version,
        digest=file.sha256,
        name=f"file {file.path}",
        size_bytes=file.size_bytes,
    )


def seen_version(file: Node, version: int, sha256: str, size_bytes: int) -> Seen:
    """Return a version of a file as an approval is bound to it."""
    called = f"version {version} of {file.path}"
    return Seen("version", str(file.id), version, digest=sha256, name=called, size_bytes=size_bytes)


def node_of(row: Any) -> Node:  # noqa: ANN401  a row of psycopg's
    """Return a row that begins with the columns of a node."""
    return Node(*row[:NODE_COLUMNS])


async def look_up(work: AnyWork, path: str, field: str = "body.path") -> ResolvedPath:
    """Return what is at a path.

    Another agent's namespace is looked at with the kernel's eyes: `require` decides then.

    Raises:
        InvalidPath: It cannot be a path.
    """
    path = normal_path(path, field)
    values = {"owner": work.owner.id, "prefixes": prefixes_of(path)}
    rows = await (work.rows if work.is_own else work.kernel_rows)(_LOOK_UP, values)
    nodes = [node_of(row) for row in rows]
    directories = [node for node in nodes if node.kind == "directory"]
    nearest = max(directories, key=lambda node: len(node.path), default=None)
    files = {node.path: node for node in nodes if node.kind == "file"}
    file = files.pop(path, None)
    return ResolvedPath(
        path=path,
        owner=work.owner,
        file=file,
        directory=nearest if nearest is not None and nearest.path == path else None,
        nearest=nearest,
        blocking=next(iter(files.values()), None),
        mount=next((node for node in nodes if node.kind == "mount"), None),
    )


async def permitted_path(
    work: AnyWork, path: str, verb: Verb, field: str = "body.path"
) -> ResolvedPath:
    """Return what is at a path with which the asker may do this."""
    resolved = await look_up(work, path, field)
    await require(work, resolved, verb)  # before anything is said of what is there
    return resolved


async def changeable_path(work: AnyWork, path: str, field: str = "body.path") -> ResolvedPath:
    """Return a path at which the asker may put something."""
    resolved = await permitted_path(work, path, "write", field)
    check_free_way(resolved, field)
    return resolved


async def require(work: AnyWork, resolved: ResolvedPath, verb: Verb) -> None:
    """Return when the asker may do this at a path; where nothing is, the directory above decides.

    Raises:
        NotFound: It may not even know what is there.
        AccessDenied: It may read it, and not do this.
    """
    if work.is_own:
        return
    verbs = frozenset() if resolved.mount is not None else await _verbs(work, resolved)
    if {verb, *_NEEDED.get(verb, ())} <= verbs:
        return
    if "read" in verbs:
        raise AccessDenied(
            f"{resolved.path} is {resolved.owner.name}'s, and no grant allows {verb}",
            field="owner",
            remedy=f"ask {resolved.owner.name} to grant {verb} on it (access.grant)",
        )
    raise not_found(resolved)


async def _verbs(work: AnyWork, resolved: ResolvedPath) -> frozenset[str]:
    """Return what the asker may do at a path of another's."""
    ancestors = resolved.nearest.ancestors if resolved.nearest is not None else ()
    objects = [("directory", str(each)) for each in ancestors]
    if resolved.file is not None:
        objects.append(("file", str(resolved.file.id)))
    return frozenset(await verbs_on(work, objects))


def not_found(resolved: ResolvedPath) -> NotFound:
    """Return the error that says the same of what is not there and of what may not be known."""
    return NotFound(
        f"{resolved.owner.name} has nothing at {resolved.path} that you may read",
        field="body.path",
        remedy="look at what is there: storage.list",
    )


def taken(resolved: ResolvedPath, field: str = "body.path") -> AlreadyExists:
    """Return the error of a path at which something is already."""
    what = "a file" if resolved.file is not None else "a directory"
    return AlreadyExists(
        f"there is {what} at {resolved.path}",
        field=field,
        remedy="choose another path, or delete or overwrite it",
    )


def unversioned(resolved: ResolvedPath) -> InvalidPath:
    """Return the error of what only files of the namespace itself have."""
    assert resolved.mount is not None
    return InvalidPath(
        f"{resolved.path} is on the host, mounted at {resolved.mount.path}: it has no versions, "
        "moves, locks or shares here",
        field="body.path",
        remedy="copy it into the namespace first",
    )


def file_at(resolved: ResolvedPath) -> Node:
    """Return the file at a path.

    Raises:
        NotFound: Nothing is there.
        InvalidPath: A directory is, or it lies in a mounted one.
    """
    if resolved.mount is not None:
        raise unversioned(resolved)
    if resolved.directory is not None:
        raise InvalidPath(
            f"{resolved.path} is a directory", field="body.path", remedy="name a file in it"
        )
    if resolved.file is None:
        raise not_found(resolved)
    return resolved.file


def check_free_way(resolved: ResolvedPath, field: str = "body.path") -> None:
    """Refuse a path that leads through a file, or the root itself.

    Raises:
        InvalidPath: It does.
    """
    if resolved.path == ROOT:
        raise InvalidPath(
            "that is the root of the namespace", field=field, remedy="name something in it"
        )
    if resolved.blocking is not None:
        raise InvalidPath(
            f"{resolved.blocking.path} is a file, nothing can lie below it",
            field=field,
            remedy="choose another path, or move the file away",
        )


def check_unlocked(work: AnyWork, file: Node) -> None:
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
        remedy="wait until then, or have it unlocked (storage.unlock): by who has, or by its owner",
        retry_after_s=max(0.0, round(left_s, 3)),
    )


def entry_of(node: Node, owner: AgentRow) -> Entry:
    """Return a file or a directory as the asker sees it."""
    locked_until = node.locked_until if node.is_locked else None
    return Entry(
        path=node.path,
        kind="file" if node.kind == "file" else "directory",
        owner=owner.name,
        version=node.version,
        size_bytes=node.size_bytes,
        sha256=node.sha256,
        created_at=node.created_at.timestamp(),
        updated_at=node.updated_at.timestamp(),
        locked_by=(node.locker or "another agent") if locked_until is not None else "",
        locked_until=None if locked_until is None else locked_until.timestamp(),
        mounted=node.kind == "mount",
    )


def below_of(path: str) -> dict[str, object]:
    """Return the values of a query for a path and all below it."""
    return {"path": path, "below": below(path)}


async def made_directory(work: AnyWork, nearest: Node | None, path: str) -> Node:
    """Return the directory at `path`; it and those between it and the nearest one are made."""
    directory = nearest
    for each in prefixes_of(path):
        if directory is not None and len(each) <= len(directory.path):
            continue
        rows = await work.rows(
            _INSERT_DIRECTORY,
            {
                "tenant": work.owner.tenant_id,
                "owner": work.owner.id,
                "path": each,
                "ancestors": list(directory.ancestors) if directory is not None else [],
            },
        )
        [row] = await work.rows(_COMPLETE_DIRECTORY, {"id": rows[0].id})
        directory = node_of(row)
        work.pending.made_directories.add(directory.id)
    assert directory is not None
    return directory


async def directory_for(work: AnyWork, resolved: ResolvedPath) -> Node:
    """Return the directory in which something at a free path will lie; it is made if needed."""
    return await made_directory(work, resolved.nearest, parent_of(resolved.path))
