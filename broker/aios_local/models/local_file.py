"""Where a model file lies on this machine, and what lies beside it.

NAME.gguf          the file, there only when it is whole
NAME.gguf.sha256   its checksum as `sha256sum --check` reads it, and where it is from
.NAME.gguf.part    what has come of it, and .NAME.gguf.part.json: of what
.NAME.gguf.lock    held by the one who fetches it; it stays: another may be about to take it
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import AlreadyExists, DownloadFailed, InvalidConfig

OWNER_ONLY = 0o700
SUM_LINE = re.compile(r"^(?P<sha256>[0-9a-f]{64}) [ *](?P<name>.+)$", re.M)
SOURCE_LINE = re.compile(r"^# from (?P<source>.+)$", re.M)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
GIGABYTE, MEGABYTE = 1e9, 1e6


class PartOf(Struct, frozen=True):
    """Which file a part is of: another one's bytes must not be appended to it."""

    source: str
    sha256: str | None = None
    validator: str | None = None  # what If-Range is told


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file, there or to be."""

    path: Path

    @property
    def part_path(self) -> Path:
        """What has come so far."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def sum_path(self) -> Path:
        """The checksum."""
        return self.path.with_name(f"{self.path.name}.sha256")

    @property
    def _note_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part.json")

    def make_folder(self) -> None:
        """Make the folder, for its owner alone.

        Raises:
            InvalidConfig: It cannot be made.
        """
        try:
            self.path.parent.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidConfig(
                f"the folder {self.path.parent} cannot be made: {error.strerror}",
                field="AIOS_MODELS",
                remedy="name a folder that you may write in",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who fetches it.

        Raises:
            AlreadyExists: Another one does.
        """
        lock_path = self.path.with_name(f".{self.path.name}.lock")
        with explained(self.path), lock_path.open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyExists(
                    f"{self.path} is being fetched by another process",
                    remedy="wait until it is done",
                ) from None
            yield

    def kept_sum(self) -> str | None:
        """Return the checksum that was written down, if the file is there and has one."""
        found = SUM_LINE.search(self._sums()) if self.path.is_file() else None
        return found["sha256"] if found is not None else None

    def kept_source(self) -> str | None:
        """Return where the file was fetched from, as it was written down."""
        found = SOURCE_LINE.search(self._sums())
        return found["source"] if found is not None else None

    def _sums(self) -> str:
        try:
            return self.sum_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""  # not there, or nothing of ours

    def part_of(self) -> PartOf | None:
        """Return what the part is of; None where there is none, or nobody knows."""
        try:
            return msgspec.json.decode(self._note_path.read_bytes(), type=PartOf)
        except (OSError, msgspec.DecodeError):
            return None

    def begin_part(self, note: PartOf) -> None:
        """Start with nothing."""
        self.drop_part()
        self._note_path.write_bytes(msgspec.json.encode(note))

    def part_bytes(self) -> int:
        """Return how much has come so far."""
        return self.part_path.stat().st_size if self.part_path.is_file() else 0

    def drop_part(self) -> None:
        """Remove what has come."""
        self.part_path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def settle(self, sha256: str, source: str) -> None:
        """Let the part be the file. Its checksum is there before it is."""
        with self.part_path.open("rb") as part:
            os.fsync(part.fileno())
        text = f"# from {source}\n{sha256}  {self.path.name}\n"
        building = self.sum_path.with_name(f".{self.sum_path.name}.new")
        building.write_text(text, encoding="utf-8")
        building.replace(self.sum_path)
        self.part_path.replace(self.path)
        self._note_path.unlink(missing_ok=True)

    def check_room(self, size_bytes: int) -> None:
        """Refuse what does not fit on the disk.

        Raises:
            DownloadFailed: With both numbers.
        """
        needed = size_bytes - self.part_bytes()
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise DownloadFailed(
                f"{self.path.parent} has room for {size_text(free)}, and {self.path.name} needs "
                f"{size_text(needed)}",
                field="AIOS_MODELS",
                remedy="free some, or name a folder on a larger disk",
            )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Let what a disk refuses be an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DownloadFailed(
                f"{path.parent} is full, or no file there may grow further",
                field="AIOS_MODELS",
                remedy="free some room; the same command goes on where it ended",
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}:
            raise DownloadFailed(
                f"{path} cannot be written: {error.strerror}",
                field="AIOS_MODELS",
                remedy="name a folder that you may write in",
            ) from error
        raise


def sha256_of(path: Path) -> str:
    """Return the checksum of a file; reads all of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(size_bytes: int | None) -> str:
    """Return a size as people read it."""
    if size_bytes is None:
        return "not said by its server"
    if size_bytes >= GIGABYTE:
        return f"{size_bytes / GIGABYTE:.2f} GB"
    if size_bytes >= MEGABYTE:
        return f"{size_bytes / MEGABYTE:.1f} MB"
    return f"{size_bytes} bytes"
