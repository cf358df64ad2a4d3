"""A child process that code runs in: its two streams, kept apart and bounded, and its exit code."""

import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CHUNK = 1 << 16
HALF_BYTES = 24 * 1024  # that is kept of a stream's beginning, and as many of its end
MOST_VALUE_BYTES = 64 * 1024
DRAIN_S = 1.0  # for what is in a pipe once the child has ended
_FREE = 20  # from here on no descriptor is in use


@dataclass(slots=True)
class Kept:
    """What is kept of a stream: its beginning and its end."""

    first: bytearray = field(default_factory=bytearray)
    last: bytearray = field(default_factory=bytearray)
    left_out: int = 0

    def add(self, data: bytes) -> None:
        """Take what has come."""
        room = HALF_BYTES - len(self.first)
        self.first += data[:room]
        self.last += data[room:] if room > 0 else data
        if (more := len(self.last) - HALF_BYTES) > 0:
            del self.last[:more]
            self.left_out += more

    def text(self) -> str:
        """Return it as text; what is left out is told in its place."""
        if not self.left_out:
            return bytes(self.first + self.last).decode(errors="replace")
        between = f"\n[... {self.left_out} bytes left out ...]\n"
        return self.first.decode(errors="replace") + between + self.last.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended."""

    code: int  # below 0: the signal that ended it
    streams: tuple[Kept, Kept, Kept]  # its output, its errors, and what it said of a value
    timed_out: bool

    def told(self) -> dict[str, Any]:
        """Return it as a tool's value."""
        output, errors, _ = self.streams
        told: dict[str, Any] = {
            "exit_code": self.code,
            "stdout": output.text(),
            "stderr": errors.text(),
        }
        if self.timed_out:
            told["timed_out"] = True
        return told


def run_child(be: Callable[[int], None], limit_s: float) -> Ended:
    """Run a function in a child of its own group, which ends with it; `be` returns never.

    It is given the descriptor by which it may say a value.
    """
    ends = [os.pipe() for _ in range(3)]
    pid = os.fork()
    if pid == 0:
        try:
            _be_child(be, ends)
        finally:
            os._exit(127)
    for _, writing in ends:
        os.close(writing)
    return _followed(pid, [reading for reading, _ in ends], limit_s)


def _be_child(be: Callable[[int], None], ends: list[tuple[int, int]]) -> None:
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(ends[0][1], 1)
    os.dup2(ends[1][1], 2)
    value = os.dup2(ends[2][1], _FREE, inheritable=False)
    os.closerange(3, _FREE)
    os.closerange(_FREE + 1, 256)
    be(value)


def _followed(pid: int, files: list[int], limit_s: float) -> Ended:
    streams = (Kept(), Kept(), Kept())
    exited = os.pidfd_open(pid)
    until = time.monotonic() + limit_s
    timed_out = False
    code: int | None = None
    with selectors.DefaultSelector() as selector:
        for file, stream in zip(files, streams, strict=True):
            selector.register(file, selectors.EVENT_READ, stream)
        selector.register(exited, selectors.EVENT_READ, None)
        while selector.get_map() and time.monotonic() < until:
            for key, _ in selector.select(max(0.0, until - time.monotonic())):
                if key.data is None:
                    selector.unregister(exited)
                    code = _ended(pid)
                    until = time.monotonic() + DRAIN_S
                elif not _read(key.fd, key.data):
                    selector.unregister(key.fd)
            if code is None and time.monotonic() >= until:
                timed_out = True
                _kill(pid)
                until += DRAIN_S
    if code is None:
        code = _ended(pid)
    for file in (*files, exited):
        os.close(file)
    return Ended(code, streams, timed_out)


def _read(file: int, stream: Kept) -> bool:
    data = os.read(file, CHUNK)
    stream.add(data)
    return bool(data)


def _ended(pid: int) -> int:
    """Take a child's exit code, and end what is left of its group."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    _kill(pid)  # its number is not another's yet
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _kill(pid: int) -> None:
    for end in (os.kill, os.killpg):
        try:
            end(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
