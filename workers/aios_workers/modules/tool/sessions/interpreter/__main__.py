"""A session's process: runs what it is told to, one run after the other.

    python -I -u PATH_OF_THIS_FILE

Its standard input is a socket (`line.py`). What runs prints to standard output and error, which
the worker reads. When the socket ends, so does all that runs.
"""

import ctypes
import os
import resource
import signal
import sys
import types
from typing import Any

_PACKAGES = os.path.dirname(os.path.abspath(__file__)).partition("/aios_workers/")[0]
sys.dont_write_bytecode = True
sys.path.insert(0, _PACKAGES)

from aios_workers.modules.tool.process.tasks import bound_tasks  # noqa: E402  from there alone
from aios_workers.modules.tool.sessions.interpreter.line import Line  # noqa: E402
from aios_workers.modules.tool.sessions.interpreter.python_runs import PythonRuns  # noqa: E402
from aios_workers.modules.tool.sessions.interpreter.shell_runs import ShellRuns  # noqa: E402

sys.path.remove(_PACKAGES)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MOST_FILES = 1024  # open at once

_runs: list[PythonRuns | ShellRuns] = []


def main() -> None:
    """Serve a session; returns never."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    line = Line(_interrupt, _leave)
    begun = line.begin()
    bind(begun["limits"])
    sys.path.insert(0, os.getcwd())
    if begun["interpreter"] == "shell":
        runs: PythonRuns | ShellRuns = ShellRuns()
    else:
        runs = PythonRuns(begun["limits"]["cpu_s"], kernel_module(line, begun["kernel"]))
    _runs.append(runs)
    line.tell({"ready": True})
    while True:
        asked = line.next_run()
        line.tell(runs.run(asked["run"], asked["code"]))


def _interrupt(number: int) -> None:
    for runs in _runs:
        runs.interrupt(number)


def _leave() -> None:
    for runs in _runs:
        runs.leave()


def bind(limits: dict[str, Any]) -> None:
    """Limit this process and all that it begins."""
    for kind, most in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, MOST_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (wanted, wanted))
    bound_tasks(limits["processes"])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails, and no process dies


def kernel_module(line: Line, source: str) -> types.ModuleType:
    """Return the module `kernel`: functions that make syscalls by the line."""
    module = types.ModuleType("kernel", "Syscalls of the agent whose session this is.")
    module.__dict__["_ask"] = line.call
    exec(compile(source, "<kernel>", "exec"), module.__dict__)  # noqa: S102  the worker wrote it
    return module


if __name__ == "__main__":
    main()
