"""A kernel in which one process dies at a chosen point, and another of its kind goes on.

The process that dies is a real one, launched with the crash point. What takes over, and all that
is around it, lives in the test's own loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from aios_broker.contract.errors import DeadlineExceeded
from aios_broker.contract.llm import ContextExpand, ContextGet, Message
from aios_broker.contract.reply import ChatResult, ContextResult, EchoResult
from aios_broker.contract.syscall import Body, ToolEcho
from aios_broker.ledger.journal import Transition
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.scheduler.config import SchedulerConfig
from aios_broker.scheduler.scheduler import Scheduler
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.loop import Limits
from aios_workers.runtime.registry import LoadedModule, llm_module, tool_module
from benchmarks.chaos.plan import VARIABLE, Plan, Point
from tests.busy_kernel import Listener, at_rest
from tests.caller import ROOT, chat, running_worker
from tests.exactness import generate
from tests.waiting import wait_until_async

CORE = SimulatedCoreConfig(slots=2, decode_tokens_per_s=150.0, end_probability=0.0)
Launched = subprocess.Popen[bytes]
LIMITS = Limits(lease_s=0.8, drain_s=3.0)
CHAT_TOKENS = 40
SEED = 11
QUANTUM_S = 0.05
RECOVERED_S = 20.0  # a busy machine; the promise is measured by `aios bench chaos`
DEADLINE_S = 0.3  # of the one that is to outlive it
SETTINGS = {
    "AIOS_LLM_CORE": "simulated",
    "AIOS_LLM_SLOTS": str(CORE.slots),
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": str(CORE.decode_tokens_per_s),
    "AIOS_SIMULATED_CORE_END_PROBABILITY": str(CORE.end_probability),
    "AIOS_WORKER_LEASE_S": str(LIMITS.lease_s),
    "AIOS_SCHEDULER_LEASE_S": "0.5",
    "AIOS_QUANTUM_S": str(QUANTUM_S),
    "AIOS_SNAPSHOT_BUDGET_BYTES": "0",
}


@contextmanager
def launched(
    process: str, url: str, *points: Point, plan: Plan | None = None, **more: str
) -> Iterator[Launched]:
    """Run a process of the product with crash points, or a whole plan, for a block's length."""
    folders = (".", "broker", "workers", "sdk")
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in folders),
        "AIOS_REDIS_URL": url,
        VARIABLE: (plan or Plan(points=points)).encode(),
        **SETTINGS,
        **more,
    }
    command = (sys.executable, "-m", "benchmarks.chaos.launch", process)
    with subprocess.Popen(command, env=environment, cwd=ROOT) as child:
        try:
            yield child
        finally:
            child.kill()


async def died(child: Launched) -> None:
    """Wait until the process has struck itself dead: a point that is never reached fails."""
    await wait_until_async(lambda: child.poll() is not None, RECOVERED_S)
    assert child.returncode == -signal.SIGKILL, f"it left by itself: {child.returncode}"


@asynccontextmanager
async def running_scheduler(
    url: str, database_url: str | None, policy: str = "rr"
) -> AsyncIterator[None]:
    """Run a scheduler in this loop for the length of a block."""
    config = SchedulerConfig(
        redis_url=url,
        database_url=database_url,
        policy=policy,
        scheduler_lease_s=0.5,
        quantum_s=QUANTUM_S,
        snapshot_budget_bytes=0,
    )
    serving = asyncio.create_task(Scheduler(config).run())
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def loaded(module: str) -> LoadedModule:
    """Return a module as the launched process has it."""
    return await (tool_module(4) if module == "tool" else llm_module(SimulatedCore(CORE)))


@dataclass
class Work:
    """The syscalls of one scene, and what each must be answered."""

    caller: Listener
    chats: dict[str, Body]
    echoes: dict[str, str]
    expands: list[str]
    reads: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """All of them."""
        return [*self.chats, *self.echoes, *self.expands, *self.reads]

    async def check(self) -> None:
        """Wait for all replies; each comes once, is the right one, and nothing is left over."""
        await self.caller.hear_all(self.ids)
        for syscall_id, text in self.echoes.items():
            assert self._result(syscall_id) == EchoResult(text)
        for syscall_id, body in self.chats.items():
            result = self._result(syscall_id)
            assert isinstance(result, ChatResult)
            assert result.output_ids == await expected_ids(syscall_id, result)
            assert len(result.output_ids) == CHAT_TOKENS, body
        if self.expands:
            [reader] = await self.caller.submit(ContextGet(context="diary"))
            context = (await self.caller.hear(reader)).unwrap()
            assert isinstance(context, ContextResult)
            contents = [message.content for message in context.messages]
            assert sorted(contents) == ["entry 0", "entry 1"], "an effect was lost, or came twice"
        await at_rest(self.caller)

    def _result(self, syscall_id: str) -> object:
        return self.caller.replies[syscall_id][0].unwrap()


