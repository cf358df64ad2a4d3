"""Bounds the tasks of a tool's processes before anybody counts them: by a control group.

Counting from outside comes late: in a quarter of a second a fork bomb takes every number that the
machine has for processes, and nobody else can start one. Linux itself refuses the next task here.
Sources: Linux, admin-guide/cgroup-v1/pids and admin-guide/cgroup-v2 ("PID").
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aios_broker.contract.tools import SandboxKind
from aios_workers.modules.tool.process.tasks import SPARE_TASKS
from aios_workers.modules.tool.running import Launch, Sandbox, ToolProgram
from aios_workers.modules.tool.sandbox_files import SandboxFiles

NAME = "aios-tasks-"
UNUSED_S = 120.0  # so old an empty group is one whose processes have ended
CLOSE_LIMIT_S = 2.0  # processes that were killed take a moment to be gone
CLOSE_STEP_S = 0.01
_GROUPS = Path("/sys/fs/cgroup")
_JOIN = 'echo $$ > "$0" && exec "$@"'


class TaskGroups:
    """The groups of one worker process, each of one tool's process and all below it."""

    def __init__(self, parent: Path) -> None:
        """Make groups below a group that this process may write to."""
        self._parent = parent
        self._made: dict[Path, float] = {}

    def joining(self, most: int, command: Sequence[str]) -> tuple[str, ...]:
        """Return a command so that it, with all below it, never is more tasks than that.

        Raises:
            OSError: The group cannot be made.
        """
        self.sweep(UNUSED_S)
        group = self._parent / f"{NAME}{os.getpid()}-{secrets.token_hex(6)}"
        group.mkdir()
        self._made[group] = time.monotonic()
        (group / "pids.max").write_text(str(most))
        return ("/bin/sh", "-c", _JOIN, str(group / "cgroup.procs"), *command)

    def sweep(self, unused_s: float = 0.0) -> None:
        """Remove groups in which nothing runs any more, of those made so long ago."""
        before = time.monotonic() - unused_s
        for group in [group for group, made in self._made.items() if made <= before]:
            if _removed(group):
                del self._made[group]

    async def close(self) -> None:
        """Remove all groups; what still runs in one is left to the next worker that starts."""
        until = time.monotonic() + CLOSE_LIMIT_S
        self.sweep()
        while self._made and time.monotonic() < until:
            await asyncio.sleep(CLOSE_STEP_S)
            self.sweep()


@dataclass(frozen=True, slots=True)
class BoundedTasks:
    """A sandbox, and around it a bound on tasks."""

    inner: Sandbox
    groups: TaskGroups

    @property
    def kind(self) -> SandboxKind:
        """Which the sandbox is."""
        return self.inner.kind

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the sandbox does not keep."""
        return self.inner.warnings

    def confined(self, program: ToolProgram, launch: Launch) -> Launch:
        """Return how the process is started so that it is kept in, and bounded."""
        found = self.inner.confined(program, launch)
        most = program.card.limits.processes + SPARE_TASKS
        return replace(found, command=self.groups.joining(most, found.command))

    def files(self, launch: Launch, pid: int) -> SandboxFiles:
        """Return the files of the sandbox."""
        return self.inner.files(launch, pid)


def open_task_groups() -> TaskGroups | None:
    """Return where groups can be made; None: nowhere, this process may not.

    What a worker that died has left there is removed.
    """
    for parent in _parents(Path("/proc/self/cgroup").read_text().splitlines()):
        with contextlib.suppress(OSError):
            _remove_left(parent)
            _try(parent)
            return TaskGroups(parent)
    return None


def _parents(lines: Iterable[str]) -> Iterable[Path]:
    """Yield where groups of this process's own group lie: a container may show it as the root."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            yield _GROUPS / "pids" / path.lstrip("/")
            yield _GROUPS / "pids"
        elif not controllers:
            yield _GROUPS / path.lstrip("/")


def _try(parent: Path) -> None:
    group = parent / f"{NAME}{os.getpid()}-0"
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(SPARE_TASKS))
    finally:
        group.rmdir()


def _remove_left(parent: Path) -> None:
    for group in parent.glob(f"{NAME}*"):
        pid = group.name.removeprefix(NAME).partition("-")[0]
        if not Path("/proc", pid).exists():
            _removed(group)


def _removed(group: Path) -> bool:
    """Whether a group is gone now; one in which something runs cannot be removed."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
