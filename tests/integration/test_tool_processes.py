"""Processes of tools: one per version and agent, started once, ended when they are not used."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from aios_broker.contract.errors import ToolUnavailable
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import new_id
from aios_broker.contract.tools import ToolResult
from aios_workers.modules.tool import processes
from aios_workers.modules.tool.opening import open_registry, told_of
from aios_workers.modules.tool.processes import ToolProcesses
from aios_workers.modules.tool.registry import ToolRegistry
from aios_workers.modules.tool.running import NoSandbox, ToolCall, ToolProgram
from aios_workers.modules.tool.tool_process import ToolChanged, kill
from tests.tool_scene import NAMES, ToolScene
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(60)
ANN, BOB = Owner("acme", "ann"), Owner("acme", "bob")


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class Scene:
    """A registry and a runner, without a kernel."""

    def __init__(self, tools: ToolScene, registry: ToolRegistry, runner: ToolProcesses) -> None:
        self.tools = tools
        self.registry = registry
        self.runner = runner

    async def program(self, name: str) -> ToolProgram:
        return await self.registry.program(f"me/{name}")

    async def call(self, program: ToolProgram, owner: Owner, **arguments: object) -> ToolResult:
        return await self.runner.run(program, ToolCall(new_id(), owner, arguments), lambda _: None)

    def folders(self) -> list[Path]:
        """Return those that processes work in."""
        calls = self.tools.folder / "work" / "calls"
        return sorted(calls.iterdir()) if calls.exists() else []


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    tools = ToolScene(tmp_path, *NAMES)
    async with AsyncExitStack() as stack:
        work = tmp_path / "work"
        registry = open_registry(tools.file, tmp_path / "state", {}, work)
        stack.push_async_callback(registry.close)
        runner = ToolProcesses(work / "calls", NoSandbox(), told_of({}))
        stack.push_async_callback(runner.close)
        yield Scene(tools, registry, runner)
    assert not (tmp_path / "work" / "calls").exists()


async def test_many_calls_at_once_start_one_process(scene: Scene) -> None:
    program = await scene.program("add")
    results = await asyncio.gather(*(scene.call(program, ANN, a=n) for n in range(40)))

    assert [result.value for result in results] == [n + 1 for n in range(40)]
    assert len(scene.folders()) == 1


async def test_two_agents_have_a_process_each(scene: Scene) -> None:
    program = await scene.program("add")
    await scene.call(program, ANN, a=1)
    await scene.call(program, BOB, a=1)

    assert len(scene.folders()) == 2


async def test_one_that_is_not_used_is_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "IDLE_S", 0.0)
    await scene.call(await scene.program("add"), ANN, a=1)

    await wait_until_async(lambda: scene.folders() == [])


async def test_one_that_was_killed_is_started_anew(scene: Scene) -> None:
    program = await scene.program("add")
    await scene.call(program, ANN, a=1)
    [kept] = scene.runner._kept.values()
    os.kill(kept.process._process.pid, 9)

    await wait_until_async(lambda: not kept.process.is_alive)
    assert (await scene.call(program, ANN, a=2)).value == 3


async def test_a_cancelled_call_has_ended_when_its_caller_goes_on(scene: Scene) -> None:
    program = await scene.program("slow")
    told = str(scene.tools.told)
    call = asyncio.create_task(scene.call(program, ANN, path=told, seconds=600))
    await wait_until_async(lambda: len(scene.tools.lines()) == 1)
    call.cancel()
    await asyncio.wait([call])

    pid = int(scene.tools.lines()[0].split()[1])
    assert not is_there(pid)
    assert call.cancelled()


async def test_what_is_on_disk_when_it_is_started_is_what_was_described(scene: Scene) -> None:
    program = await scene.program("add")
    module = scene.tools.module
    module.write_text(module.read_text().replace("return a + b", "return a * 100"))

    with pytest.raises(ToolChanged):
        await scene.call(program, ANN, a=1)
    scene.registry.forget("me/add")
    assert (await scene.call(await scene.program("add"), ANN, a=1)).value == 100


async def test_a_number_that_is_another_process_by_now_is_left_alone() -> None:
    """What was started has ended; its number is used again, by a group of somebody else."""
    left = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 600 & exec true", start_new_session=True
    )
    await left.wait()  # and what it began is still there
    [child] = [pid for pid in all_pids() if group_of(pid) == left.pid]
    other = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    assert left.returncode == 0
    number, left.pid = left.pid, other.pid

    kill(left)
    with pytest.raises(TimeoutError):  # a signal would have come long before
        await asyncio.wait_for(other.wait(), 1.0)

    left.pid = number
    kill(left)
    await wait_until_async(lambda: not is_there(child))
    kill(other)
    await other.wait()


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


async def test_a_python_that_is_not_there_is_told(scene: Scene, tmp_path: Path) -> None:
    program = await scene.program("add")
    wrong = replace(program, python=tmp_path / "no")

    with pytest.raises(ToolUnavailable, match="cannot be started"):
        await scene.call(wrong, ANN, a=1)
    assert scene.folders() == []
