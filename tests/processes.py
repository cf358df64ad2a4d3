"""Processes of the operating system, as fault tests hurt them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def frozen_family(pid: int) -> Iterator[None]:
    """Keep a process and all that it has forked from running for the length of a block."""
    pids = list(family(pid))
    for each in pids:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in pids:
            os.kill(each, signal.SIGCONT)


def family(pid: int) -> Iterator[int]:
    """Yield a process and all that it has forked."""
    yield pid
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if parent == pid:
            yield from family(int(stat.parent.name))
