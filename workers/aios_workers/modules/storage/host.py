"""Real directories of the worker's host: files read and written without ever leaving them.

Every part of a path is opened relative to the directory before it and never through a symbolic
link, starting at a directory that the operator allowed. So neither a link that lies there nor one
that somebody puts there meanwhile leads outside. All functions block: they are called in a thread.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from aios_broker.contract.errors import (
    AlreadyExists,
    InvalidConfig,
    InvalidPath,
    ModuleError,
    NotFound,
)
from aios_broker.contract.names import AgentName, TenantName
from aios_broker.contract.paths import normal_path

EVERY_AGENT = "*"  # of a tenant
MAX_ENTRIES = 10_000  # that one listing walks
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would block
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A file or a directory below a mount; `inner` is its path there."""

    inner: str
    is_directory: bool
    size_bytes: int
    changed_at: float  # Unix time, s


class MountSetting:
    """The directories of the host that the operator lets be mounted, and by whom."""

    def __init__(self, setting: str) -> None:
        """Take the setting: `/srv/books=default/ada,research/*;/srv/plans=default/*`.

        Raises:
            InvalidConfig: A path is not absolute, or nobody is named who may mount it.
        """
        given = [part.strip() for part in setting.split(";") if part.strip()]
        self._roots = [_root_and_whose(part) for part in given]

    def by(self, tenant: str, agent: str) -> "AllowedDirectories":
        """Return those that an agent may mount."""
        who = {(tenant, agent), (tenant, EVERY_AGENT)}
        return AllowedDirectories([root for root, whose in self._roots if whose & who])


def _root_and_whose(part: str) -> tuple[str, frozenset[tuple[str, str]]]:
    path, _, names = part.rpartition("=")
    try:
        whose = frozenset(_whose(name.strip()) for name in names.split(","))
    except msgspec.ValidationError as error:
        raise _bad_setting(f"{part!r} does not say who may mount it") from error
    if not os.path.isabs(path):
        raise _bad_setting(f"{path!r} is not absolute")
    return os.path.realpath(path), whose


def _whose(name: str) -> tuple[str, str]:
    tenant, _, agent = name.partition("/")
    if agent != EVERY_AGENT:
        msgspec.convert(agent, AgentName)
    return msgspec.convert(tenant, TenantName), agent


def _bad_setting(what: str) -> InvalidConfig:
    return InvalidConfig(
        what,
        field="AIOS_STORAGE_MOUNTS",
        remedy="give absolute paths and who may mount them, with `;` between them: "
        "/srv/books=default/ada,research/*",
    )


