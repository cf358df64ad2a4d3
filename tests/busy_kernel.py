"""A kernel at work, for tests of tools that look at it or meddle with it.

A worker and a scheduler, each a process of its own as a supervisor starts them, on the test's
Redis, with jobs in every state. The simulated core is so slow that nothing changes by itself.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import redis
from rq import Worker

from aios_broker.contract.errors import Cancelled
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import Reply, decode_wire
from tests.caller import Caller, WorkerProcess, chat
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async

SLOTS = 2
LEASE_S = 1.5  # renewed every third of it
SLOW_TOKENS_PER_S = 20
LONG_TOKENS = 1_500  # 75 s: none ends while a test runs
QUEUES = ("llm", "tool")
LLM = "llm.simulated"  # the run queue of the worker's core
START_S = 25.0  # until its processes serve, on a machine that others use
SETTLE_S = 15.0  # for whatever a tool changed: every reply heard, nothing left over


class Listener(Caller):
    """A caller that can also make sure that nothing more comes."""

    async def hear_more(self, *, for_s: float = 0.2) -> None:
        """Take in what else arrives."""
        for data in await self._box.take(timeout_s=for_s):
            message = decode_wire(data)
            if isinstance(message, Reply):
                self.replies.setdefault(message.id, []).append(message)


@dataclass(frozen=True, slots=True)
class Busy:
    """What is going on: one id or more in each state."""

    caller: Listener
    redis: redis.Redis
    running: list[str]
    suspended: str
    queued: list[str]
    held: str
    finished: str
    failed: str

    @property
    def alive(self) -> list[str]:
        return [*self.running, self.suspended, *self.queued, self.held]

    async def cancel(self, *job_ids: str) -> None:
        """End jobs in our own way; those that have ended stay as they are."""
        await self.caller.control.cancel(job_ids, Cancelled("the test is over"), module="llm")

    async def settle(self) -> None:
        """End all that still goes on; check one reply each and that nothing is left over."""
        await self.cancel(*self.alive)
        await self.caller.hear_all([*self.alive, self.finished, self.failed])
        await at_rest(self.caller)


def long_chat(text: str = "tell me a story", **options: object) -> LlmChat:
    return chat(text, max_tokens=LONG_TOKENS, **options)


@asynccontextmanager
async def processes(url: str) -> AsyncIterator[None]:
    """Run a scheduler and a slow llm worker for the length of a block."""
    worker = {
        "aios_llm_slots": SLOTS,
        "aios_worker_lease_s": LEASE_S,
        "aios_simulated_core_decode_tokens_per_s": SLOW_TOKENS_PER_S,
        "aios_simulated_core_end_probability": 0,
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="aios-busy-")))
        log = folder / "scheduler.log"
        stack.enter_context(SchedulerProcess(url, log, aios_quantum_s=0.1))
        stack.enter_context(WorkerProcess(url, "llm", **worker))
        yield


@asynccontextmanager
async def busy_kernel(url: str) -> AsyncIterator[Busy]:
    """Run a kernel with jobs in every state; at the end only its processes are stopped."""
    caller = Listener(url)
    async with processes(url):
        with redis.Redis.from_url(url) as client:
            try:
                yield await _occupy(caller, client)
            finally:
                await caller.aclose()


async def _occupy(caller: Listener, client: redis.Redis) -> Busy:
    await wait_until_async(lambda: client.hexists("rq:aios:core_cards", "simulated"), START_S)
    finished, failed = await caller.submit(chat("hi", max_tokens=2), chat("x" * 9_000))
    await caller.hear_all([finished, failed])
    long = await caller.submit(*(long_chat(str(n)) for n in range(SLOTS + 1)), deadline_s=500.0)

    async def somebody_yielded() -> bool:
        return "suspended" in [await caller.state(each) for each in long]

    await wait_until_async(lambda: client.hget("rq:aios:policy:llm", "name"))
    await wait_until_async(somebody_yielded)
    await caller.publish_policy(
        name="fifo", preempt="none"
    )  # from here on they stay where they are
    queued = await caller.submit(*(long_chat(f"later {n}") for n in range(3)), deadline_s=500.0)
    held = queued.pop()
    await caller.control.hold([held], module="llm")
    await wait_until_async(lambda: _is_stable(caller, long))
    await wait_until_async(lambda: _is_told(client))
    states = {each: await caller.state(each) for each in long}
    return Busy(
        caller,
        client,
        running=[each for each in long if states[each] == "running"],
        suspended=next(each for each in long if states[each] == "suspended"),
        queued=queued,
        held=held,
        finished=finished,
        failed=failed,
    )


async def _is_stable(caller: Caller, long: list[str]) -> bool:
    """Return whether as many run as there are slots, and none is on its way out."""
    states = [await caller.state(each) for each in long]
    told = await caller.connection.execute("ZCARD", "rq:aios:suspending:llm")
    return states.count("running") == SLOTS and not told


def _is_told(client: redis.Redis) -> bool:
    """Return whether the worker's record says what it does: a renewal of its leases writes it."""
    return [each.get_state() for each in Worker.all(connection=client)] == ["busy"]


def left_over(client: redis.Redis, queues: tuple[str, ...] = QUEUES) -> dict[str, int]:
    """Return what should be empty at rest and is not: key -> entries."""
    keys = ["rq:aios:snapshots", "rq:aios:snapshot_bytes"]
    for queue in queues:
        own = (
            "live",
            "leases",
            "deadlines",
            "scores",
            "suspending",
            "held",
            "parked",
            "control",
            "suspects",
        )
        keys += [f"rq:aios:{name}:{queue}" for name in own]
        keys += [f"rq:{name}:{queue}" for name in ("queue", "wip", "deferred")]
    sizes = {"list": client.llen, "hash": client.hlen, "zset": client.zcard}
    kinds = {key: bytes(client.type(key)).decode() for key in keys}  # type: ignore[arg-type]
    left = {key: sizes[kind](key) for key, kind in kinds.items() if kind != "none"}
    left["rq:aios:snapshot_total"] = int(client.get("rq:aios:snapshot_total") or 0)
    left |= {key.decode(): 1 for key in client.scan_iter("rq:aios:snapshot:*")}
    return {key: size for key, size in left.items() if size}


async def at_rest(caller: Listener) -> None:
    """Wait until nothing is left over; check that nobody was answered twice."""
    with redis.Redis.from_url(caller.url) as client:
        try:
            await wait_until_async(lambda: not left_over(client), SETTLE_S)
        except TimeoutError as error:
            raise AssertionError(f"left over at rest: {left_over(client)}") from error
    await caller.hear_more()
    assert {
        each: len(replies) for each, replies in caller.replies.items() if len(replies) != 1
    } == {}


async def run_tool(*command: str, **variables: str) -> str:
    """Run one of RQ's command-line tools; return what it prints, fail if it fails."""
    tool = Path(sys.executable).with_name(command[0])
    process = await asyncio.create_subprocess_exec(
        tool,
        *command[1:],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **variables},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30.0)
    assert process.returncode == 0, output.decode()
    return output.decode()
