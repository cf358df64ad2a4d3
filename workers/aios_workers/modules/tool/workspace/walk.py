"""A look at all files of a session's folder, while what runs in the session may change it."""

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from aios_broker.contract.errors import WorkspaceLimit
from aios_workers.modules.tool.workspace.folder import MOVING, below, names_in, opened_root
from aios_workers.modules.tool.workspace.names import refusal_of_name

MOST_SEEN = 20_000  # files and folders
MOST_READ_BYTES = 1024**3
CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a fifo would block
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FoundFile(Struct, frozen=True):
    """A file as it was when it was looked at, or what else is there."""

    path: str  # within the folder; as the system gives it, which may be no text
    why: str = ""  # it is none that storage could have; all below it is as little
    size_bytes: int = 0
    sha256: str = ""  # empty: it is too large to be read
    content: bytes | None = None  # where it was kept


class Walk:
    """One look at all that is in a folder.

    Args:
        sizes: Of the files that were put there; one of another size is another.
        most_bytes: The largest other file that is read.
        keep_bytes: So much content is kept of those whose digest is another.
        digests: Of the files that were put there.
    """

    def __init__(
        self, sizes: dict[str, int], digests: dict[str, str], most_bytes: int, keep_bytes: int
    ) -> None:
        self._sizes = sizes
        self._digests = digests
        self._most_bytes = most_bytes
        self._keep_bytes = keep_bytes
        self._read_bytes = 0

    def at(self, root: Path) -> list[FoundFile]:
        """Return all files, by path.

        Raises:
            WorkspaceLimit: There is more than one look takes in.
        """
        found: list[FoundFile] = []
        count = 0
        waiting: list[tuple[str, ...]] = [()]
        with opened_root(root) as top:
            while waiting:
                parts = waiting.pop()
                try:
                    with below(top, parts) as folder:
                        names = names_in(folder, MOST_SEEN - count + 1)
                        count += len(names)
                        if count > MOST_SEEN:
                            raise _too_many(f"more than {MOST_SEEN} files and folders")
                        for name in names:
                            self._see(folder, (*parts, name), found, waiting)
                except OSError as error:
                    found.append(FoundFile("/".join(parts), why=_trouble(error)))
        return sorted(found, key=lambda one: one.path)

    def _see(
        self,
        folder: int,
        parts: tuple[str, ...],
        found: list[FoundFile],
        waiting: list[tuple[str, ...]],
    ) -> None:
        path = "/".join(parts)
        try:
            status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            found.append(FoundFile(path, why=_trouble(error)))
            return
        why = refusal_of_name(path) or _refusal_of_kind(status)
        if why:
            found.append(FoundFile(path, why=why))
        elif stat.S_ISDIR(status.st_mode):
            waiting.append(parts)
        else:
            found.append(self._file(folder, parts[-1], path))

    def _file(self, folder: int, name: str, path: str) -> FoundFile:
        try:
            opened = os.open(name, _READ, dir_fd=folder)
            with open(opened, "rb") as file:
                return self._read(file, path)
        except _Refused as refused:
            return FoundFile(path, why=str(refused))
        except OSError as error:
            return FoundFile(path, why=_trouble(error))

    def _read(self, file: BinaryIO, path: str) -> FoundFile:
        status = os.fstat(file.fileno())
        if why := _refusal_of_kind(status):
            raise _Refused(why)
        if not stat.S_ISREG(status.st_mode):
            raise _Refused(MOVING)
        size = status.st_size
        if size > self._most_bytes and self._sizes.get(path) != size:
            return FoundFile(path, size_bytes=size)
        self._read_bytes += size
        if self._read_bytes > MOST_READ_BYTES:
            raise _too_many(f"more than {MOST_READ_BYTES} bytes")
        keeps = size <= min(self._most_bytes, self._keep_bytes)
        sha256, content = _digested(file, size, keeps=keeps)
        if self._digests.get(path) == sha256:
            return FoundFile(path, size_bytes=size, sha256=sha256)
        if status.st_nlink > 1:
            raise _Refused("it has other names too (hard links)")
        if keeps:
            self._keep_bytes -= size
        return FoundFile(path, size_bytes=size, sha256=sha256, content=content)


class _Refused(Exception):
    """It is nothing that storage could have; says why."""


def _digested(file: BinaryIO, size: int, *, keeps: bool) -> tuple[str, bytes | None]:
    """Return the digest of a file that has so many bytes, and the bytes where they are kept."""
    digest, kept, read = hashlib.sha256(), [], 0
    while chunk := file.read(min(CHUNK, size + 1 - read)):
        read += len(chunk)
        if read > size:
            break
        digest.update(chunk)
        if keeps:
            kept.append(chunk)
    if read != size:
        raise _Refused(MOVING)
    return digest.hexdigest(), b"".join(kept) if keeps else None


def _refusal_of_kind(status: os.stat_result) -> str:
    """Return why storage can have no such thing; empty: it is a file or a folder."""
    for is_kind, what in _KINDS:
        if is_kind(status.st_mode):
            return f"it is {what}"
    if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        return "it runs with its owner's rights (setuid or setgid)"
    return ""


def _trouble(error: OSError) -> str:
    """Return why something cannot be looked at."""
    if isinstance(error, PermissionError):
        return "it may not be read"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return MOVING
    return f"it cannot be read ({error.strerror})"


def _too_many(what: str) -> WorkspaceLimit:
    return WorkspaceLimit(
        f"the session's folder has {what}",
        field="body.session",
        remedy="delete what is not needed there, or exec.discard",
    )
