"""A process under memory and storage dies in the middle: nothing is lost, doubled or half done.

A whole kernel, supervised. What was acknowledged is there once; what fails, fails by a typed error
and has changed nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator

import pytest

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import KernelError
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import AsyncAgent
from tests.processes import frozen_family
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(180)

WRITES = 60
DEADLINE_S = 90.0
SHORT_S = 3.0
GRACE_S = 10.0  # beyond a deadline, on a machine that has more to do


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKernel]:
    config = KernelConfig(
        state_dir=tmp_path_factory.mktemp("state"),
        llm_core="simulated",
        llm_workers=1,
        tool_workers=0,
    )
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with EmbeddedKernel(config, inherited=settings) as running:
        yield running


def pid_of(kernel: EmbeddedKernel, name: str) -> int:
    pid = kernel.process(name).pid
    assert pid is not None
    return pid


async def appended_and_noted(agent: AsyncAgent, number: int) -> None:
    """Change a file that all change, and one of its own; keep a note."""
    await asyncio.gather(
        agent.storage.append("all.txt", f"{number}\n"),
        agent.storage.create(f"own/{number}.txt", str(number)),
        agent.memory.add(f"note {number}"),
    )


@pytest.mark.parametrize("victim", ["postgres", "state-1", "redis"])
async def test_what_is_under_way_when_a_process_is_killed_is_done_once(
    kernel: EmbeddedKernel, victim: str
) -> None:
    async with AsyncAgent(f"agent-{victim}", url=kernel.redis_url) as opened:
        agent = opened.with_options(deadline_s=DEADLINE_S)
        await agent.storage.write("all.txt", "")
        load = [asyncio.create_task(appended_and_noted(agent, each)) for each in range(WRITES)]
        await wait_until_async(lambda: any(task.done() for task in load))
        assert not all(task.done() for task in load)
        killed = await asyncio.to_thread(kernel.kill, victim)
        await asyncio.gather(*load)
        await asyncio.to_thread(kernel.wait_running, victim, not_pid=killed)

        lines = (await agent.storage.read("all.txt")).content.split()
        assert sorted(map(int, lines)) == list(range(WRITES))
        listed = await agent.storage.list("own", limit=1_000)
        assert {entry.path: entry.version for entry in listed.entries} == {
            f"/own/{number}.txt": 1 for number in range(WRITES)
        }
        notes = (await agent.memory.list(limit=1_000)).notes
        assert sorted(note.content for note in notes) == sorted(
            f"note {number}" for number in range(WRITES)
        )
        stat = await agent.memory.stat()
        assert stat.resident_notes + stat.swapped_notes == WRITES


async def test_a_postgres_that_hangs_ends_calls_by_their_deadlines_and_changes_nothing(
    kernel: EmbeddedKernel,
) -> None:
    async with AsyncAgent("patient", url=kernel.redis_url) as agent:
        await agent.storage.write("a.txt", "before")
        short = agent.with_options(deadline_s=SHORT_S)
        began_s = time.monotonic()
        with frozen_family(pid_of(kernel, "postgres")):
            outcomes = await asyncio.gather(
                *(short.storage.append("a.txt", "!") for _ in range(5)),
                *(short.memory.add("too late") for _ in range(5)),
                return_exceptions=True,
            )
            took_s = time.monotonic() - began_s
        assert all(isinstance(outcome, KernelError) for outcome in outcomes), outcomes
        assert {outcome.code for outcome in outcomes if isinstance(outcome, KernelError)} <= {
            "deadline-exceeded",
            "database-unavailable",
        }
        assert took_s < SHORT_S + GRACE_S
        assert (await agent.storage.read("a.txt")).content == "before"
        assert (await agent.memory.list()).notes == ()
