"""The tools that come with the kernel: there without a file, and switched off by one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aios_broker.contract.errors import (
    InvalidArguments,
    SandboxUnavailable,
    ToolFailed,
    ToolLimit,
    ToolTimeout,
    ToolUnavailable,
    UnknownTool,
)
from aios_broker.contract.tools import ToolCard, ToolResult, ToolRun, ToolShow
from aios_workers.modules.tool import opening
from aios_workers.modules.tool.kernel_tool_entries import FOLDERS
from aios_workers.modules.tool.running import NoSandbox
from aios_workers.modules.tool.sandbox.bubblewrap import chosen_sandbox
from tests.caller import Caller
from tests.tool_scene import ToolScene, answer
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(180)
PATIENCE_S = 60.0  # SymPy is loaded: seconds, on a busy machine
HAS_SANDBOX = chosen_sandbox("bubblewrap").kind == "bubblewrap"


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        user.patience_s = PATIENCE_S
        yield user


@asynccontextmanager
async def tools(
    caller: Caller,
    folder: Path,
    file: str = "",
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[ToolScene]:
    """Run a worker whose file of tools says what is given."""
    scene = ToolScene(folder)
    scene.file.write_text(file)
    async with scene.worker(caller.url, **settings):
        yield scene


async def call(caller: Caller, name: str, **arguments: Any) -> Any:  # noqa: ANN401
    result = await answer(caller, ToolRun(f"aios/{name}", arguments))
    assert isinstance(result, ToolResult)
    return result.value


async def test_they_are_there_without_a_file(caller: Caller, tmp_path: Path) -> None:
    scene = ToolScene(tmp_path)
    scene.file.unlink()
    async with scene.worker(caller.url):
        for name in FOLDERS:
            card = await answer(caller, ToolShow(name))
            assert isinstance(card, ToolCard)
            assert (card.problem, card.version != "") == ("", True)
            assert card.description
            for words in card.parameters["properties"].values():
                assert words["description"]
        assert await call(caller, "calculator", expression="0.1 + 0.2") == {
            "exact": "3/10",
            "decimal": "0.3",
        }


async def test_one_that_is_switched_off_is_not_there(caller: Caller, tmp_path: Path) -> None:
    off = '[tools."aios/shell"]\nenabled = false\n'
    async with tools(caller, tmp_path, off) as scene:
        with pytest.raises(UnknownTool, match="switched aios/shell off"):
            await call(caller, "shell", command="true")
        assert await call(caller, "calculator", expression="1") == {"exact": "1", "decimal": "1"}
        scene.file.write_text("")

        async def is_back() -> bool:
            try:
                found = await call(caller, "shell", command="echo back")
            except UnknownTool:
                return False
            return bool(found["stdout"] == "back\n")

        await wait_until_async(is_back)


async def test_a_file_that_cannot_be_read_leaves_none_on(caller: Caller, tmp_path: Path) -> None:
    """It may have switched them off."""
    async with tools(caller, tmp_path, "[tools"):
        with pytest.raises(ToolUnavailable, match="no TOML"):
            await call(caller, "calculator", expression="1")


async def test_the_operator_sets_their_limits(caller: Caller, tmp_path: Path) -> None:
    file = '[tools."aios/python"]\nlimits = { timeout_s = 2.0 }\n'
    async with tools(caller, tmp_path, file):
        card = await answer(caller, ToolShow("aios/python"))
        assert isinstance(card, ToolCard)
        assert card.limits.timeout_s == 2.0


async def test_code_has_its_streams_its_value_and_its_exit_code(
    caller: Caller, tmp_path: Path
) -> None:
    async with tools(caller, tmp_path):
        code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nopen('a', 'w')\n[1]"
        result = await answer(caller, ToolRun("aios/python", {"code": code}))
        assert isinstance(result, ToolResult)
        assert result.value == {
            "exit_code": 0,
            "stdout": "out\n",
            "stderr": "err\n",
            "value": "[1]",
        }
        assert [made.path for made in result.files] == ["a"]

        failed = await call(caller, "python", code="def f():\n    return 1 / 0\nf()")
        assert failed["exit_code"] == 1
        assert "line 2, in f" in failed["stderr"]
        assert "ZeroDivisionError" in failed["stderr"]
        assert (await call(caller, "python", code="raise SystemExit(7)"))["exit_code"] == 7
        assert (await call(caller, "python", code="def f(:"))["exit_code"] == 1
        waited = "import asyncio\nawait asyncio.sleep(0)\n'awaited'"
        assert (await call(caller, "python", code=waited))["value"] == "'awaited'"

        shell = await call(caller, "shell", command="echo out; echo err >&2; exit 5")
        assert shell == {"exit_code": 5, "stdout": "out\n", "stderr": "err\n"}


async def test_nothing_of_one_run_is_there_for_the_next(caller: Caller, tmp_path: Path) -> None:
    async with tools(caller, tmp_path):
        await call(caller, "python", code="import builtins\nbuiltins.left = 1\nopen('left', 'w')")
        code = "import builtins, os\nhasattr(builtins, 'left'), os.listdir()"
        assert (await call(caller, "python", code=code))["value"] == "(False, [])"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import time\nprint('before', flush=True)\ntime.sleep(600)",
            {"exit_code": -9, "timed_out": True},
        ),
        ("while True:\n    pass", {"exit_code": -9, "timed_out": True}),
        ("import os\nos.kill(os.getpid(), 11)", {"exit_code": -11}),
        ("import os\nos._exit(3)", {"exit_code": 3}),
        ("print('x' * 10**7)", {"exit_code": 0}),
        ("import os\nos.write(1, b'\\xff')", {"exit_code": 0, "stdout": "\ufffd"}),
        ("b'x' * 4 * 2**30", {"exit_code": 1}),
        ("import os\nos.closerange(0, 256)", {"exit_code": 0}),
        (
            "import subprocess as s\ns.Popen(['sleep', '600'], start_new_session=True)\nNone",
            {"exit_code": 0},
        ),
    ],
)
async def test_a_bomb_is_an_answer(
    caller: Caller, tmp_path: Path, code: str, says: dict[str, Any]
) -> None:
    async with tools(caller, tmp_path):
        told = await call(caller, "python", code=code, timeout_s=2)
        assert {name: told[name] for name in says} == says
        assert len(told["stdout"]) < 60_000
        assert (await call(caller, "python", code="1 + 1"))["value"] == "2"


async def test_a_bomb_that_is_none_of_an_answer_is_a_typed_error(
    caller: Caller, tmp_path: Path
) -> None:
    async with tools(caller, tmp_path):
        command = "for i in $(seq 30000); do : > f$i; done; sleep 20"
        with pytest.raises((ToolLimit, ToolFailed)):
            await call(caller, "shell", command=command)
        assert (await call(caller, "shell", command="echo lives"))["stdout"] == "lives\n"


async def test_what_an_argument_does_wrong_is_told_for_a_repair(
    caller: Caller, tmp_path: Path
) -> None:
    async with tools(caller, tmp_path):
        with pytest.raises(
            InvalidArguments, match="9\\*\\*387420489 has some 369,693,100 digits"
        ) as caught:
            await call(caller, "calculator", expression="9**9**9")
        assert [fault.path for fault in caught.value.faults] == ["/expression"]
        for arguments in (
            {},
            {"expression": ""},
            {"expression": 5},
            {"expression": "1", "x": 1},
            {"expression": "1", "digits": 0},
            {"expression": "1" * 5_000},
        ):
            with pytest.raises(InvalidArguments):
                await answer(caller, ToolRun("aios/calculator", arguments))


async def test_a_calculation_without_end_is_ended(caller: Caller, tmp_path: Path) -> None:
    soon = '[tools."aios/calculator"]\nlimits = { timeout_s = 5.0 }\n'
    async with tools(caller, tmp_path, soon):
        assert (await call(caller, "calculator", expression="1"))["exact"] == "1"
        with pytest.raises((InvalidArguments, ToolLimit, ToolTimeout)):
            await call(caller, "calculator", expression="sum(9**n**n, n, 1, 20)")
        assert (await call(caller, "calculator", expression="6*7"))["exact"] == "42"


async def test_code_needs_a_sandbox_unless_the_operator_goes_without(
    caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "chosen_sandbox", lambda *_: NoSandbox(warnings=("none here",)))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with tools(caller, tmp_path / "a"):
        for name, arguments in (("python", {"code": "1"}), ("shell", {"command": "true"})):
            with pytest.raises(SandboxUnavailable, match="none here"):
                await call(caller, name, **arguments)
    async with tools(caller, tmp_path / "b", tool_sandbox="none"):
        assert (await call(caller, "python", code="1 + 1"))["value"] == "2"


@pytest.mark.skipif(not HAS_SANDBOX, reason="this machine has no sandbox")
async def test_code_has_no_network_and_sees_no_home(caller: Caller, tmp_path: Path) -> None:
    async with tools(caller, tmp_path):
        code = "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)"
        assert (await call(caller, "python", code=code))["exit_code"] == 1
        seen = await call(
            caller, "shell", command="ls /root /home /var; id -u; env | grep -i redis"
        )
        assert "redis" not in seen["stdout"]
        assert "65534" in seen["stdout"]