class AllowedDirectories:
    """The directories of the host that one agent may mount, with all below."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots

    def where(self, source: str) -> str:
        """Return the real path of a directory that may be mounted.

        Raises:
            InvalidPath: It is none, or lies below none of those that are allowed.
        """
        real = os.path.realpath(source)
        if not os.path.isabs(source) or self._root_of(real) is None or not os.path.isdir(real):
            allowed = ", ".join(self._roots) or "none"
            raise InvalidPath(
                f"{source} is no directory below one that you may mount ({allowed})",
                field="body.source",
                remedy="name one, or ask the operator to allow it (AIOS_STORAGE_MOUNTS)",
            )
        return real

    @contextmanager
    def opened(self, source: str, parts: Sequence[str]) -> Iterator[int]:
        """Yield a descriptor of a directory below a mounted one, links never followed.

        Raises:
            NotFound: There is no such directory.
            InvalidPath: The mount is no longer allowed.
        """
        root = self._root_of(source)
        if root is None:
            raise InvalidPath(
                f"{source} may not be mounted any more",
                field="body.path",
                remedy="ask the operator, or unmount it",
            )
        way = [part for part in source[len(root) :].split("/") if part]
        try:
            at = os.open(root, _DIRECTORY)
        except OSError as error:
            raise _missing(source) from error
        try:
            for part in (*way, *parts):
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=at)
                except OSError as error:
                    raise _missing("/".join((source, *parts))) from error
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)

    def _root_of(self, real: str) -> str | None:
        return next(
            (
                root
                for root in self._roots
                if real == root or real.startswith(root.rstrip("/") + "/")
            ),
            None,
        )


class HostDirectory:
    """One mounted directory."""

    def __init__(self, allowed: AllowedDirectories, source: str) -> None:
        self._allowed = allowed
        self._source = source

    def entry(self, inner: str) -> HostEntry:
        """Return what is at a path.

        Raises:
            NotFound: Nothing, or neither a file nor a directory.
        """
        if not inner:
            with self._allowed.opened(self._source, ()) as at:
                return _entry("", os.fstat(at))
        with self._parent(inner) as (at, name):
            return self._looked(at, name, inner)

    def entries(self, inner: str, *, recursive: bool) -> list[HostEntry]:
        """Return what a directory holds; links, devices and names that are no path are left out.

        So is what lies in directories below it that cannot be entered, or are gone meanwhile.
        """
        found = self._held(inner)
        waiting = [entry for entry in found if entry.is_directory] if recursive else []
        while waiting and len(found) < MAX_ENTRIES:
            with contextlib.suppress(NotFound):
                held = self._held(waiting.pop().inner)
                found += held
                waiting += [entry for entry in held if entry.is_directory]
        return found

    def _held(self, inner: str) -> list[HostEntry]:
        found: list[HostEntry] = []
        with self._allowed.opened(self._source, _parts(inner)) as at:
            for name in sorted(os.listdir(at)):
                path = f"{inner}/{name}".removeprefix("/")
                with contextlib.suppress(NotFound, InvalidPath):
                    normal_path(path)
                    found.append(self._looked(at, name, path))
        return found

    def read(self, inner: str, offset: int, max_bytes: int) -> tuple[bytes, int]:
        """Return a part of a file, and the size of all of it."""
        with self._parent(inner) as (at, name):
            try:
                opened = os.open(name, _READ, dir_fd=at)
            except OSError as error:
                raise _missing(inner) from error
            with open(opened, "rb") as file:
                status = os.fstat(opened)
                if not stat.S_ISREG(status.st_mode):
                    raise _missing(inner)
                file.seek(offset)
                return file.read(max_bytes), status.st_size

    def write(self, inner: str, content: bytes, *, is_new: bool) -> None:
        """Put a file in place, whole or not at all; the directories on its way are made."""
        self.make_directory(inner.rpartition("/")[0])
        with self._parent(inner) as (at, name), _os_errors(inner):
            temporary = f".aios-{secrets.token_hex(8)}"
            opened = os.open(temporary, _NEW, 0o644, dir_fd=at)
            try:
                with open(opened, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(opened)
                if is_new:
                    os.link(temporary, name, src_dir_fd=at, dst_dir_fd=at)
                    os.unlink(temporary, dir_fd=at)
                else:
                    _refuse_special(at, name, inner)
                    os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=at)
                raise

    def make_directory(self, inner: str) -> None:
        """Make a directory and those above it."""
        parts = _parts(inner)
        for count in range(len(parts)):
            with (
                self._allowed.opened(self._source, parts[:count]) as at,
                _os_errors(inner),
                contextlib.suppress(FileExistsError),
            ):
                os.mkdir(parts[count], dir_fd=at)

    def delete(self, inner: str) -> None:
        """Delete a file, or a directory that is empty."""
        with self._parent(inner) as (at, name), _os_errors(inner):
            if self._looked(at, name, inner).is_directory:
                os.rmdir(name, dir_fd=at)
            else:
                os.unlink(name, dir_fd=at)

    @contextmanager
    def _parent(self, inner: str) -> Iterator[tuple[int, str]]:
        if not inner:
            raise InvalidPath(
                "that is the mounted directory itself",
                field="body.path",
                remedy="name something in it",
            )
        *above, name = _parts(inner)
        with self._allowed.opened(self._source, above) as at:
            yield at, name

    def _looked(self, at: int, name: str, inner: str) -> HostEntry:
        try:
            status = os.stat(name, dir_fd=at, follow_symlinks=False)
        except OSError as error:
            raise _missing(inner) from error
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise _missing(inner)
        return _entry(inner, status)


def _refuse_special(at: int, name: str, inner: str) -> None:
    """Return when a file may take the place of what is there: a file, or nothing.

    Raises:
        InvalidPath: A link, a pipe or a device is there, which no agent made or sees.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidPath(
                f"what the host has at {inner} is no file",
                field="body.path",
                remedy="write to another path; links are not followed",
            )


def _entry(inner: str, status: os.stat_result) -> HostEntry:
    is_directory = stat.S_ISDIR(status.st_mode)
    return HostEntry(inner, is_directory, 0 if is_directory else status.st_size, status.st_mtime)


def _parts(inner: str) -> list[str]:
    return inner.split("/") if inner else []


def _missing(inner: str) -> NotFound:
    return NotFound(
        f"the mounted directory has no file or directory {inner}",
        field="body.path",
        remedy="look at what is there: storage.list; links are not followed",
    )


@contextmanager
def _os_errors(inner: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise AlreadyExists(
            f"there is something at {inner} already",
            field="body.path",
            remedy="choose another path, or overwrite it",
        ) from error
    except OSError as error:
        raise ModuleError(
            f"the host refused {inner}: {error.strerror}",
            field="body.path",
            remedy="see what the worker's user may do there",
        ) from error
