"""A file of settings that people and commands write: read, replaced in one step, one at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig, Unavailable
from aios_broker.process.child import try_lock, wait_for

MODE = 0o600  # it may say where this machine's keys are
LOCK_LIMIT_S = 5.0  # another command writes a file of a few lines


class TomlFile:
    """One file, whether it is there or not."""

    def __init__(self, path: Path) -> None:
        # What a link leads to is changed, not the link.
        self.path = path.expanduser().resolve()

    def text(self) -> str:
        """Return what it says; nothing where there is none.

        Raises:
            InvalidConfig: It cannot be read.
        """
        try:
            return self.path.read_bytes().decode()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(
                f"{self.path} cannot be read: {error}",
                field=self.path.name,
                remedy="correct the file",
            ) from error

    def write(self, text: str) -> None:
        """Replace the file in one step: who reads it sees the old one or the new one, whole."""
        building = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            building.unlink(missing_ok=True)
            file = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
            with os.fdopen(file, "wb") as written:
                written.write(text.encode())
                written.flush()
                os.fsync(written.fileno())
            building.replace(self.path)
        except OSError as error:
            building.unlink(missing_ok=True)
            raise Unavailable(
                f"{self.path} cannot be written: {error}", remedy="see who may write there"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For the length of a block, nobody else changes it.

        Raises:
            Unavailable: Somebody else does, for longer than that takes.
        """
        lock_path = self.path.with_name(f"{self.path.name}.lock")
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        except OSError as error:
            raise Unavailable(
                f"{lock_path} cannot be opened: {error}", remedy="see who may write there"
            ) from error
        try:
            if not wait_for(lambda: try_lock(lock), LOCK_LIMIT_S):
                raise Unavailable(f"another command changes {self.path}", remedy="try again")
            yield
        finally:
            os.close(lock)
