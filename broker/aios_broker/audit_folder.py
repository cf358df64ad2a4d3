"""What the audit log needs outside its database: its key, and the newest line that was noted.

Who may write in the database, its superuser included, has neither: lines that it forges do not
verify, and lines that it cuts off are missed. The folder is `AIOS_AUDIT_DIR`, else `audit` in the
state directory; hosts that share a database share the key.
"""

import contextlib
import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidConfig

VARIABLE = "AIOS_AUDIT_DIR"
KEY_BYTES = 32
OWNER_ONLY = 0o700


class NotedLine(Struct, frozen=True):
    """A line of the audit log as it was seen in the database; it proves all before it."""

    seq: int
    hash: str
    at: float  # when it was noted: Unix time, s


@dataclass(frozen=True, slots=True)
class AuditFolder:
    """The folder; nothing is read before it is asked for."""

    path: Path

    @classmethod
    def of(cls, state_dir: Path, chosen: Path | None) -> "AuditFolder":
        """Return the folder of a kernel: the one that was chosen, else that of its state."""
        return cls((chosen or state_dir / "audit").expanduser().absolute())

    def key(self) -> bytes | None:
        """Return the key; None: there is none here.

        Raises:
            InvalidConfig: it cannot be read, or is none.
        """
        try:
            key = bytes.fromhex(self._key_path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unfit(f"{self._key_path} cannot be read: {error}") from error
        if len(key) != KEY_BYTES:
            raise self._unfit(f"{self._key_path} holds {len(key)} bytes, not {KEY_BYTES}")
        return key

    def made_key(self) -> bytes:
        """Return the key; where there is none, one is made, by the first of all who ask.

        Raises:
            InvalidConfig: it can be neither read nor made.
        """
        key = self.key()
        if key is not None:
            return key
        try:
            self.path.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
            building = self.path / f"key.{secrets.token_hex(8)}"
            _write(building, secrets.token_bytes(KEY_BYTES).hex().encode())
            with contextlib.suppress(FileExistsError):
                os.link(building, self._key_path)
            building.unlink()
        except OSError as error:
            raise self._unfit(f"the audit log's key cannot be made: {error}") from error
        made = self.key()
        assert made is not None
        return made

    def noted(self) -> NotedLine | None:
        """Return the newest line that was noted; None: none was.

        Raises:
            InvalidConfig: it cannot be read.
        """
        try:
            return msgspec.json.decode(self._noted_path.read_bytes(), type=NotedLine)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise self._unfit(f"{self._noted_path} cannot be read: {error}") from error

    def note(self, line: NotedLine) -> None:
        """Keep a line that is newer than the noted one, so that a crash leaves one of the two.

        Raises:
            InvalidConfig: it cannot be written.
        """
        try:
            with (self.path / "lock").open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)  # of the other processes of this host
                noted = self.noted()
                if noted is None or line.seq > noted.seq:
                    building = self._noted_path.with_name(f"noted.{os.getpid()}")
                    _write(building, msgspec.json.encode(line))
                    building.replace(self._noted_path)
        except OSError as error:
            raise self._unfit(f"{self._noted_path} cannot be written: {error}") from error

    def forget(self) -> None:
        """Drop the noted line: a new chain begins."""
        self._noted_path.unlink(missing_ok=True)

    @property
    def _key_path(self) -> Path:
        return self.path / "key"

    @property
    def _noted_path(self) -> Path:
        return self.path / "noted"

    def _unfit(self, why: str) -> InvalidConfig:
        return InvalidConfig(
            why,
            field=VARIABLE,
            remedy="name a folder of the kernel's user, with the key of all hosts of this kernel",
        )


def _write(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, content)
        os.fsync(file)
    finally:
        os.close(file)
