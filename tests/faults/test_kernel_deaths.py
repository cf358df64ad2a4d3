"""A process of a loaded kernel is killed: every agent still hears its answer, id for id the same.

The kernel is a whole one, supervised, under the demo's load. The default lane runs the simulated
core; the slow lane the embedded model.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from aios_broker.config import KernelConfig, environment
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.reply import Reply
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_broker.queues.records import JobView
from aios_cli.demo.load import demo_agents
from aios_cli.demo.run import FIFO, ROUND_ROBIN, Demo, PolicyRun, Progress, Slice, read_slices
from aios_cli.session import Operator
from aios_local.supervisor.kernel import EmbeddedKernel
from tests.session_user import sent
from tests.waiting import wait_until

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.timeout(600)

# The promise is 5 s from the death to the next run of the job (a lease of 4 s and a tick). Where
# the machine runs other tests beside this one, starting a worker alone can take that long.
RECOVERED_WITHIN_S = 15.0
SIMULATED = {
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "120",  # the load takes 4.5 s on two slots
    "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
}
VICTIMS = ("llm-1", "scheduler", "redis")


class Watcher(Progress):
    """Sees the load run; says when it is in full swing."""

    def __init__(self) -> None:
        super().__init__()
        self.swing = asyncio.Event()

    def looked(self, jobs: Sequence[JobView]) -> None:
        super().looked(jobs)
        if sum(job.state == "running" for job in jobs) == 2 and any(
            job.state == "suspended" for job in jobs
        ):
            self.swing.set()


def started_kernel(folder: Path, core: Literal["llama", "simulated"]) -> EmbeddedKernel:
    config = KernelConfig(
        state_dir=folder, llm_core=core, llm_slots=2, llm_workers=1, tool_workers=1
    )
    return EmbeddedKernel(config, inherited={**SIMULATED, **environment()})


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKernel]:
    with started_kernel(tmp_path_factory.mktemp("kernel"), "simulated") as running:
        yield running


@asynccontextmanager
async def demo_on(kernel: EmbeddedKernel, watcher: Progress) -> AsyncIterator[Demo]:
    async with (
        Operator(kernel.redis_url, name="test") as operator,
        operator.client() as client,
    ):
        demo = Demo(client, operator.control, demo_agents(8), watcher)
        await demo.warm_up()
        yield demo


async def undisturbed(kernel: EmbeddedKernel) -> PolicyRun:
    """Run the load where nothing interrupts it."""
    async with demo_on(kernel, Progress()) as demo:
        return await demo.run(FIFO)


@pytest.fixture(scope="module")
def whole(kernel: EmbeddedKernel) -> PolicyRun:
    """What the load is answered undisturbed: by promise the same whenever it is asked for."""
    return asyncio.run(undisturbed(kernel))


async def load_with_a_death(
    kernel: EmbeddedKernel, victim: str, whole: PolicyRun
) -> tuple[PolicyRun, list[Slice], float]:
    """Run the load, kill `victim` in full swing; return the run, its slices, the time of death."""
    watcher = Watcher()
    async with demo_on(kernel, watcher) as demo:
        load = asyncio.create_task(demo.run(ROUND_ROBIN))
        await asyncio.wait_for(watcher.swing.wait(), 60)
        died_at_s = time.time()
        killed = await asyncio.to_thread(kernel.kill, victim)
        run = await asyncio.wait_for(load, 240)
        await asyncio.to_thread(kernel.wait_running, victim, not_pid=killed)
        await demo.compare(run, whole)
    async with contextlib.aclosing(Database(kernel.database_url, name="test")) as database:
        slices = await read_slices(Ledger(database), list(run.owners))
    return run, slices, died_at_s


def check(run: PolicyRun, slices: list[Slice], victim: str, died_at_s: float) -> None:
    assert [answer.reply.error for answer in run.answers] == [None] * 16
    assert run.compared > 0
    assert run.identical == run.compared
    lost = [one for one in slices if one.ended_by == "reclaim"]
    if victim != "llm-1":
        return
    assert lost
    for one in lost:
        again = min(s.start_s for s in slices if s.job_id == one.job_id and s.start_s >= one.end_s)
        logger.warning("runs again %.1f s after the death of its worker", again - died_at_s)
        assert again - died_at_s < RECOVERED_WITHIN_S


@pytest.mark.parametrize("victim", VICTIMS)
async def test_every_agent_gets_its_answer_though_a_process_is_killed(
    kernel: EmbeddedKernel, whole: PolicyRun, victim: str
) -> None:
    run, slices, died_at_s = await load_with_a_death(kernel, victim, whole)
    check(run, slices, victim, died_at_s)


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
async def test_the_same_with_the_embedded_model(tmp_path: Path, victim: str) -> None:
    with started_kernel(tmp_path, "llama") as kernel:
        whole = await undisturbed(kernel)
        run, slices, died_at_s = await load_with_a_death(kernel, victim, whole)
        check(run, slices, victim, died_at_s)


async def test_what_redis_acknowledged_outlives_it(kernel: EmbeddedKernel) -> None:
    """All that was acknowledged more than a second before a kill -9 is there and gets answered."""
    syscalls = [
        Syscall(id=new_id(), agent="keeper", body=LlmChat((Message("user", "hi"),), max_tokens=4))
        for _ in range(50)
    ]
    async with Operator(kernel.redis_url, name="test") as operator, operator.client() as client:
        pending = [sent(client, syscall) for syscall in syscalls]
        await asyncio.gather(*(one.taken() for one in pending))
        loop = asyncio.get_running_loop()
        acknowledged_at = loop.time()
        await asyncio.to_thread(wait_until, lambda: loop.time() - acknowledged_at > 1.0)
        killed = await asyncio.to_thread(kernel.kill, "redis")
        await asyncio.to_thread(kernel.wait_running, "redis", not_pid=killed)
        replies: list[Reply] = await asyncio.gather(*(one.reply_within(60) for one in pending))
    assert [reply.error for reply in replies] == [None] * 50
