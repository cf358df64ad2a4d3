"""Twenty agents with a session each while tool workers are killed: it goes on, or says so."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from aios_broker.contract.errors import SessionLost, ToolUnavailable, WorkerLost
from aios_broker.contract.exec import ExecOpen, ExecOutcome, ExecRun, ExecSession
from tests.caller import Caller, WorkerProcess
from tests.scheduler_scene import scheduler
from tests.tool_scene import ToolScene, answer

AGENTS = 20
KILL_EVERY_S = 6.0
PATIENCE_S = 180.0  # after a kill twenty interpreters are started at once, maybe beside others


@dataclass
class Seen:
    """What one agent has seen."""

    runs: int = 0
    lost: int = 0
    unsure: int = 0


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        yield user


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_each_session_goes_on_or_says_that_it_is_lost(caller: Caller, tmp_path: Path) -> None:
    await lived_through(caller, tmp_path, 20.0)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
async def test_for_ten_minutes(caller: Caller, tmp_path: Path) -> None:
    await lived_through(caller, tmp_path, 600.0)


async def lived_through(caller: Caller, folder: Path, for_s: float) -> None:
    settings = {"aios_tools": ToolScene(folder).file, "aios_state_dir": folder / "state"}
    until_s = time.monotonic() + for_s
    workers = [WorkerProcess(caller.url, "tool", **settings) for _ in range(2)]
    with contextlib.ExitStack() as running:
        for worker in workers:
            running.enter_context(worker)
        async with scheduler(caller.url):
            killing = asyncio.create_task(killed_in_turn(workers, until_s))
            seen = await asyncio.gather(*(one_agent(caller.url, n, until_s) for n in range(AGENTS)))
            kills = await killing
    assert kills >= 2
    assert all(each.runs > 0 for each in seen)
    assert sum(each.lost for each in seen) > 0


async def killed_in_turn(workers: list[WorkerProcess], until_s: float) -> int:
    kills = 0
    while time.monotonic() + KILL_EVERY_S < until_s:
        await asyncio.sleep(KILL_EVERY_S)  # how often a worker dies is what is tried
        worker = workers[kills % len(workers)]
        worker.send(signal.SIGKILL)
        await worker.left()
        worker.__enter__()
        kills += 1
    return kills


async def one_agent(url: str, number: int, until_s: float) -> Seen:
    """Count in a session; what it holds is exactly what this agent has counted."""
    seen = Seen()
    tenant = f"t{number}"
    async with aclosing(Caller(url)) as caller:
        caller.patience_s = PATIENCE_S
        session: ExecSession | None = None
        counted: set[int] = set()
        while time.monotonic() < until_s:
            try:
                if session is None:
                    opened = await answer(caller, ExecOpen(), tenant=tenant)
                    assert isinstance(opened, ExecSession)
                    session, counted = opened, {0}
                code = (
                    f"n = globals().get('n', 0) + 1; who = globals().get('who', {number}); n, who"
                )
                outcome = await answer(caller, ExecRun(session.id, code), tenant=tenant)
            except SessionLost:
                session = None
                seen.lost += 1
                continue
            except WorkerLost:
                counted |= {each + 1 for each in counted}
                seen.unsure += 1
                continue
            except ToolUnavailable:
                continue
            assert isinstance(outcome, ExecOutcome)
            assert outcome.value in {str((each + 1, number)) for each in counted}
            counted = {int(outcome.value[1:].partition(",")[0])}
            seen.runs += 1
    return seen
