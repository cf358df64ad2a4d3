"""With a backlog a worker claims the next jobs while it answers these, never more than it may."""

from __future__ import annotations

import asyncio

import pytest
import redis

from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_workers.runtime.executor import Done
from aios_workers.runtime.registry import LoadedModule
from aios_workers.runtime.runs import Run
from tests.caller import Caller, running_worker

SLOTS = 64
BACKLOG = 600


class Counting:
    """Answers at once, and looks how many jobs its worker holds meanwhile."""

    def __init__(self, client: redis.Redis, later: int = 0) -> None:
        self._client = client
        self._later = later  # every so many are answered by a task; 0: none
        self.held: list[int] = []

    @property
    def capacity(self) -> int:
        return SLOTS

    def answer_at_once(self, run: Run, syscall: Syscall) -> Done | None:
        self.held.append(int(self._client.zcard("rq:aios:leases:tool")))
        if self._later and len(self.held) % self._later == 0:
            return None
        assert isinstance(syscall.body, ToolEcho)
        return Done(EchoResult(syscall.body.text))

    async def run(self, run: Run, syscall: Syscall) -> Done:
        await asyncio.sleep(0.005)
        return Done(EchoResult("later"))

    async def close(self) -> None:
        """Nothing to free."""


@pytest.mark.parametrize("later", [0, 3], ids=["all at once", "every third later"])
async def test_half_of_the_slots_are_filled_while_the_other_half_is_answered(
    redis_url: str, later: int
) -> None:
    caller = Caller(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        handler = Counting(client, later)
        ids = await caller.submit(*(ToolEcho(f"{n}") for n in range(BACKLOG)))
        async with running_worker(redis_url, "tool", LoadedModule(lambda _: handler)):
            replies = await caller.hear_all(ids)
    await caller.aclose()

    assert len(handler.held) == BACKLOG  # each was answered once
    assert SLOTS // 2 < max(handler.held) <= SLOTS
    texts = [reply.unwrap() for reply in replies]
    assert all(text in (EchoResult(f"{n}"), EchoResult("later")) for n, text in enumerate(texts))
