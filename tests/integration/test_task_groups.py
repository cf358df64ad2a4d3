"""A fork bomb takes no more of the machine than it may, however quick it is. Real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from aios_broker.contract.errors import SandboxUnavailable
from aios_broker.contract.tools import RunLimits, ToolCard
from aios_workers.modules.tool.process import tasks
from aios_workers.modules.tool.process.tasks import SPARE_TASKS
from aios_workers.modules.tool.running import Launch, NoSandbox, ToolProgram
from aios_workers.modules.tool.sandbox.bubblewrap import open_bubblewrap
from aios_workers.modules.tool.sandbox.task_groups import BoundedTasks, TaskGroups, open_task_groups
from tests.caller import Caller
from tests.integration.test_sandbox import NOBODY, python_of_all
from tests.tool_scene import ToolScene, value
from tests.waiting import wait_until

MOST = 40
PROCESSES = 8
FORKS = """
import os, sys, time
sys.path.insert(0, {packages!r})
from aios_workers.modules.tool.process.tasks import bound_tasks
bound_tasks({processes})
made = []
try:
    for _ in range({tries}):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        made.append(pid)
except OSError as error:
    print(error.errno == 11, end=" ")
for pid in made:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print(len(made))
"""
MODULE = Path(tasks.__file__)
PACKAGES = MODULE.parents[4]


@pytest.fixture
def groups() -> Iterator[TaskGroups]:
    found = open_task_groups()
    if found is None:
        pytest.skip("this process may make no control groups: what they bound was not tried")
    yield found
    found.sweep()
    assert left() == []


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        yield user


def left() -> list[Path]:
    """Return the groups of this process that are there."""
    return [
        folder
        for hierarchy in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids"))
        for folder in hierarchy.rglob(f"aios-tasks-{os.getpid()}-*")
    ]


def program(processes: int) -> ToolProgram:
    """Return a tool that may have so many processes."""
    card = ToolCard(name="me/forks", limits=RunLimits(processes=processes))
    return ToolProgram(card, "a:b", Path(sys.executable), ())


def test_a_group_bounds_all_below_it(groups: TaskGroups, tmp_path: Path) -> None:
    code = FORKS.format(packages=str(PACKAGES), processes=PROCESSES, tries=4 * SPARE_TASKS)
    bounded = BoundedTasks(NoSandbox(), groups)
    launch = bounded.confined(
        program(PROCESSES), Launch((sys.executable, "-I", "-c", code), {}, tmp_path)
    )

    told = subprocess.run(launch.command, capture_output=True, text=True, check=True, timeout=60)

    refused, count = told.stdout.split()
    assert (refused, int(count)) == ("True", PROCESSES + SPARE_TASKS - 1)


def test_an_ordinary_users_sandbox_bounds_itself() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    try:
        sandbox = open_bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(f"{error.message}: what it bounds was not tried")
    python = python_of_all()
    workspace = Path(tempfile.mkdtemp(prefix="aios-sandbox-"))
    os.chown(workspace, NOBODY, NOBODY)
    # Another user cannot read this checkout: what it needs lies in a folder of its own.
    own = workspace / MODULE.relative_to(PACKAGES)
    own.parent.mkdir(parents=True)
    shutil.copy(MODULE, own)
    code = FORKS.format(packages=str(workspace), processes=PROCESSES, tries=4 * SPARE_TASKS)
    command = (python, "-I", "-B", "-c", code)
    readable = (Path(python).parent.parent, workspace)
    works_in = workspace.with_name(f"{workspace.name}-work")
    launch = sandbox.confined(program(PROCESSES), Launch(command, {}, works_in, readable))
    try:
        told = subprocess.run(
            launch.command,
            pass_fds=launch.descriptors,
            env={},
            cwd=workspace,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        for each in launch.descriptors:
            os.close(each)
        shutil.rmtree(workspace)
    assert told.stderr == ""
    refused, count = told.stdout.split()
    assert refused == "True"
    assert PROCESSES <= int(count) < PROCESSES + SPARE_TASKS


async def test_a_workers_tools_are_in_groups_that_go_with_it(
    groups: TaskGroups, tmp_path: Path, caller: Caller
) -> None:
    scene = ToolScene(tmp_path, "add")
    async with scene.worker(caller.url):
        await value(caller, "add", a=1)
        bounds = {int((group / "pids.max").read_text()) for group in left()}
        assert RunLimits().processes + SPARE_TASKS in bounds
    wait_until(lambda: left() == [])


def test_what_a_dead_worker_left_is_removed(groups: TaskGroups) -> None:
    dead = subprocess.Popen(("/bin/true",))
    dead.wait()
    left_by_it, of_ours = (
        Path(groups.joining(MOST, ("/bin/true",))[3]).parent.with_name(f"aios-tasks-{pid}-9")
        for pid in (dead.pid, os.getpid())
    )
    left_by_it.mkdir()
    of_ours.mkdir()

    open_task_groups()

    assert [group.exists() for group in (left_by_it, of_ours)] == [False, True]
    of_ours.rmdir()
