"""What is written in a sandbox has a bound, wherever it is: real sandboxes, hostile tools."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from aios_broker.contract.errors import KernelError, SandboxUnavailable, ToolLimit
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import new_id
from aios_broker.contract.tools import ToolCard, ToolResult
from aios_workers.modules.tool.opening import open_registry, told_of
from aios_workers.modules.tool.processes import ToolProcesses
from aios_workers.modules.tool.running import Launch, NoSandbox, Sandbox, ToolCall, ToolProgram
from aios_workers.modules.tool.sandbox.bubblewrap import Bubblewrap, open_bubblewrap
from aios_workers.modules.tool.sandbox_files import FileUsage, SandboxFiles, SandboxLost
from tests.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(120)
ANN = Owner("acme", "ann")
MOST = FileUsage(1 << 40, 1 << 40)
LIMIT = 1024**2
SHARED_LIMIT = 12 * LIMIT  # what an agent's calls of a tool may write that run at the same time

MODULE = f"""
import array, ctypes, mmap, os, socket, tempfile, time
from aios_sdk import RunLimits, tool

PART = b"x" * 100_000
SMALL = RunLimits(timeout_s=20.0, file_bytes={LIMIT})


def fill(where: str, hold: float) -> str:
    "Write without end, in one of the ways that no file of the folder shows; then wait."
    held, folder = [], {{"shm": "/dev/shm", "tmp": "/tmp", "beside": ".."}}.get(where, ".")
    if where == "sparse":
        with open("sparse", "wb") as file:
            file.truncate(1 << 40)
    for number in range(1_000_000):
        if where == "many":
            open(f"../{{number}}", "wb").close()
            continue
        if where == "memfd":
            held.append(os.memfd_create("x"))
            os.write(held[-1], PART)
            continue
        file = open(f"{{folder}}/{{number}}", "w+b", buffering=0)
        if file.write(PART) < len(PART):
            file.write(PART)  # there was no room for all of it
        if where == "open":
            os.unlink(file.name)
            held.append(file)
        elif where == "mapped":
            os.unlink(file.name)
            held.append(mmap.mmap(file.fileno(), len(PART)))
        elif where == "sent":
            os.unlink(file.name)
            held.append(socket.socketpair())
            socket.send_fds(held[-1][0], [b"x"], [file.fileno()])
        if number == 15 and hold:  # 1.6 MB: beyond the limit, and then it only waits
            time.sleep(hold)
    return "filled"


def leave() -> str:
    for path in ("../left", "/tmp/left", "/dev/shm/left"):
        open(path, "w").close()
    os.makedirs("../deep/" + "d/" * 100)
    os.chmod("../deep", 0)
    return "left"


def look() -> list[list[str]]:
    return [sorted(os.listdir(path)) for path in ("..", "/tmp", "/dev/shm")]


def replace(by: str) -> str:
    "Put a link where the folder of the call was."
    here = os.getcwd()
    os.rename(here, here + ".moved")
    os.symlink(by, here)
    return "replaced"


def shared_memory() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.shmget(0, 1 << 20, 0o1600)


@tool(limits=SMALL)
def act(what: str, values: list):
    return globals()[what](*values)
"""


@pytest.fixture(scope="module")
def bubblewrap() -> Bubblewrap:
    try:
        return open_bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(f"{error.message}: what it keeps in was not tried")


@dataclass
class Scene:
    """Tools in one sandbox, without a kernel."""

    runner: ToolProcesses
    program: ToolProgram

    async def call(self, what: str, *values: object) -> ToolResult:
        call = ToolCall(new_id(), ANN, {"what": what, "values": list(values)})
        return await self.runner.run(self.program, call, lambda _: None)

    def files(self) -> SandboxFiles:
        """Return those of the one process."""
        [kept] = self.runner._kept.values()
        return kept.files


async def opened(folder: Path, sandbox: Sandbox, stack: AsyncExitStack) -> Scene:
    (folder / "mine.py").write_text(MODULE)
    entry = f'[tools."me/act"]\nfunction = "mine:act"\npath = "{folder}"'
    (folder / "tools.toml").write_text(entry)
    work = folder / "work"
    registry = open_registry(folder / "tools.toml", folder / "state", {}, work, sandbox=sandbox)
    stack.push_async_callback(registry.close)
    runner = ToolProcesses(work / "calls", sandbox, told_of({}))
    stack.push_async_callback(runner.close)
    return Scene(runner, await registry.program("me/act"))


@pytest.fixture
async def scene(tmp_path: Path, bubblewrap: Bubblewrap) -> AsyncIterator[Scene]:
    before = len(os.listdir("/proc/self/fd"))
    async with AsyncExitStack() as stack:
        yield await opened(tmp_path, bubblewrap, stack)
    await wait_until_async(lambda: len(os.listdir("/proc/self/fd")) <= before, 60)
    assert not (tmp_path / "work" / "calls").exists()


WAYS = ("folder", "beside", "tmp", "shm", "open", "mapped", "sent", "many", "sparse")


@pytest.mark.parametrize("where", WAYS)
@pytest.mark.parametrize("hold", [0.0, 20.0])
async def test_what_is_written_anywhere_ends_at_the_limit(
    scene: Scene, where: str, hold: float
) -> None:
    """Without `hold` as fast as it can; with it a little more than it may, once, and it waits."""
    with pytest.raises(ToolLimit) as caught:
        await scene.call("fill", where, hold)

    assert caught.value.field == "limits.file_bytes"
    own, _, shm = (await scene.call("look")).value
    assert (len(own), shm) == (1, [])
    used = scene.files().usage(MOST)
    assert used.size_bytes < LIMIT // 8
    assert used.count < 50


async def test_linux_refuses_it_before_anybody_looks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a look every quarter of a second: what an agent's calls may write, and no more."""
    monkeypatch.setattr("aios_workers.modules.tool.processes.LOOK_S", 600.0)
    call = asyncio.create_task(scene.call("fill", "open", 0.0))
    most = 0

    def seen() -> bool:
        nonlocal most
        if scene.runner._kept:
            most = max(most, scene.files().usage(MOST).size_bytes)
        return call.done()

    await wait_until_async(seen, 60)
    with pytest.raises(ToolLimit):
        await call
    assert most <= SHARED_LIMIT + 2 * LIMIT


