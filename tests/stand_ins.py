"""Small programs that stand in for the kernel's processes, and ways to look at processes."""

import sys
from pathlib import Path

from aios_local.supervisor.programs import Program

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
# Registers as a worker does, and dies of what it is given to do.
POISONED = """
import os, signal, time, redis
client = redis.Redis.from_url(os.environ["AIOS_REDIS_URL"])
client.hset("rq:worker:poisoned", "pid", os.getpid())
client.sadd("rq:workers", "rq:worker:poisoned")
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""
# Is seen at work in its first life, and dies in all others before anybody can see it.
POISONED_AT_ONCE = """
import os, signal, time, redis
client = redis.Redis.from_url(os.environ["AIOS_REDIS_URL"])
client.delete("rq:workers", "rq:worker:poisoned")
if client.incr("lives") == 1:
    client.hset("rq:worker:poisoned", "pid", os.getpid())
    client.sadd("rq:workers", "rq:worker:poisoned")
    time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
CRASH_WORDS = "the reason of the crash"
CRASH = f"import sys; sys.exit({CRASH_WORDS!r})"


def python_program(name: str, source: str, stage: int = 0, *, one_shot: bool = False) -> Program:
    """Return a program of the kernel that runs Python source."""
    return Program(name, (sys.executable, "-S", "-c", source), stage=stage, one_shot=one_shot)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def with_descendants(pids: list[int]) -> list[int]:
    """Return the processes and all that they started, at this moment."""
    parents = {
        int(entry.name): int(fields[1])
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (fields := _stat(int(entry.name)))
    }
    family = list(pids)
    for one in family:  # grows while it is walked
        family += [pid for pid, parent in parents.items() if parent == one]
    return family


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, group, session, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
