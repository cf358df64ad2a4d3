"""What clients submitted and heard, and what was done to the kernel: lines of JSON, never changed.

Each process appends to a file of its own and flushes every line, so that a killed one has told
all it knew. Times are the machine's wall clock, read past any clock that a plan lets jump.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct


class Born(Struct, frozen=True, tag="born"):
    """A client process began; it hears under this name."""

    at: float
    client: str


class Planned(Struct, frozen=True, tag="planned"):
    """A program is about to ask this: written before anything is sent."""

    at: float
    id: str
    client: str
    program: str
    number: int  # of the program's own syscalls; each waits for the one before
    kind: str  # echo, chat, cancel (a chat that is cancelled), expand, poison
    text: str
    tokens: int = 0  # of a chat, at most
    temperature: float = 0.0
    seed: int = 0


class Sent(Struct, frozen=True, tag="sent"):
    """A submit left for the kernel. `planned` twice: it was sent twice on purpose."""

    at: float
    ids: tuple[str, ...]


class Acknowledged(Struct, frozen=True, tag="acknowledged"):
    """The kernel has it."""

    at: float
    id: str


class Heard(Struct, frozen=True, tag="heard"):
    """A reply came: pushed to the client's list, or found by id."""

    at: float
    id: str
    reply: str  # as it came
    found: bool = False  # by id
    dropped: bool = False  # on purpose, before the client saw it


class Ended(Struct, frozen=True, tag="ended"):
    """What the waiting program was told, by the SDK. `code`: of the error, empty for a result."""

    at: float
    id: str
    code: str


class Struck(Struct, frozen=True, tag="struck"):
    """A fault."""

    at: float
    kind: str  # kill-worker, stop-redis, ...
    victim: str  # name of the process
    pid: int
    until: float  # when it was set going again; `at` for a kill
    recovered_s: float | None = None  # until it was seen at work again


class Gone(Struct, frozen=True, tag="gone"):
    """A client process was killed: nobody waits for what it had asked."""

    at: float
    client: str


Record = Born | Planned | Sent | Acknowledged | Heard | Ended | Struck | Gone

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def wall_s() -> float:
    """Return the machine's wall clock, whatever was done to this process's own."""
    return time.clock_gettime(time.CLOCK_REALTIME)


class Log:
    """One process's history, appended line by line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Append a record; it is in the machine's hands when this returns."""
        self._file.write(_encoder.encode(record) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def read_logs(paths: Iterable[Path]) -> list[Record]:
    """Return all records in the order of time; the torn last line of a killed process is left."""
    records: list[Record] = []
    for path in paths:
        *lines, _rest = path.read_bytes().split(b"\n")
        records += [_decoder.decode(line) for line in lines]
    return sorted(records, key=lambda record: record.at)
