"""Small programs that stand in for the kernel's processes, and ways to look at processes."""

import sys
from pathlib import Path

from aios_broker.supervisor import Program

SLEEP = "import time\nprint('at work', flush=True)\ntime.sleep(600)"
# Ends its work in order on SIGTERM, and says so.
DRAIN = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit('drained'))
print('at work', flush=True)
signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('at work', flush=True)
while True:
    signal.pause()
"""
CRASH = "import sys; sys.exit('the reason of the crash')"


def python_program(name: str, source: str, stage: int = 0, *, one_shot: bool = False) -> Program:
    """Return a program of the kernel that runs Python source."""
    return Program(name, (sys.executable, "-S", "-c", source), stage=stage, one_shot=one_shot)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def alive_in_sessions(leaders: list[int]) -> list[int]:
    """Return the live processes of the sessions: each child of a supervisor, and all it forked."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in numbers if is_alive(pid) and _session(pid) in leaders]


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[3]) if fields else None


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, group, session, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
