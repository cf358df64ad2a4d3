"""Timing the scheduler's decisions from inside: its own code, tick by tick.

What it submits and claims goes by the queue's steps themselves, without a client or a worker: their
times are figures of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from aios_broker.contract.job import encode_job
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.order import Order
from aios_broker.queues.records import Ending, JobMetadata, PolicyRow, Submission
from aios_broker.redis.connection import Connection
from aios_broker.scheduler.ordering import ModuleOrder
from aios_broker.scheduler.policy import policy_named
from benchmarks.scale.report import Decisions, quantiles
from tests.queue_user import submitted

ARRIVALS = 10  # syscalls that are submitted, and claimed, between two ticks: 500/s at 20 ms
LEASE_S = 3600.0
WORKER = "scale"
TENANTS = 8  # one alone may not fill the queue
MAX_WAITING = 1_000_000
SUSPENDED = "rq:suspended"
REPLY = b'{"kind":"reply"}'
BENCH = Owner("default", "bench")  # who submits between ticks


class Timings:
    """Times of one kind of step: wall, this process's CPU, Redis' own thread. In ms."""

    def __init__(self, redis_pid: int) -> None:
        self.wall: list[float] = []
        self.python: list[float] = []
        self.redis: list[float] = []
        self._stat = Path(f"/proc/{redis_pid}/task/{redis_pid}/schedstat")

    def begin(self) -> None:
        """A step begins."""
        self._redis_s = self._redis_cpu_s()
        self._cpu_s, self._began_s = time.thread_time(), time.perf_counter()

    def end(self) -> None:
        """It has ended."""
        self.wall.append((time.perf_counter() - self._began_s) * 1000)
        self.python.append((time.thread_time() - self._cpu_s) * 1000)
        self.redis.append((self._redis_cpu_s() - self._redis_s) * 1000)

    def _redis_cpu_s(self) -> float:
        return int(self._stat.read_text().split()[0]) / 1e9


class Driver:
    """Leads in a scheduler's place, submits and claims."""

    def __init__(self, connection: Connection, redis_pid: int) -> None:
        functions = Functions(connection)
        self._connection = connection
        self._redis_pid = redis_pid
        self._order = Order(functions, "llm")
        self._control = Control(functions)
        self._queue = ModuleQueue(functions, "llm")
        self._chance = Random(1)
        self._epoch = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, redis_url: str, redis_pid: int) -> AsyncIterator[Driver]:
        """Connect and take the lead."""
        connection = Connection(redis_url, name="aios-bench")
        driver = cls(connection, redis_pid)
        try:
            await connection.execute("DEL", SUSPENDED)
            while True:  # the lease of the one before runs out
                lead = await driver._order.lead("bench", LEASE_S)
                if lead.leading:
                    driver._epoch = lead.epoch
                    break
                await asyncio.sleep(0.1)
            yield driver
        finally:
            await connection.aclose()

    async def measure(self, name: str, ticks: int) -> Decisions:
        """Switch to a policy, sweep the queue into its order, then time decisions."""
        pieces, began_s = Timings(self._redis_pid), time.perf_counter()
        queue = await self.follow(name, pieces)
        sweep_s = time.perf_counter() - began_s
        kinds = await self.ticks(queue, ticks)
        return Decisions(
            ticks=ticks,
            wall=quantiles(kinds["decision"].wall),
            python=quantiles(kinds["decision"].python),
            redis=quantiles(kinds["decision"].redis),
            submit=quantiles(kinds["submit"].wall),
            claim=quantiles(kinds["claim"].wall),
            piece=quantiles(pieces.wall),
            piece_redis=quantiles(pieces.redis),
            sweep_s=round(sweep_s, 2),
            sweep_pieces=len(pieces.wall),
        )

    async def follow(self, name: str, pieces: Timings) -> ModuleOrder:
        """Switch to a policy and sweep the queue into its order; return what decides by it."""
        policy = policy_named(name)
        row = PolicyRow(policy.name, policy.preempt, max_waiting=MAX_WAITING)
        await self._control.set_policy("llm", row)
        queue = ModuleOrder(self._order, self._control, policy)
        for _ in range(2):  # into the policy's order; then whoever takes turns is read
            goes_on = True
            while goes_on:
                pieces.begin()
                goes_on = await queue.sweep(self._epoch, self._now_ms())
                pieces.end()
                await queue.decide(self._epoch, self._now_ms())
        return queue

    async def ticks(self, queue: ModuleOrder, count: int) -> dict[str, Timings]:
        """Let so many ticks pass; return what their decisions, submissions and claims took."""
        kinds = {kind: Timings(self._redis_pid) for kind in ("decision", "submit", "claim")}
        for _ in range(count):
            await self._tick(queue, kinds)
        return kinds

    async def fill(self, agents: int, waiting: int) -> None:
        """Let each of so many agents submit its share of what is to wait."""
        row = PolicyRow(max_waiting=MAX_WAITING)
        await self._control.set_policy("llm", row)
        for number in range(agents):
            owner = Owner(f"tenant-{number % TENANTS}", f"agent-{number}")
            await submitted(self._queue, [self._job(owner) for _ in range(waiting // agents)])

    async def _tick(self, queue: ModuleOrder, kinds: dict[str, Timings]) -> None:
        """Let some come and some go, then decide. What was claimed ends, outside the timing."""
        jobs = [self._job(BENCH) for _ in range(ARRIVALS)]
        kinds["submit"].begin()
        await submitted(self._queue, jobs)
        kinds["submit"].end()
        kinds["decision"].begin()
        await queue.decide(self._epoch, self._now_ms())
        kinds["decision"].end()
        kinds["claim"].begin()
        leases = await self._queue.claim(WORKER, ClaimRequest(ARRIVALS, LEASE_S))
        kinds["claim"].end()
        endings = [Ending(lease, "finished", REPLY, 0.001) for lease in leases]
        await self._queue.finish(WORKER, endings, ClaimRequest(0, LEASE_S))

    def _job(self, owner: Owner) -> Submission:
        nice = self._chance.randint(0, 19)
        syscall = Syscall(
            id=new_id(),
            agent=owner.agent,
            tenant=owner.tenant,
            nice=nice,
            body=LlmChat(messages=(Message("user", "Hello"),)),
        )
        metadata = JobMetadata(syscall.agent, syscall.kind, syscall.program, syscall.tenant, nice)
        return Submission(syscall.id, encode_job(syscall), metadata, "", deadline_s=LEASE_S)

    @staticmethod
    def _now_ms() -> int:
        return time.time_ns() // 1_000_000
