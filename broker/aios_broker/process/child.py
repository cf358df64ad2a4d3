"""A program of the kernel: what to run (`Service`), and one run of it (`Child`).

A child never outlives the thread that started it: when that thread ends, by `kill -9` too, the
machine's kernel signals the child. So start children from a thread that stays.
"""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from aios_broker.contract.errors import Unavailable

Identity = Literal["same", "namespace", "nobody"]

SHIM = Path(__file__).with_name("shim.py")
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0  # SIGKILL cannot be refused; only a process stuck in the machine takes longer
LOCK_TIMEOUT_S = 10.0  # an earlier run on the same data may still be writing its last bytes
POLL_S = 0.01


def nothing_to_prepare() -> None:
    """Do nothing: most services need no step before they start."""


def always_ready(_pid: int) -> bool:
    """Count as ready from the start: for services that cannot be asked."""
    return True


@dataclass(frozen=True, slots=True)
class Service:
    """What to run and how to treat it."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]  # all of it: nothing is inherited
    identity: Identity = "same"
    # Locked by the child and by all that it forks, for as long as one of them lives.
    lock_path: Path | None = None
    # Sent when the thread that started it ends.
    death_signal: signal.Signals = signal.SIGKILL
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = STOP_TIMEOUT_S
    ready_timeout_s: float = READY_TIMEOUT_S
    one_shot: bool = False  # runs to its end, once; what comes after waits for exit code 0
    prepare: Callable[[], None] = field(default=nothing_to_prepare)  # before each start, locked
    is_ready: Callable[[int], bool] = field(default=always_ready)  # asked with the process id
    needed: bool = True  # else what starts it goes on without it, and never gives it up
    version: str = ""  # of what it does: a service of the same name and version is the same one


class Child:
    """One run of a service: a process, in a session of its own."""

    def __init__(self, service: Service, process: subprocess.Popen[bytes]) -> None:
        self.service = service
        self.process = process
        self.started_at = time.monotonic()

    @classmethod
    def start(cls, service: Service, output: int | IO[bytes]) -> "Child":
        """Start the service; its standard output and errors go to `output`.

        Raises:
            Unavailable: Another run still holds the lock, or the program cannot be started.
        """
        lock = _lock(service) if service.lock_path else None
        try:
            service.prepare()
            process = subprocess.Popen(
                _shim_command(service),
                env=dict(service.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Not in the terminal's group: Ctrl-C is for the supervisor, which stops in order.
                start_new_session=True,
                pass_fds=() if lock is None else (lock,),
            )
        except OSError as error:
            raise Unavailable(f"cannot start {service.name}: {error}") from error
        finally:
            if lock is not None:
                os.close(lock)
        return cls(service, process)

    @property
    def pid(self) -> int:
        """The process id, and the id of its session."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self.process.poll()

    def is_ready(self) -> bool:
        """Tell whether the service does its work now."""
        return self.exit_code is None and self.service.is_ready(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; one that has ended is left alone."""
        self.process.send_signal(number)

    def kill_session(self) -> None:
        """End the process and all that it forked, at once."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()

    def stop(self, timeout_s: float | None = None) -> int:
        """Ask it to stop, kill it when the time is over; return its exit code."""
        self.signal(self.service.stop_signal)
        try:
            return self.process.wait(
                self.service.stop_timeout_s if timeout_s is None else timeout_s
            )
        except subprocess.TimeoutExpired:
            self.kill_session()
            return self.process.wait(KILL_TIMEOUT_S)


def _shim_command(service: Service) -> list[str]:
    """Return the command that ties the service to this thread and then runs it.

    -I -S: nothing of the user's environment or site-packages is read.
    """
    return [
        sys.executable,
        *("-I", "-S", str(SHIM)),
        *(str(os.getpid()), str(int(service.death_signal)), service.identity),
        *service.command,
    ]


def _lock(service: Service) -> int:
    """Open and lock the service's lock file; wait for an earlier run to let go of it."""
    assert service.lock_path is not None
    lock = os.open(service.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not wait_for(lambda: try_lock(lock), LOCK_TIMEOUT_S):
        os.close(lock)
        raise Unavailable(
            f"another {service.name} still uses the data beside {service.lock_path}",
            remedy=f"end it, or take another state directory; `fuser {service.lock_path}`",
        )
    return lock


def try_lock(file: int) -> bool:
    """Lock an open file for as long as it is open; return whether nobody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(condition: Callable[[], bool], timeout_s: float, every_s: float = POLL_S) -> bool:
    """Wait in this thread until the condition holds; return whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


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


KERNEL_EXTRA = "install 'aios-broker[kernel]'"  # the remedy where one of them is missing


def package_dir(package: str) -> Path | None:
    """Return where a package is installed, or None; the package itself is not run."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0])
