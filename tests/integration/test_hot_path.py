"""What a syscall costs, in commands and socket reads of Redis; answers that need no task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Suspension
from aios_sdk import AsyncAgent
from aios_workers.runtime.executor import Done
from aios_workers.runtime.loop import Limits
from aios_workers.runtime.registry import LoadedModule, tool_module
from aios_workers.runtime.runs import Run
from tests.caller import Caller, running_worker
from tests.waiting import wait_until_async

# Leases that are renewed rarely: what a call costs is counted, not the heartbeat.
QUIET = Limits(lease_s=60.0, drain_s=3.0)
BATCH = 1_000
LOOPS = 32


@dataclass
class Cost:
    """What some syscalls took from Redis, per syscall."""

    commands: float
    reads: float


@pytest.fixture
def counters(redis_url: str) -> Iterator[Callable[[], tuple[int, int]]]:
    """All commands, those inside functions too, and all socket reads so far."""
    with redis.Redis.from_url(redis_url) as client:

        def read() -> tuple[int, int]:
            rows = client.info("commandstats").items()
            commands = sum(row["calls"] for name, row in rows if name != "cmdstat_info")
            return commands, client.info("stats")["total_reads_processed"]

        yield read


async def cost_of(
    counters: Callable[[], tuple[int, int]], count: int, work: Awaitable[object]
) -> Cost:
    commands, reads = counters()
    await work
    commands_after, reads_after = counters()
    return Cost((commands_after - commands) / count, (reads_after - reads - 2) / count)


@pytest.fixture
async def me(redis_url: str) -> AsyncIterator[AsyncAgent]:
    loaded = await tool_module(64)
    async with (
        running_worker(redis_url, "tool", loaded, QUIET),
        AsyncAgent("writer", url=redis_url) as agent,
    ):
        await agent.tool.echo.map(["warm"] * 10)
        yield agent


async def test_a_batch_costs_nine_commands_per_syscall_at_most(
    me: AsyncAgent, counters: Callable[[], tuple[int, int]]
) -> None:
    texts = [f"{n}" for n in range(BATCH)]

    cost = await cost_of(counters, BATCH, me.tool.echo.map(texts))

    assert cost.commands <= 9
    assert cost.reads <= 0.25


async def test_closed_loops_share_their_round_trips(
    me: AsyncAgent, counters: Callable[[], tuple[int, int]]
) -> None:
    texts = iter([f"{n}" for n in range(BATCH)])

    async def loop() -> None:
        for text in texts:
            assert (await me.tool.echo(text)).text == text

    cost = await cost_of(counters, BATCH, asyncio.gather(*(loop() for _ in range(LOOPS))))

    assert cost.commands <= 9
    assert cost.reads <= 0.25


async def test_one_alone_takes_five_socket_reads(
    me: AsyncAgent, counters: Callable[[], tuple[int, int]]
) -> None:
    async def one_by_one() -> None:
        for number in range(50):
            await me.tool.echo(f"{number}")

    cost = await cost_of(counters, 50, one_by_one())

    assert cost.reads < 5.5  # the client's own checks, and a look that ended, among them


class Moody:
    """Answers some at once, some later, refuses some and breaks at some."""

    def __init__(self) -> None:
        self.later: list[str] = []

    @property
    def capacity(self) -> int:
        return 8

    def answer_at_once(self, run: Run, syscall: Syscall) -> Done | None:
        assert isinstance(syscall.body, ToolEcho)
        match syscall.body.text:
            case "later":
                return None
            case "refuse":
                raise InvalidSyscall("not that", field="body.text")
            case "break":
                raise RuntimeError("broken")
            case text:
                return Done(EchoResult(text))

    async def run(self, run: Run, syscall: Syscall) -> Done:
        await asyncio.sleep(0)
        self.later.append(syscall.id)
        return Done(EchoResult("it took its time"))

    async def close(self) -> None:
        """Nothing to free."""


async def test_answers_at_once_and_later_stand_side_by_side(redis_url: str) -> None:
    handler = Moody()
    caller = Caller(redis_url)
    bodies = [ToolEcho(text) for text in ("now", "later", "refuse", "break")] * 5
    async with running_worker(redis_url, "tool", LoadedModule(lambda _: handler)):
        ids = await caller.submit(*bodies)
        replies = await caller.hear_all(ids)
    await caller.aclose()

    came = [reply.result if reply.error is None else reply.error.code for reply in replies]
    assert (
        came
        == [
            EchoResult("now"),
            EchoResult("it took its time"),
            "invalid-syscall",
            "module-error",
        ]
        * 5
    )
    assert sorted(handler.later) == sorted(ids[1::4])


@pytest.mark.parametrize("job_id", [b"\xff\xfe", b"half \xe2\x82", b"\xed\xa0\x80", b"\xc0\x80"])
async def test_a_job_whose_id_is_no_text_is_quarantined_and_the_worker_goes_on(
    redis_url: str, job_id: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caller = Caller(redis_url)
    execute = caller.connection.execute
    async with running_worker(redis_url, "tool", await tool_module(4)):
        with caplog.at_level(logging.WARNING):
            await execute("HSET", b"rq:job:" + job_id, "data", "[]", "status", "queued")
            await execute("RPUSH", "rq:queue:tool", job_id)
            [syscall_id] = await caller.submit(ToolEcho("next"))
            assert (await caller.hear(syscall_id)).unwrap() == EchoResult("next")
            await wait_until_async(lambda: execute("ZCARD", "rq:aios:quarantine:tool"))
    assert "no text" in caplog.text
    assert await execute("LLEN", "rq:queue:tool") == 0
    assert await execute("HGET", b"rq:job:" + job_id, "status") == b"failed"
    await caller.aclose()


async def test_a_job_with_a_foreign_name_in_utf8_is_answered(redis_url: str) -> None:
    caller = Caller(redis_url)
    execute = caller.connection.execute
    async with running_worker(redis_url, "tool", await tool_module(4)):
        await execute("HSET", "rq:job:späte €-🚀", "data", "[]", "status", "queued")
        await execute("RPUSH", "rq:queue:tool", "späte €-🚀")
        await wait_until_async(lambda: execute("HGET", "rq:job:späte €-🚀", "aios_reply"))
    await caller.aclose()


async def test_a_lease_tells_of_earlier_attempts_and_of_a_wait_while_held(redis_url: str) -> None:
    caller = Caller(redis_url)
    queue, claim_request = caller.queue("tool"), ClaimRequest(4, 60.0)
    [ran, held] = await caller.submit(ToolEcho("ran"), ToolEcho("held"))
    await caller.control.hold([held], module="tool")
    [first] = await queue.claim("worker", claim_request)
    await queue.suspend("worker", [Suspension(first, b"half", 1.5, 3)], ClaimRequest(0, 60.0))
    await caller.control.release([held], module="tool")

    leases = {lease.job_id: lease for lease in await queue.claim("worker", claim_request)}

    assert (first.attempt, first.slices, first.has_snapshot) == (1, 0, False)
    again = leases[ran]
    assert (again.attempt, again.slices, again.suspensions, again.ran_s) == (2, 1, 1, 1.5)
    assert again.has_snapshot
    assert leases[held].attempt == 1
    assert not leases[held].has_snapshot
    await caller.aclose()
