"""The client processes of a run: started, killed, started again under the same name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from aios_broker.contract.errors import Unavailable
from benchmarks.chaos.history import Gone, Log, wall_s


class Crowd:
    """All client processes."""

    def __init__(
        self, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._commands = commands
        self._environment = environment
        self._folder = folder
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._gone = Log(folder / "gone.jsonl")
        self._output = (folder / "clients.log").open("ab")

    def __enter__(self) -> Self:
        for name in self._commands:
            self.start(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._output.close()
        self._gone.close()

    def start(self, name: str) -> None:
        """Start a client."""
        with self._lock:
            self._processes[name] = subprocess.Popen(
                (
                    sys.executable,
                    "-m",
                    "benchmarks.chaos.client",
                    "--name",
                    name,
                    "--folder",
                    str(self._folder),
                    *self._commands[name],
                ),
                env=self._environment,
                stdout=self._output,
                stderr=self._output,
            )

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a client; return its process id."""
        with self._lock:
            process = self._processes[name]
            if process.poll() is not None:
                raise Unavailable(f"{name} does not run")
            os.kill(process.pid, number)
            return process.pid

    def kill(self, name: str) -> int:
        """End a client as `kill -9` does."""
        pid = self.signal(name, signal.SIGKILL)
        self._processes[name].wait()
        self._gone.write(Gone(wall_s(), f"{name}.{pid}"))
        return pid

    def leave(self, patience_s: float) -> dict[str, int]:
        """Ask all to leave; return the exit codes of those that did not leave in order.

        Args:
            patience_s: For their programs to hear all that they have asked; then they are killed.
        """
        codes: dict[str, int] = {}
        until = time.monotonic() + patience_s
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self._processes.items():
            try:
                code = process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code:
                codes[name] = code
        return codes
