"""The folder that the cores of one host share their KV states in: files, a budget, and no server.

    <key>-<request>-<tokens>.kv             a state; whole from the moment that it has this name
    <key>-<request>-<tokens>.<random>.tmp   one that is being written
    <key>.<random>.here                     locked by a core of this key while it lives
    budget.lock                             locked while somebody makes room

The key is a hash of all that a state depends on (model, build, settings): another core's files are
never looked at, only counted. Whoever makes room removes the files that were used least recently,
whoever wrote them. Any core may die at any line: a file without its name is removed later, and the
locks are the operating system's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.llama.kv_state import (
    KvState,
    file_bytes,
    head_of,
    read_data,
    read_head,
    shared_prefix_tokens,
)
from aios_workers.llm.cores.llama.protocol import write_all

SETTING = "AIOS_LLM_KV_DIR"
OWNER_ONLY = 0o700
OWNER_ONLY_FILE = 0o600
MAX_AGE_S = 3_600.0  # since the last use: a syscall of default deadline has long ended
MAX_WRITING_S = 60.0  # a file that is still being written then has no writer any more
LOCK_LIMIT_S = 1.0
LOCK_POLL_S = 0.005
FILE_SYSTEM_SHARE = 0.5  # of its size, at most: others use it too (a container's has 64 MB)
_NAME_DIGITS = 16
_STATE = re.compile(r"(?P<owner>[0-9a-f]{16}-[0-9a-f]{16})-(?P<tokens>\d+)\.(?P<end>kv|\w+\.tmp)")
_LOCK_NAME = "budget.lock"


class NoRoom(Exception):
    """The budget is taken by states that are being written, or is smaller than this one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the folder, as it was when it was looked at."""

    path: Path
    owner: str  # key and request
    tokens: int
    size_bytes: int
    used_at: float  # Unix time, s
    being_written: bool


@dataclass(frozen=True, slots=True)
class Reserved:
    """A file that has been begun: others see that a state is coming."""

    fd: int
    temporary: Path
    final: Path


class StateFolder:
    """The files as one core sees them. Its methods may be called from two threads at once."""

    def __init__(self, path: Path, key: bytes, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._key = key
        self._key_name = hashlib.sha256(key).hexdigest()[:_NAME_DIGITS]
        self._presence: int | None = None
        self._presence_path: Path | None = None

    @classmethod
    def open(cls, path: Path, key: bytes, max_bytes: int) -> StateFolder:
        """Join the cores that share a folder, which is made where it is missing.

        Raises:
            InvalidConfig: it cannot be used; `field` names the setting.
        """
        check_folder(path)
        try:
            system = os.statvfs(path)
            budget_bytes = min(
                max_bytes, int(system.f_blocks * system.f_frsize * FILE_SYSTEM_SHARE)
            )
            folder = cls(path, key, budget_bytes)
            folder._appear()
        except OSError as error:
            raise _unusable(path, str(error.strerror)) from error
        return folder

    def close(self) -> None:
        """Leave: others no longer write for us."""
        if self._presence is not None and self._presence_path is not None:
            self._presence_path.unlink(missing_ok=True)
            os.close(self._presence)
            self._presence = None

    def has_company(self) -> bool:
        """Whether another core of the same key lives: then a state may be wanted elsewhere."""
        return any(
            path != self._presence_path and _is_locked(path)
            for path in self.path.glob(f"{self._key_name}.*.here")
        )

    # Writing.

    def reserve(self, request_id: str, tokens: int) -> Reserved:
        """Begin a file; costs some 50 us. Others wait a moment for it instead of reading tokens."""
        name = f"{self._owner(request_id)}-{tokens}"
        temporary = self.path / f"{name}.{uuid.uuid4().hex}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(temporary, flags, OWNER_ONLY_FILE)
        except FileNotFoundError:  # somebody cleaned up: a log-out, an operator
            self.path.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
            fd = os.open(temporary, flags, OWNER_ONLY_FILE)
        return Reserved(fd, temporary, self.path / f"{name}.kv")

    def write(self, reserved: Reserved, state: KvState) -> int:
        """Write a reserved file; return the bytes of all states in the folder.

        Older states of the same request are removed. Whatever happens, the reservation is over.

        Raises:
            NoRoom: the budget does not allow it.
            OSError: the disk is full, the folder is gone, ...
        """
        try:
            used_bytes = self._make_room(reserved, file_bytes(state))
            for piece in (head_of(state, self._key), state.data):
                write_all(reserved.fd, piece)
            reserved.temporary.rename(reserved.final)
        except BaseException:
            reserved.temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(reserved.fd)
        for entry in self.entries(reserved.final.name.rpartition("-")[0]):
            if not entry.being_written and entry.path != reserved.final:
                entry.path.unlink(missing_ok=True)
        return used_bytes

    def _make_room(self, reserved: Reserved, size_bytes: int) -> int:
        """Take room for a file: its length counts for everybody before its bytes are written."""
        with self.locked():
            self.sweep()
            entries = sorted(self.entries(), key=lambda entry: entry.used_at)
            used_bytes = sum(entry.size_bytes for entry in entries)
            removable = [entry for entry in entries if not entry.being_written]
            lasting_bytes = used_bytes - sum(entry.size_bytes for entry in removable)
            if lasting_bytes + size_bytes > self.max_bytes:
                raise NoRoom(
                    f"{size_bytes} bytes beside {lasting_bytes} that are being written are more "
                    f"than the {self.max_bytes} that all may have"
                )
            for entry in removable:
                if used_bytes + size_bytes <= self.max_bytes:
                    break
                entry.path.unlink(missing_ok=True)
                used_bytes -= entry.size_bytes
            os.ftruncate(reserved.fd, size_bytes)
            return used_bytes + size_bytes

    def sweep(self) -> None:
        """Remove what nobody will ask for: states not used for long, files without a writer."""
        now = time.time()
        for entry in self.entries():
            limit_s = MAX_WRITING_S if entry.being_written else MAX_AGE_S
            if now - entry.used_at > limit_s:
                entry.path.unlink(missing_ok=True)
        for path in self.path.glob("*.new"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > MAX_WRITING_S:
                    path.unlink()

    def drop(self, request_id: str) -> None:
        """Remove the states of a request."""
        for entry in self.entries(self._owner(request_id)):
            if not entry.being_written:
                entry.path.unlink(missing_ok=True)

    # Reading.

    def entries_of(self, request_id: str) -> list[Entry]:
        """Return the states of a request, those of most tokens first."""
        found = self.entries(self._owner(request_id))
        return sorted(found, key=lambda entry: -entry.tokens)

    def read(self, entry: Entry, known: Sequence[int], *, beyond_tokens: int) -> KvState | None:
        """Return a state that begins as `known` does, for more than so many tokens; else None.

        Raises:
            StateRefused: damaged, cut short, or not what its name says.
            OSError: it is gone, or cannot be read.
        """
        with entry.path.open("rb") as file:
            head = read_head(file, self._key)
            if shared_prefix_tokens(head.ids, known) <= beyond_tokens:
                return None
            state = read_data(file, head)
        with contextlib.suppress(FileNotFoundError):  # removed while we read
            os.utime(entry.path)
        return state

    # The folder itself.

    def _owner(self, request_id: str) -> str:
        request = hashlib.sha256(request_id.encode()).hexdigest()[:_NAME_DIGITS]
        return f"{self._key_name}-{request}"

    def entries(self, owner: str = "") -> Iterator[Entry]:
        """Yield the files of an owner; without one, those of all cores."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        for name in names:
            match = _STATE.fullmatch(name) if name.startswith(owner) else None
            if match is None or (owner and match["owner"] != owner):
                continue
            path = self.path / name
            try:
                status = path.stat()
            except FileNotFoundError:
                whole = f"{match['owner']}-{match['tokens']}.kv"
                if whole not in names:  # its writer has just ended it, and given it this name
                    names.append(whole)
                continue
            being_written = match["end"] != "kv"
            yield Entry(
                path,
                match["owner"],
                int(match["tokens"]),
                status.st_size,
                status.st_mtime,
                being_written,
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the budget; some 1 ms of work is done under it.

        Raises:
            NoRoom: somebody holds it for too long (it was stopped).
        """
        flags = os.O_RDWR | os.O_CREAT
        fd = os.open(self.path / _LOCK_NAME, flags, OWNER_ONLY_FILE)
        deadline = time.monotonic() + LOCK_LIMIT_S
        try:
            while not _lock(fd, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise NoRoom(f"{_LOCK_NAME} was held for {LOCK_LIMIT_S:g} s")
                time.sleep(LOCK_POLL_S)
            yield
        finally:
            os.close(fd)

    def _appear(self) -> None:
        """Show that we live. The file has its name only when it is locked: nobody doubts it."""
        final = self.path / f"{self._key_name}.{uuid.uuid4().hex}.here"
        temporary = final.with_suffix(".new")
        self._presence = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, OWNER_ONLY_FILE)
        _lock(self._presence, fcntl.LOCK_EX)
        temporary.rename(final)
        self._presence_path = final


def check_folder(path: Path) -> None:
    """Make the folder where it is missing; see that it is ours alone and can be written.

    Raises:
        InvalidConfig: it is not, or cannot; `field` names the setting.
    """
    try:
        path.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise _unusable(path, "it belongs to somebody else")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise _unusable(path, "it is open to others", remedy=f"chmod 700 {path}")
        probe = path / f"{uuid.uuid4().hex}.new"
        probe.touch(OWNER_ONLY_FILE)
        probe.unlink()
    except OSError as error:
        raise _unusable(path, str(error.strerror)) from error


def _unusable(path: Path, why: str, remedy: str = "") -> InvalidConfig:
    return InvalidConfig(
        f"KV states cannot be kept in {path}: {why}",
        field=SETTING,
        remedy=remedy or "name a folder of your own on this machine; empty: none are kept",
    )


def _is_locked(path: Path) -> bool:
    """Whether the core that made this file lives; the file of one that does not is removed."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if not _lock(fd, fcntl.LOCK_SH):
            return True
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(fd)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        return False
    return True