async def test_memory_that_is_a_file_of_no_folder_is_refused(scene: Scene) -> None:
    with pytest.raises(KernelError, match="PermissionError"):
        await scene.call("fill", "memfd", 0.0)
    assert (await scene.call("shared_memory")).value == -1


async def test_nothing_of_a_call_is_there_for_the_next(scene: Scene) -> None:
    before = (await scene.call("look")).value
    count = scene.files().usage(MOST).count
    await scene.call("leave")

    after = (await scene.call("look")).value
    assert len(after[0]) == 1  # its own
    assert after[1:] == before[1:]
    assert scene.files().usage(MOST).count == count


async def test_one_of_several_calls_that_fills_ends_them_and_the_next_runs(scene: Scene) -> None:
    """Two may write twice as much; whose it is what lies beside their folders, nobody knows."""
    calls = [asyncio.create_task(scene.call("fill", where, 20.0)) for where in ("open", "beside")]
    for each in calls:
        with pytest.raises(ToolLimit, match="file_bytes"):
            await each
    assert len((await scene.call("look")).value[0]) == 1


@pytest.mark.parametrize("kept_in", [True, False])
async def test_a_link_in_the_place_of_its_folder_is_not_followed(
    tmp_path: Path, bubblewrap: Bubblewrap, *, kept_in: bool
) -> None:
    precious = tmp_path / "precious"
    (precious / "inside").mkdir(parents=True, mode=0o755)
    (precious / "inside" / "file").write_text("mine")
    precious.chmod(0o755)
    (precious / "inside").chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    async with AsyncExitStack() as stack:
        scene = await opened(tools, bubblewrap if kept_in else NoSandbox(), stack)
        told = await scene.call("replace", str(precious))

    assert told.files == ()
    assert (precious / "inside" / "file").read_text() == "mine"
    assert [path.stat().st_mode & 0o777 for path in (precious, precious / "inside")] == [0o755] * 2


@pytest.fixture
def cat(
    bubblewrap: Bubblewrap, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], SandboxFiles]]:
    """A sandbox in which nothing is done, and its files."""
    folder = tmp_path / "work"
    folder.mkdir()
    program = ToolProgram(ToolCard(name="me/cat"), "a:b", Path("/bin/cat"), ())
    launch = bubblewrap.confined(program, Launch(("/bin/cat",), {"PATH": os.defpath}, folder))
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                launch.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=launch.descriptors,
                env={},
            )
        )
        stack.callback(process.kill)
        for each in launch.descriptors:
            os.close(each)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b".")
        process.stdin.flush()
        assert process.stdout.read(1) == b"."
        files = bubblewrap.files(launch, process.pid)
        stack.callback(files.close)
        yield process, files


def test_a_sandbox_that_ends_while_it_is_looked_at_is_not_an_empty_one(
    cat: tuple[subprocess.Popen[bytes], SandboxFiles],
) -> None:
    """What is not there any more was not removed: who compares would delete it in storage, too."""
    process, files = cat
    with files.open() as folder:
        (folder / "file").write_text("mine")

    def is_lost() -> bool:  # until then Linux has not taken it apart
        try:
            with files.open() as folder:
                process.kill()
                process.wait()
                folder.exists()
        except SandboxLost:
            return True
        return False

    wait_until(is_lost, 60)


async def test_what_is_looked_at_is_closed_when_that_has_ended(
    cat: tuple[subprocess.Popen[bytes], SandboxFiles],
) -> None:
    """Else its number could be another sandbox's by then, of another agent."""
    _, files = cat
    with files.open() as folder:
        (folder / "file").write_text("mine")
        files.close()
        assert (folder / "file").read_text() == "mine"
    with pytest.raises(SandboxLost), files.open():
        pass
    assert not folder.exists()
