"""Large replies leave one at a time: small ones, Redis and the next claims wait for one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import redis
from rq.job import Job
from rq.serializers import JSONSerializer

from aios_broker.contract.reply import EchoResult, Reply, encode
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue, Settled
from aios_broker.queues.records import RQ_RESULT_BYTES, Ending
from aios_workers.runtime import results
from aios_workers.runtime.executor import Done
from aios_workers.runtime.registry import LoadedModule
from aios_workers.runtime.results import Outbox
from aios_workers.runtime.runs import Run
from tests.caller import Caller, running_worker

NOTHING = ClaimRequest(0, 30.0)
STEP_BYTES, SMALL_BYTES = 30_000, 2_000  # for these tests: what is large is large for Redis alone
LARGE = "x" * (STEP_BYTES // 3)
LARGEST = "x" * (3 * STEP_BYTES)


@pytest.fixture
async def caller(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caller]:
    monkeypatch.setattr(results, "STEP_BYTES", STEP_BYTES)
    monkeypatch.setattr(results, "SMALL_BYTES", SMALL_BYTES)
    client = Caller(redis_url)
    yield client
    await client.aclose()


class Noting(ModuleQueue):
    """The queue; notes what each step carries."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(Functions(caller.connection), "tool")
        self.steps: list[list[int]] = []  # bytes of each reply

    async def finish(
        self, worker: str, endings: Sequence[Ending], claim_request: ClaimRequest
    ) -> Settled:
        self.steps.append([len(each.reply) for each in endings])
        return await super().finish(worker, endings, claim_request)


async def test_a_small_result_waits_for_one_large_one_at_most(caller: Caller) -> None:
    queue = Noting(caller)
    outbox = Outbox(queue, "worker")
    texts = [LARGEST, *[LARGE] * 5, "small", LARGEST, "small too"]
    ids = await caller.submit(*(ToolEcho() for _ in texts))
    leases = await queue.claim("worker", ClaimRequest(len(ids), 30.0))
    for lease, text in zip(leases, texts, strict=True):
        reply = encode(Reply(lease.job_id, EchoResult(text)))
        outbox.add(Ending(lease, "finished", reply, 0.1))

    await outbox.settle(NOTHING)
    first = queue.steps[0]
    assert [size for size in first if size <= SMALL_BYTES] == first[-2:]
    assert outbox.left == len(outbox) > 0
    while len(outbox):
        await outbox.settle(NOTHING)

    assert outbox.left == 0
    for step in queue.steps:
        assert sum(step) - max(step) <= STEP_BYTES  # one that is larger, and what fits beside it
    assert max(first) > 3 * STEP_BYTES  # what is large does not wait for all that is small
    assert [reply.unwrap() for reply in await caller.hear_all(ids)] == list(map(EchoResult, texts))


class Wordy:
    """Answers with more than one step carries, and looks how many jobs its worker holds."""

    capacity = 3

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.held: list[int] = []

    async def run(self, run: Run, syscall: Syscall) -> Done:
        self.held.append(int(self._client.zcard("rq:aios:leases:tool")))
        await asyncio.sleep(0)
        return Done(EchoResult(LARGEST))

    async def close(self) -> None:
        """Nothing to free."""


async def test_large_replies_do_not_pile_up_in_their_worker(caller: Caller) -> None:
    with redis.Redis.from_url(caller.url) as client:
        handler = Wordy(client)
        ids = await caller.submit(*(ToolEcho() for _ in range(8 * Wordy.capacity)))
        async with running_worker(caller.url, "tool", LoadedModule(lambda _: handler)):
            await caller.hear_all(ids)

    assert max(handler.held) <= 2 * Wordy.capacity  # those that run, and those that wait to leave


async def test_rqs_tools_are_told_of_a_long_reply_how_long_it_is(caller: Caller) -> None:
    queue = Noting(caller)
    [syscall_id] = await caller.submit(ToolEcho())
    [lease] = await queue.claim("worker", ClaimRequest(1, 30.0))
    result = EchoResult("x" * (RQ_RESULT_BYTES + 1))
    reply = encode(Reply(lease.job_id, result))
    await queue.finish("worker", [Ending(lease, "finished", reply, 0.1)], NOTHING)

    with redis.Redis.from_url(caller.url) as client:
        told = Job.fetch(syscall_id, connection=client, serializer=JSONSerializer).return_value()
    assert told is not None
    assert (told["id"], told["bytes"], told["left_out"]) == (syscall_id, len(reply), "result")
    assert (await caller.hear(syscall_id)).unwrap() == result
