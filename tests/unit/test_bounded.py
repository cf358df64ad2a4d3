"""Bounded work: children of a process that stands ready; what it may not use ends a child alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_broker.bounded_work import BoundedWork
from aios_broker.contract.errors import ModuleError
from aios_broker.places import Holder, Shares
from aios_broker.process.bounded import Bounds, ForkServer, OutOfBounds, OutOfTime
from tests.waiting import wait_until_async

PROGRAM = "tests.bounded_program"
BOUNDS = Bounds(cpu_s=0.5, memory_bytes=512 << 20, wall_s=20.0)
PATIENCE_S = 15.0


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; what nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pid_of(server: ForkServer) -> int:
    assert server.pid is not None
    return server.pid


@contextlib.contextmanager
def a_server(bounds: Bounds = BOUNDS) -> Iterator[ForkServer]:
    server = ForkServer(PROGRAM, bounds)
    try:
        yield server
    finally:
        server.close()


async def test_one_process_with_one_thread_answers_request_after_request() -> None:
    with a_server() as server:
        first = await server.ask(b"say one")
        pid = pid_of(server)
        assert (first, await server.ask(b"say two"), server.pid) == (b"one", b"two", pid)
        long = b"say " + b"x" * 3_000_000
        assert await server.ask(long) == long[4:]
        assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
    assert is_gone(pid)


async def test_neither_the_server_nor_a_child_has_variables_or_files_of_whoever_started_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    with (tmp_path / "open").open("w") as file, a_server() as server:
        os.set_inheritable(file.fileno(), True)
        seen = json.loads(await server.ask(b"look"))
        own = os.readlink(f"/proc/{server.pid}/fd/0")
    assert "secret" not in str(seen["variables"])
    assert not {str(tmp_path / "open"), own} & set(seen["files"])


@pytest.mark.parametrize("bomb", [b"spin", b"eat", b"die"])
async def test_what_a_child_may_not_use_ends_it_and_nothing_else(bomb: bytes) -> None:
    with a_server() as server:
        await server.ask(b"say one")
        pid = pid_of(server)
        with pytest.raises(OutOfBounds):
            await server.ask(bomb)
        assert (await server.ask(b"say two"), server.pid) == (b"two", pid)


async def test_what_broke_is_said() -> None:
    with a_server() as server, pytest.raises(ModuleError, match="exit code 1"):
        await server.ask(b"break")
    with pytest.raises(ModuleError, match="could not be started"):
        await ForkServer("tests.no_such_program", BOUNDS).ask(b"say one")


async def test_the_clock_ends_what_uses_nothing() -> None:
    with a_server(Bounds(cpu_s=5, memory_bytes=512 << 20, wall_s=0.5)) as server:
        with pytest.raises(OutOfTime):
            await server.ask(b"wait")
        assert server.pid is None


async def test_a_killed_child_is_out_of_bounds_and_a_killed_server_is_started_anew() -> None:
    with a_server() as server:
        await server.ask(b"say one")
        pid = pid_of(server)
        asked = asyncio.create_task(server.ask(b"wait"))
        await wait_until_async(lambda: bool(children_of(pid)))
        os.kill(children_of(pid)[0], signal.SIGKILL)
        with pytest.raises(OutOfBounds):
            await asked
        os.kill(pid, signal.SIGKILL)
        assert await server.ask(b"say two") == b"two"
        assert server.pid != pid
        assert is_gone(pid)


async def test_a_server_that_is_killed_at_work_takes_its_child_along() -> None:
    with a_server() as server:
        await server.ask(b"say one")
        pid = pid_of(server)
        asked = asyncio.create_task(server.ask(b"wait"))
        await wait_until_async(lambda: bool(children_of(pid)))
        child = children_of(pid)[0]
        os.kill(pid, signal.SIGKILL)
        await wait_until_async(lambda: is_gone(child))
        await wait_until_async(
            lambda: server.pid not in (None, pid)
        )  # it is asked again of another
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert server.pid is None


async def test_nothing_is_left_when_the_worker_is_killed() -> None:
    code = (
        "import asyncio; from tests.unit.test_bounded import BOUNDS, PROGRAM, ForkServer\n"
        "async def main():\n"
        "    server = ForkServer(PROGRAM, BOUNDS)\n"
        "    await server.ask(b'say one'); print(server.pid, flush=True)\n"
        "    await server.ask(b'wait')\n"
        "asyncio.run(main())"
    )
    # Its path says where the project is; it need not be installed.
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert worker.stdout is not None
    server = int(await worker.stdout.readline())
    await wait_until_async(lambda: bool(children_of(server)))
    child = children_of(server)[0]
    worker.kill()
    await worker.wait()
    await wait_until_async(lambda: is_gone(server) and is_gone(child))


async def test_a_tenants_bombs_wait_for_each_other_and_another_tenant_for_none() -> None:
    work = BoundedWork(PROGRAM, BOUNDS, Shares(places=2, of_tenant=1, of_agent=1))
    bombs = [
        asyncio.create_task(work.run(Holder("mallory", f"m{number}"), b"wait"))
        for number in range(4)
    ]
    await wait_until_async(lambda: work.waiting == len(bombs) - 1)
    began_s = time.monotonic()
    assert await work.run(Holder("victor", "one"), b"say one") == b"one"
    assert time.monotonic() - began_s < PATIENCE_S
    assert not any(bomb.done() for bomb in bombs)
    for bomb in bombs:
        bomb.cancel()
    await asyncio.gather(*bombs, return_exceptions=True)
    assert await work.run(Holder("mallory", "m0"), b"say two") == b"two"
