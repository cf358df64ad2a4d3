"""Where a kernel keeps its data: one directory, for its owner alone."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig

OWNER_ONLY = 0o700
# A socket's path may have 107 bytes; the longest name below the directory is `.s.PGSQL.5432`.
SOCKET_DIR_MAX_BYTES = 90
SHARED_MEMORY = Path("/dev/shm")  # a file system in memory, where the system has one
# Paths of sockets stand in URLs, and not every tool reads percent-encoding in them.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")


@dataclass(frozen=True, slots=True)
class StateDir:
    """The state directory of one kernel, and the names of what lies in it."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> "StateDir":
        """Make the directory where it is missing, readable by its owner alone.

        Raises:
            InvalidConfig: It cannot be made or written.
        """
        path = path.expanduser().absolute()
        try:
            for folder in (path, path / "log"):
                folder.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise InvalidConfig(
                f"cannot write in the state directory {path}: {error.strerror}",
                field="AIOS_STATE_DIR",
                remedy="name a directory that you may write in",
            ) from error
        return cls(path)

    @property
    def record_path(self) -> Path:
        """What the running kernel says of itself."""
        return self.path / "kernel.json"

    def redis_login_path(self, role: str) -> Path:
        """Return where a running kernel, whose Redis has a password, writes a user's address."""
        return self.path / f"redis-{role}.url"

    @property
    def lock_path(self) -> Path:
        """Locked by the running kernel."""
        return self.path / "kernel.lock"

    @property
    def log_dir(self) -> Path:
        """The logs of the kernel and of its servers."""
        return self.path / "log"

    @property
    def kv_dir(self) -> Path:
        """Where the llm workers of this kernel share KV states; a core makes it when it starts.

        In memory where the system has such a place: the states are large, written often, and
        worth nothing after the kernel's end.
        """
        in_memory = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
        return SHARED_MEMORY / f"aios-kv-{self._short_name}" if in_memory else self.path / "kv"

    def remove_kv(self) -> None:
        """Remove the KV states; the workers must have stopped."""
        shutil.rmtree(self.kv_dir, ignore_errors=True)

    def socket_dir(self, server: str) -> Path:
        """Make and return the directory of a server's socket: in the state directory if it fits.

        A path that is too long for a socket, or that would need encoding in a URL, is replaced by
        a short one below the temporary directory, the same one each time.
        """
        inside = self.path / "run" / server
        if _fits(inside):
            inside.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
            return inside
        outside = self._short_dir / server
        _make_private(outside.parent)
        _make_private(outside)
        return outside

    def remove_sockets(self) -> None:
        """Remove the directories of the sockets; the servers must have stopped."""
        for folder in (self.path / "run", self._short_dir):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _short_name(self) -> str:
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        return f"{os.geteuid()}-{digest}"

    @property
    def _short_dir(self) -> Path:
        name = f"aios-{self._short_name}"
        candidate = Path(tempfile.gettempdir()) / name
        return candidate if _fits(candidate / "postgres") else Path("/tmp") / name


def _fits(path: Path) -> bool:
    short = len(os.fsencode(path)) <= SOCKET_DIR_MAX_BYTES
    return short and PLAIN_PATH.fullmatch(str(path)) is not None


def _make_private(path: Path) -> None:
    """Make a directory in a place where others may write too, and trust it only if it is ours."""
    try:
        path.mkdir(mode=OWNER_ONLY)
    except FileExistsError:
        found = path.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not ours or stat.S_IMODE(found.st_mode) & 0o077:
            raise InvalidConfig(
                f"{path} belongs to somebody else or is open to others",
                remedy="remove it, or set TMPDIR to a directory of your own",
            ) from None
