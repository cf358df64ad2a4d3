"""Functions of one's own as jobs: found, checked, run in processes of their own, ended whole."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from aios_broker.contract.errors import (
    InvalidArguments,
    KernelError,
    NotConfigured,
    ToolFailed,
    ToolLimit,
    ToolTimeout,
    ToolUnavailable,
    UnknownTool,
    WorkerLost,
)
from aios_broker.contract.tools import ToolCard, ToolCards, ToolList, ToolResult, ToolRun, ToolShow
from aios_workers.modules.tool.sandbox.bubblewrap import chosen_sandbox
from tests.caller import Caller, WorkerProcess
from tests.scheduler_scene import scheduler
from tests.tool_scene import NAMES, ToolScene, answer, value, with_tools
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)
# Processes that show a tool's name: its own, and in a sandbox bubblewrap, outside and inside.
SANDBOX = chosen_sandbox("bubblewrap").kind  # of this machine: bombs and limits are tried in it
SERVERS = 3 if SANDBOX == "bubblewrap" else 1
LOST_SOON_S = 1.0  # of a lease
LOADED_S = 60.0  # until all tools are: each starts a Python of its own, maybe beside others


@pytest.fixture
def scene(tmp_path: Path, tool_names: tuple[str, ...]) -> ToolScene:
    return ToolScene(tmp_path, *tool_names)


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        user.patience_s = LOADED_S
        yield user


@pytest.fixture
async def tools(scene: ToolScene, caller: Caller) -> AsyncIterator[ToolScene]:
    async with scene.worker(caller.url):
        yield scene


@pytest.fixture
async def open_tools(scene: ToolScene, caller: Caller) -> AsyncIterator[ToolScene]:
    """Without a sandbox: what tools do outside is seen, by the numbers that this machine gives."""
    async with scene.worker(caller.url, tool_sandbox="none"):
        yield scene


def processes(scene: ToolScene) -> set[int]:
    """Return the processes that run a scene's tools: their servers, and the calls below them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        of_scene = str(scene.folder).encode() in command
        if of_scene and b"modules/tool/process/__main__.py" in command:
            found.add(int(path.parent.name))
    return found


@with_tools("add")
async def test_a_function_of_ones_own_is_a_job(tools: ToolScene, caller: Caller) -> None:
    result = await answer(caller, ToolRun("me/add", {"a": 40, "b": 2}))

    assert isinstance(result, ToolResult)
    assert result.value == 42
    assert result.run.version
    assert await value(caller, "add", a=1) == 2


@with_tools("add", "bomb", "wipe")
async def test_it_is_listed_and_shown_with_the_schema_of_its_type_hints(
    tools: ToolScene, caller: Caller
) -> None:
    card = await answer(caller, ToolShow("me/add"))

    assert isinstance(card, ToolCard)
    assert card.description == "Add two numbers."
    assert card.parameters["required"] == ["a"]
    assert card.parameters["properties"]["a"]["type"] == "integer"

    async def all_are_told() -> bool:
        found = await answer(caller, ToolList())
        assert isinstance(found, ToolCards)
        return {each.name for each in found.tools} >= {"me/add", "me/bomb", "me/wipe"}

    await wait_until_async(all_are_told, LOADED_S)
    found = await answer(caller, ToolList(query="two numbers"))
    assert isinstance(found, ToolCards)
    assert [each.name for each in found.tools] == ["me/add"]


