"""Crash points, late messages and a jumping clock, put around a process from outside.

Nothing in the product knows of them: the launcher replaces, in a process of its own, how a
`Connection` executes a command and how a `Database` runs a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from aios_broker.contract.errors import KernelError, RedisUnavailable
from aios_broker.postgres import database
from aios_broker.postgres.database import Database
from aios_broker.queues.functions import LIBRARY
from aios_broker.redis.connection import Answer, Argument, Connection
from benchmarks.chaos.plan import BEGIN, COMMIT, Moment, Plan, Point

Execute = Callable[..., Awaitable[Answer]]

# Steps that settle a lease or have an effect: sent again later, they must change nothing. The index
# of `want` in their command, if it has one: what is sent again must not claim jobs for nobody.
SETTLING: dict[str, int | None] = {"finish": 8, "suspend": 8, "context_write": None}


def step_of(command: Sequence[Argument]) -> str:
    """Return the name of a command: of a function of ours its step, else Redis' own word."""
    if command[0] == "FCALL":
        return str(command[1]).removeprefix(f"{LIBRARY}_")
    return str(command[0])


class Faults:
    """The plan of this process under way: counts steps, strikes at its points."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._seen: Counter[str] = Counter()
        self._random = random.Random(os.getpid())
        self._late: set[asyncio.Task[None]] = set()

    def install(self) -> None:
        """Put the faults around this process's connections; for its whole life."""
        if self._plan.points or self._plan.late_finish:
            Connection.execute = self._around(Connection.execute)  # type: ignore[assignment, method-assign]
            Database.transaction = _transactions(self)  # type: ignore[assignment, method-assign]

    def points(self, step: str) -> dict[Moment, Point]:
        """Count a step; return what is to happen at its moments this time."""
        self._seen[step] += 1
        nth = self._seen[step]
        return {p.moment: p for p in self._plan.points if p.step == step and p.nth == nth}

    def _around(self, execute: Execute) -> Execute:
        async def faulty(
            connection: Connection, *command: Argument, timeout_s: float | None = None
        ) -> Answer:
            step = step_of(command)
            points = self.points(step)
            await strike(points.get("before"), connection)
            answer = await execute(connection, *command, timeout_s=timeout_s)
            if step in SETTLING and self._random.random() < self._plan.late_finish:
                self._send_late(execute, connection, step, command)
            await strike(points.get("sent"), connection)
            if after := points.get("after"):
                asyncio.get_running_loop().call_soon(strike_soon, after)
            return answer

        return faulty

    def _send_late(
        self, execute: Execute, connection: Connection, step: str, command: Sequence[Argument]
    ) -> None:
        again = list(command)
        if (want := SETTLING[step]) is not None:
            again[want] = 0

        async def later() -> None:
            # At once, while the lease still stands; or when it is gone.
            await asyncio.sleep(self._random.choice((0.0, self._plan.late_after_s)))
            with contextlib.suppress(KernelError):  # an outage: then this one does not come
                await execute(connection, *again)

        task = asyncio.get_running_loop().create_task(later())
        self._late.add(task)
        task.add_done_callback(self._late.discard)


async def strike(point: Point | None, connection: Connection | None = None) -> None:
    """Do what the point says, here and now."""
    if point is None:
        return
    if point.action == "drop":
        await lose(connection)
    strike_soon(point)


def strike_soon(point: Point) -> None:
    """Die, or stand still: no other task of this process runs meanwhile."""
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if point.action == "stall":
        time.sleep(point.stall_s)


async def lose(connection: Connection | None) -> None:
    """Break the connection under a command.

    Raises:
        RedisUnavailable: as the connection says it when that happens.
    """
    if connection is None:
        raise psycopg.OperationalError("the connection was cut by the plan")
    protocol: Any = connection._protocol  # the socket below; nothing public breaks one
    if protocol is not None:
        protocol.close()
    raise RedisUnavailable("the connection was cut by the plan", remedy="send it again")


def _transactions(faults: Faults) -> Callable[[Database], Any]:
    transaction = Database.transaction

    @asynccontextmanager
    async def faulty(self: Database) -> AsyncIterator[psycopg.AsyncCursor]:
        begin, commit = faults.points(BEGIN), faults.points(COMMIT)
        with database.database_errors(self.url):
            await strike(begin.get("before"))
            async with transaction(self) as cursor:
                await strike(begin.get("sent") or begin.get("after"))
                yield cursor
                await strike(commit.get("before"))
            await strike(commit.get("sent"))
            if after := commit.get("after"):
                asyncio.get_running_loop().call_soon(strike_soon, after)

    return faulty


def jump_clocks(plan: Plan) -> None:
    """Let the wall clock of this process jump to and fro; what it times by must not notice."""
    if not plan.clock_step_s:
        return
    wall_s = time.time

    def jumping() -> float:
        ahead = int(time.monotonic() / plan.clock_period_s) % 2 == 1
        return wall_s() + (plan.clock_step_s if ahead else -plan.clock_step_s)

    time.time = jumping
