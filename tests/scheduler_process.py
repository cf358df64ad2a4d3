"""A scheduler in a process of its own, as a supervisor starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STOP_TIMEOUT_S = 10.0


class SchedulerProcess:
    """Runs `python -m aios_broker.scheduler`; ends with the block."""

    def __init__(self, redis_url: str, log_path: Path, **settings: object) -> None:
        self._log_path = log_path
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(ROOT / "broker"),
            "AIOS_REDIS_URL": redis_url,
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SchedulerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that runs, or the last one that did."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log_path.read_text()

    def start(self) -> None:
        """Start it; it logs on from where the one before ended."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "aios_broker.scheduler"), env=self._environment, stderr=log
            )

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def pause(self) -> None:
        """Freeze it: it lives, and does not know that time goes by."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Thaw it."""
        self.process.send_signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Return the processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