async def expected_ids(syscall_id: str, result: ChatResult) -> tuple[int, ...]:
    """Generate the answer once more, without any interruption."""
    core = SimulatedCore(replace(CORE, decode_tokens_per_s=0.0))
    request = GenerationRequest(
        request_id=syscall_id,
        prompt_ids=result.prompt_ids,
        max_tokens=CHAT_TOKENS,
        sampling=Sampling(seed=SEED),
    )
    return (await generate(core, request)).ids


async def submitted(caller: Listener, module: str) -> Work:
    """Submit what makes a worker of the module take every step it has."""
    if module == "tool":
        texts = [f"echo {number}" for number in range(6)]
        ids = await caller.submit(*map(ToolEcho, texts))
        return Work(caller, {}, dict(zip(ids, texts, strict=True)), [])
    bodies = [chat(f"chat {n}", max_tokens=CHAT_TOKENS, stream=True, seed=SEED) for n in range(4)]
    expands = await caller.submit(
        *(ContextExpand((Message("user", f"entry {n}"),), context="diary") for n in range(2))
    )
    reads = await caller.submit(ContextGet(context="diary"))
    ids = await caller.submit(*bodies)
    return Work(caller, dict(zip(ids, bodies, strict=True)), {}, expands, reads)


async def worker_dies(url: str, module: str, point: Point) -> None:
    """Kill a worker at the point; a second one goes on."""
    caller = Listener(url)
    try:
        async with running_scheduler(url, None):
            work = await submitted(caller, module)
            with launched(module, url, point) as child:
                if point.step == "unregister":
                    await caller.hear_all(work.ids)
                    child.send_signal(signal.SIGTERM)
                await died(child)
            async with running_worker(url, module, await loaded(module), LIMITS):  # type: ignore[arg-type]
                await work.check()
    finally:
        await caller.aclose()


async def scheduler_dies(url: str, database_url: str, point: Point, policy: str) -> None:
    """Kill a scheduler at the point; a second one goes on. The ledger has it all, once."""
    caller = Listener(url)
    try:
        async with running_worker(url, "llm", await loaded("llm"), LIMITS):
            work = await submitted(caller, "llm")
            overdue, lost = await left_behind(caller)
            work.echoes[lost] = "lost"
            with launched(
                "scheduler", url, point, AIOS_DATABASE_URL=database_url, AIOS_POLICY=policy
            ) as child:
                await died(child)
            async with (
                running_scheduler(url, database_url, policy),
                running_worker(url, "tool", await loaded("tool"), LIMITS),
            ):
                await work.check()
                [reply] = await caller.hear_all([overdue])
                assert reply.error is not None
                assert reply.error.code == DeadlineExceeded.code
                await ledger_is_complete(caller, database_url, [*work.ids, overdue])
    finally:
        await caller.aclose()


async def left_behind(caller: Listener) -> tuple[str, str]:
    """Leave what only a scheduler can put right: an overdue syscall, one whose worker is gone."""
    [lost] = await caller.submit(ToolEcho("lost"))
    [lease] = await caller.queue("tool").claim("gone", ClaimRequest(1, 0.1))
    assert lease.job_id == lost
    [overdue] = await caller.submit(ToolEcho("overdue"), deadline_s=DEADLINE_S)
    await caller.control.hold([overdue], module="tool")  # so that no worker is faster
    return overdue, lost


async def ledger_is_complete(caller: Listener, database_url: str, ids: list[str]) -> None:
    """Check that each syscall's history is in the ledger, lawful, and ends once."""
    database = Database(database_url, name="test")
    ledger = Ledger(database)

    async def drained() -> bool:
        return not await caller.connection.execute("XLEN", "rq:aios:journal")

    try:
        await wait_until_async(drained)
        for syscall_id in ids:
            history: list[Transition] = await ledger.history(syscall_id)
            events = [transition.event for transition in history]
            assert not any(transition.anomaly for transition in history), events
            assert sum(event in ("finish", "fail", "cancel") for event in events) == 1, events
            assert events[0] == "submit"
            assert events.count("submit") == 1
    finally:
        await database.aclose()