@with_tools("note")
async def test_wrong_arguments_are_told_all_at_once_and_nothing_runs(
    tools: ToolScene, caller: Caller
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        await value(caller, "note", path=5, txt="x")

    assert {fault.path for fault in caught.value.faults} == {"/path", "/text", "/txt"}
    assert "/text: is missing; for example 'text'" in caught.value.message
    with pytest.raises(InvalidArguments):
        await value(caller, "note", path=str(tools.told))
    assert tools.lines() == []


@with_tools("add")
async def test_what_is_said_exactly_is_taken_for_it(tools: ToolScene, caller: Caller) -> None:
    assert await value(caller, "add", a="3", b=4.0) == 7
    for wrong in ("3.5", "03", " 3", "three", 3.5, True, None):
        with pytest.raises(InvalidArguments):
            await value(caller, "add", a=wrong)


@with_tools("remember")
async def test_nothing_is_left_in_memory_for_the_next_call(
    tools: ToolScene, caller: Caller
) -> None:
    assert await value(caller, "remember", text="a") == ["a"]
    assert await value(caller, "remember", text="b") == ["b"]


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("raise", ToolFailed, "ValueError: nothing doing"),
        ("exit", ToolFailed, "SystemExit"),
        ("leave", ToolFailed, "exit code 0"),
        ("segfault", ToolFailed, "exit code -11"),
        ("spin", ToolLimit, "cpu_s"),
        ("memory", ToolLimit, "memory_bytes"),
        ("value", ToolLimit, "value_bytes"),
        ("file", ToolLimit, "file_bytes"),
        ("files", ToolLimit, "file_bytes"),
        ("fork", ToolLimit, "processes"),
        ("bomb", ToolLimit, "processes"),
        ("nan", ToolFailed, "no JSON"),
        ("object", ToolFailed, "no JSON"),
        ("circle", ToolFailed, "no JSON"),
        ("close", ToolFailed, "exit code"),
    ],
)
@with_tools("bomb")
async def test_what_a_tool_does_wrong_is_told_and_the_next_call_runs(
    tools: ToolScene,
    caller: Caller,
    kind: str,
    error: type[KernelError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await value(caller, "bomb", kind=kind)

    fine = await answer(caller, ToolRun("me/bomb", {"kind": "fine"}))
    assert isinstance(fine, ToolResult)
    assert (fine.value, fine.run.sandbox) == ("fine", SANDBOX)


@with_tools("hang", "add")
async def test_one_that_hangs_is_ended(tools: ToolScene, caller: Caller) -> None:
    with pytest.raises(ToolTimeout, match="longer than 1 s"):
        await value(caller, "hang")

    assert await value(caller, "add", a=1) == 2


@with_tools("bomb")
async def test_what_a_tool_prints_is_cut_and_made_text(tools: ToolScene, caller: Caller) -> None:
    printed = await answer(caller, ToolRun("me/bomb", {"kind": "print"}))
    assert isinstance(printed, ToolResult)
    assert (printed.value, len(printed.output), printed.output_cut) == ("printed", 1024, True)

    written = await answer(caller, ToolRun("me/bomb", {"kind": "bytes"}))
    assert isinstance(written, ToolResult)
    assert (written.value, written.output) == ("written", "\ufffd\ufffd fine")


@with_tools("add", "bomb")
async def test_what_a_tool_leaves_running_is_ended(tools: ToolScene, caller: Caller) -> None:
    # The one that forks calls is left, and nothing below it, when all tools have been described.
    assert await value(caller, "bomb", kind="fine") == "fine"
    await wait_until_async(lambda: len(processes(tools)) == SERVERS, LOADED_S)
    assert await value(caller, "bomb", kind="daemon") == "forked"
    await wait_until_async(lambda: len(processes(tools)) == SERVERS, LOADED_S)


@with_tools("detach")
async def test_the_end_of_a_call_ends_nothing_that_another_one_has_detached(
    open_tools: ToolScene, caller: Caller
) -> None:
    path = str(open_tools.told)
    [detached] = await caller.submit(ToolRun("me/detach", {"path": path}))
    await wait_until_async(lambda: len(open_tools.lines()) == 1, LOADED_S)
    assert await value(caller, "detach", path="") is False  # it has ended, in the same server

    open_tools.folder.joinpath("told.txt.go").write_text("")
    reply = await caller.hear(detached)

    assert msgspec.structs.asdict(reply.unwrap())["value"] is True
    [pid] = open_tools.lines()
    await wait_until_async(lambda: not Path(f"/proc/{pid}").exists())


@with_tools(*NAMES)
async def test_no_process_and_no_file_is_left_when_the_worker_leaves(
    scene: ToolScene, caller: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("aios_workers.modules.tool.opening.gettempdir", lambda: str(work))
    async with scene.worker(caller.url):
        await value(caller, "add", a=1)
        assert processes(scene)
    assert processes(scene) == set()
    assert list(work.iterdir()) == []


@with_tools("slow", "add")
async def test_a_cancelled_call_ends_with_all_that_it_began(
    open_tools: ToolScene, caller: Caller
) -> None:
    body = ToolRun("me/slow", {"path": str(open_tools.told), "seconds": 600})
    [syscall_id] = await caller.submit(body)
    await wait_until_async(lambda: len(open_tools.lines()) == 1, LOADED_S)
    pid = int(open_tools.lines()[0].split()[1])

    error = KernelError("enough")
    await caller.control.cancel([syscall_id], error, module="tool")

    await wait_until_async(lambda: not Path(f"/proc/{pid}").exists())
    assert await value(caller, "add", a=1) == 2


@with_tools("add")
async def test_a_changed_tool_is_another_version_without_a_restart(
    tools: ToolScene, caller: Caller
) -> None:
    first = await answer(caller, ToolRun("me/add", {"a": 1}))
    tools.module.write_text(tools.module.read_text().replace("return a + b", "return a * 100"))

    async def is_new() -> bool:
        return await value(caller, "add", a=1) == 100

    await wait_until_async(is_new, LOADED_S)
    assert isinstance(first, ToolResult)
    with pytest.raises(UnknownTool, match="by now"):
        await answer(caller, ToolRun("me/add", {"a": 1}, version=first.run.version))


async def test_a_tool_that_cannot_be_loaded_is_told_and_mended_without_a_restart(
    scene: ToolScene, caller: Caller
) -> None:
    (scene.folder / "broken_of_test.py").write_text("import nothing_of_this_name\n")
    more = f'[tools."me/broken"]\nfunction = "broken_of_test:f"\npath = "{scene.folder}"\n'
    scene.describe(["add"], more)
    async with scene.worker(caller.url):
        with pytest.raises(ToolUnavailable, match="nothing_of_this_name"):
            await value(caller, "broken")
        card = await answer(caller, ToolShow("me/broken"))
        assert isinstance(card, ToolCard)
        assert "nothing_of_this_name" in card.problem
        assert await value(caller, "add", a=1) == 2

        (scene.folder / "broken_of_test.py").write_text("def f() -> str:\n    return 'mended'\n")

        async def is_mended() -> bool:
            try:
                return await value(caller, "broken") == "mended"
            except ToolUnavailable:
                return False

        await wait_until_async(is_mended, LOADED_S)


async def test_a_tool_is_there_as_soon_as_it_is_described(scene: ToolScene, caller: Caller) -> None:
    scene.describe(["add"])
    async with scene.worker(caller.url):
        with pytest.raises(UnknownTool):
            await value(caller, "say", words=[])
        scene.describe(["add", "say"])
        assert await value(caller, "say", words=["a"]) == 1


@with_tools("add", "wipe")
async def test_a_name_that_nobody_has_is_told_with_those_that_are_near(
    tools: ToolScene, caller: Caller
) -> None:
    with pytest.raises(UnknownTool, match="me/add"):
        await value(caller, "ad")
    with pytest.raises(UnknownTool):
        await answer(caller, ToolShow("me/ad"))


async def test_a_folder_is_a_tool_with_the_schema_that_it_gives(
    scene: ToolScene, caller: Caller
) -> None:
    folder = scene.folder / "report"
    folder.mkdir()
    (folder / "main.py").write_text(
        "def run(words):\n    open('made.txt', 'w').write('hello')\n    return len(words)\n"
    )
    (folder / "tool.toml").write_text(
        'entry = "main:run"\ndescription = "Count."\nidempotent = true\n'
        'parameters = {type = "object", properties = {words = {type = "array"}}, '
        'required = ["words"], additionalProperties = false}\n'
    )
    scene.describe([], f'[tools."me/report"]\nfolder = "{folder}"\n')
    async with scene.worker(caller.url):
        result = await answer(caller, ToolRun("me/report", {"words": ["a", "b"]}))
        with pytest.raises(InvalidArguments):
            await value(caller, "report", words="a")

    assert isinstance(result, ToolResult)
    assert result.value == 2
    assert [(made.path, made.bytes) for made in result.files] == [("made.txt", 5)]


async def test_a_dependency_that_cannot_be_installed_is_told(
    scene: ToolScene, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    folder = scene.folder / "needy"
    folder.mkdir()
    (folder / "main.py").write_text("def run():\n    return 1\n")
    (folder / "tool.toml").write_text('entry = "main:run"\ndependencies = ["no-such-thing==1"]\n')
    scene.describe(["add"], f'[tools."me/needy"]\nfolder = "{folder}"\n')
    async with scene.worker(caller.url):
        with pytest.raises(ToolUnavailable, match="no-such-thing"):
            await value(caller, "needy")
        assert await value(caller, "add", a=1) == 2


@with_tools("say")
async def test_what_it_prints_comes_while_it_runs(tools: ToolScene, caller: Caller) -> None:
    [syscall_id] = await caller.submit(ToolRun("me/say", {"words": ["one", "two"]}))
    await caller.hear(syscall_id)

    assert "".join(chunk.text for chunk in caller.chunks[syscall_id]) == "one\ntwo\n"


@with_tools("wipe")
async def test_a_destructive_tool_does_not_run_where_nobody_can_be_asked(
    tools: ToolScene, caller: Caller
) -> None:
    with pytest.raises(NotConfigured, match="destructive"):
        await value(caller, "wipe", path=str(tools.told))
    assert tools.lines() == []


def worker_process(scene: ToolScene, url: str) -> WorkerProcess:
    return WorkerProcess(
        url,
        "tool",
        aios_tools=scene.file,
        aios_state_dir=scene.folder / "state",
        aios_tool_sandbox="none",
        aios_worker_lease_s=LOST_SOON_S,
    )


@pytest.mark.parametrize("name", ["slow", "slow_again"])
@with_tools("slow", "slow_again")
async def test_only_an_idempotent_tool_runs_again_when_its_worker_has_died(
    scene: ToolScene, caller: Caller, name: str
) -> None:
    with worker_process(scene, caller.url) as worker:
        body = ToolRun(f"me/{name}", {"path": str(scene.told), "seconds": 600})
        [syscall_id] = await caller.submit(body)
        await wait_until_async(lambda: len(scene.lines()) == 1, LOADED_S)
        pid = int(scene.lines()[0].split()[1])
        worker.send(signal.SIGKILL)
        await worker.left()
    await wait_until_async(lambda: not Path(f"/proc/{pid}").exists())  # it ended with its worker

    async with scheduler(caller.url), scene.worker(caller.url, tool_sandbox="none"):
        reply = await caller.hear(syscall_id)

    if name == "slow_again":
        assert msgspec.structs.asdict(reply.unwrap())["value"] == "slept"
        assert len(scene.lines()) == 2
    else:
        with pytest.raises(WorkerLost, match="not declared idempotent"):
            reply.unwrap()
        assert len(scene.lines()) == 1


def mounts() -> int:
    """Return how many file systems this process sees."""
    return len(Path("/proc/self/mounts").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@with_tools("bomb")
async def test_a_hundred_bombs_leave_the_worker_as_it_was(tools: ToolScene, caller: Caller) -> None:
    caller.patience_s = 120.0  # each of them takes its time, maybe beside others
    kinds = [
        "exit",
        "segfault",
        "hang",
        "spin",
        "memory",
        "value",
        "file",
        "files",
        "fork",
        "bomb",
        "print",
        "daemon",
        "close",
    ]
    before = mounts()
    for number in range(100):
        kind = kinds[number % len(kinds)]
        [syscall_id] = await caller.submit(ToolRun("me/bomb", {"kind": kind}))
        reply = await caller.hear(syscall_id)
        assert reply.error is None or reply.error.code.startswith("tool-"), reply
        assert await value(caller, "bomb", kind="fine") == "fine"
    await wait_until_async(lambda: len(processes(tools)) == SERVERS, LOADED_S)
    assert mounts() == before
