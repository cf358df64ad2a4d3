"""Tools of a test: a module of functions, a `tools.toml`, and a worker that has them."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aios_broker.contract.exec import ExecResult
from aios_broker.contract.syscall import Body
from aios_broker.contract.tools import ToolAnswer, ToolRun
from aios_workers.config import WorkerConfig
from aios_workers.runtime.loop import Limits
from aios_workers.runtime.registry import LoadedModule, load_modules
from tests.caller import LIMITS, Caller, running_worker

FUNCTIONS = '''
import os, sys, time
from aios_sdk import RunLimits, tool

SMALL = RunLimits(timeout_s=30.0, cpu_s=2.0, memory_bytes=512 * 1024**2, value_bytes=1024,
                  processes=16, output_bytes=1024, file_bytes=1024**2)


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@tool
def note(path: str, text: str) -> str:
    """Write a line, so that a test sees that it ran."""
    with open(path, "a") as file:
        file.write(text + "\\n")
    return text


@tool
def slow(path: str, seconds: float) -> str:
    note(path, "begun " + str(os.getpid()))
    time.sleep(seconds)
    note(path, "ended")
    return "slept"


@tool(idempotent=True)
def slow_again(path: str, seconds: float) -> str:
    before = os.path.exists(path)
    note(path, "begun " + str(os.getpid()))
    time.sleep(0 if before else seconds)
    return "slept"


@tool(locks=["only"])
def hold(path: str) -> str:
    note(path, "holds")
    while not os.path.exists(path + ".free"):
        time.sleep(0.01)
    return "held"


@tool(destructive=True, locks=["only"])
def wipe(path: str) -> str:
    return note(path, "wiped")


@tool
def say(words: list[str]) -> int:
    for word in words:
        print(word, flush=True)
    return len(words)


@tool
def detach(path: str) -> bool:
    """Detach a process; say whether it still runs when the test says so."""
    if not path:
        return False
    between = os.fork()
    if between == 0:
        os.setsid()
        detached = os.fork()
        if detached == 0:
            time.sleep(600)
        note(path, str(detached))
        os._exit(0)
    os.waitpid(between, 0)
    with open(path) as file:
        detached = int(file.read())
    while not os.path.exists(path + ".go"):
        time.sleep(0.01)
    with open(f"/proc/{detached}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@tool
def remember(text: str) -> list[str]:
    remember.__dict__.setdefault("seen", []).append(text)
    return remember.seen


@tool(limits=RunLimits(timeout_s=1.0))
def hang() -> None:
    time.sleep(600)


@tool(limits=SMALL)
def bomb(kind: str):
    match kind:
        case "raise":
            raise ValueError("nothing doing")
        case "exit":
            sys.exit(3)
        case "leave":
            os._exit(0)
        case "segfault":
            os.kill(os.getpid(), 11)
        case "spin":
            while True:
                pass
        case "memory":
            return len([b"x" * 10**8 for _ in range(100)])
        case "value":
            return "x" * 2000
        case "file":
            with open("large", "wb") as file:
                for _ in range(10):
                    file.write(b"x" * 1024**2)
        case "files":
            number = 0
            while True:
                number += 1
                with open(f"small-{number}", "wb") as file:
                    file.write(b"x" * 100_000)
        case "fork":
            while True:
                if os.fork() == 0:
                    time.sleep(600)
        case "bomb":
            while True:
                os.fork()
        case "nan":
            return float("nan")
        case "object":
            return object()
        case "circle":
            circle = []
            circle.append(circle)
            return circle
        case "print":
            for _ in range(10_000):
                print("x" * 1000)
            return "printed"
        case "bytes":
            os.write(1, b"\\xff\\xfe fine")
            return "written"
        case "daemon":
            between = os.fork()
            if between == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(600)
                os._exit(0)
            os.waitpid(between, 0)  # only then is it out of the group that ends with the call
            return "forked"
        case "close":
            os.closerange(0, 64)
            return "closed"
    return kind
'''
NAMES = (
    *("add", "note", "slow", "slow_again", "hold", "wipe", "say", "detach", "remember", "hang"),
    "bomb",
)


class ToolScene:
    """The files of one test.

    A worker starts a Python for each tool that is described, to see what it is: name those that the
    test is about, and no others.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.module = folder / "functions_of_test.py"
        self.file = folder / "tools.toml"
        self.told = folder / "told.txt"  # what tools write
        self.module.write_text(FUNCTIONS)
        self.describe(names)

    def describe(self, names: Sequence[str], more: str = "") -> None:
        """Write `tools.toml`."""
        tables = [
            f'[tools."me/{name}"]\nfunction = "functions_of_test:{name}"\npath = "{self.folder}"\n'
            for name in names
        ]
        self.file.write_text("\n".join(tables) + textwrap.dedent(more))

    def lines(self) -> list[str]:
        """Return what tools have written."""
        return self.told.read_text().splitlines() if self.told.exists() else []

    def config(self, redis_url: str, **settings: Any) -> WorkerConfig:  # noqa: ANN401
        """Return the settings of a worker that has them."""
        return WorkerConfig(
            redis_url=redis_url, state_dir=self.folder / "state", tools=self.file, **settings
        )

    @asynccontextmanager
    async def worker(
        self,
        redis_url: str,
        limits: Limits = LIMITS,
        **settings: Any,  # noqa: ANN401
    ) -> AsyncIterator[LoadedModule]:
        """Run a worker that has the tools for the length of a block."""
        async with AsyncExitStack() as stack:
            config = self.config(redis_url, **settings)
            loaded = await load_modules(["tool"], config, "here.tool", stack)
            async with running_worker(redis_url, "tool", loaded["tool"], limits):
                yield loaded["tool"]


def with_tools(*names: str) -> pytest.MarkDecorator:
    """Have the fixture `tool_names`, which is empty by default, name these for a test."""
    return pytest.mark.parametrize("tool_names", [names], ids=["+".join(names)])


async def answer(
    caller: Caller,
    body: Body,
    **fields: Any,  # noqa: ANN401
) -> ToolAnswer | ExecResult:
    """Return the result of one syscall of the module."""
    [syscall_id] = await caller.submit(body, **fields)
    return (await caller.hear(syscall_id)).unwrap()  # type: ignore[return-value]


async def value(caller: Caller, name: str, **arguments: Any) -> object:  # noqa: ANN401
    """Return what a tool returns."""
    result = await answer(caller, ToolRun(f"me/{name}", arguments))
    return result.value  # type: ignore[union-attr]
