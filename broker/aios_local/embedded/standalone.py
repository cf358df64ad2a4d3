"""One embedded server without a supervisor: for tests, checks and tools."""

import subprocess
from pathlib import Path

from aios_broker.contract.errors import Unavailable
from aios_broker.process.child import Child, Service, wait_for

LOG_TAIL_LINES = 5


class StandaloneServer:
    """Runs a service until it is stopped; as a context manager, for the length of a block.

    Start it from a thread that stays: the server dies with it.
    """

    def __init__(self, service: Service, log_path: Path) -> None:
        self.service = service
        self._log_path = log_path
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running.pid

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            Unavailable: It ended, or was not ready within the service's time.
        """
        with self._log_path.open("ab") as log:
            self._child = child = Child.start(self.service, log)
        wait_for(
            lambda: child.is_ready() or child.exit_code is not None, self.service.ready_timeout_s
        )
        if not child.is_ready():
            self.kill()
            raise Unavailable(f"{self.service.name} did not start: {self._last_lines()}")

    def stop(self) -> int:
        """Stop it in order; return its exit code. A server that has ended stays ended."""
        code = self._running.stop()
        self._child = None
        return code

    def kill(self) -> None:
        """End it at once, as `kill -9` does: its process alone, what it forked must notice."""
        self._running.process.kill()
        self._running.process.wait()
        self._child = None

    def __enter__(self) -> "StandaloneServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self.stop()

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise Unavailable(f"{self.service.name} is not running")
        return self._child

    def _last_lines(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return " | ".join(lines[-LOG_TAIL_LINES:]) or subprocess.list2cmdline(self.service.command)
