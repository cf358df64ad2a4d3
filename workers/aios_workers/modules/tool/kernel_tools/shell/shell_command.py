"""Runs a command once, by bash where there is one."""

import os
import shutil
import signal
from collections.abc import Sequence
from typing import Any

from aios_workers.modules.tool.kernel_tools.children import run_child


def run_shell(command: str, files: Sequence[str] = (), timeout_s: float = 30.0) -> dict[str, Any]:
    """Return what the command printed, and its exit code."""
    return run_child(lambda _: _be_shell(command), timeout_s).told()


def _be_shell(command: str) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and would hand on
        signal.signal(number, signal.SIG_DFL)
    program = shutil.which("bash") or "/bin/sh"
    os.execv(program, [os.path.basename(program), "-c", command])
