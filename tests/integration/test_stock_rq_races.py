"""What RQ's tools remove while workers are about to write its status stays removed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import redis
from rq import Worker
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.records import WorkerCard
from tests.busy_kernel import START_S, Listener, long_chat, processes
from tests.waiting import wait_until_async

STARTED = b"started"
LEFT = 4  # that wait still when the last one is removed


def running(client: redis.Redis, ids: list[str]) -> list[str]:
    return [each for each in ids if client.hget(f"rq:job:{each}", "status") == STARTED]


@pytest.mark.parametrize("how", ["cancel", "delete"])
@pytest.mark.parametrize(
    "times", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
async def test_what_is_removed_while_others_wait_for_its_slot_ends(
    redis_url: str, how: str, times: int
) -> None:
    caller = Listener(redis_url)
    async with processes(redis_url):
        with redis.Redis.from_url(redis_url) as client:
            ids = await caller.submit(*(long_chat(str(n)) for n in range(times + LEFT)))
            gone: list[str] = []
            while len(gone) < times:
                left = [each for each in ids if each not in gone]
                one = (await wait_until_async(partial(running, client, left), START_S))[0]
                getattr(Job.fetch(one, connection=client, serializer=JSONSerializer), how)()
                gone.append(one)
            for each in gone:
                reply = await caller.hear(each)
                assert reply.error is not None
                assert reply.error.code == "cancelled"
            jobs = Job.fetch_many(gone, connection=client, serializer=JSONSerializer)
            if how == "delete":
                assert jobs == [None] * times
            else:
                assert {job.get_status() for job in jobs if job} == {JobStatus.CANCELED}
                assert None not in jobs
    await caller.aclose()


async def test_a_running_job_has_its_execution(redis_url: str) -> None:
    caller = Listener(redis_url)
    async with processes(redis_url):
        with redis.Redis.from_url(redis_url) as client:
            [job_id] = await caller.submit(long_chat())
            await wait_until_async(lambda: running(client, [job_id]), START_S)
            job = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
            await wait_until_async(lambda: job.get_executions())
            [execution] = job.get_executions()
            assert execution.job_id == job_id
            assert f"rq:worker:{execution.worker_name}".encode() in client.smembers("rq:workers")
    await caller.aclose()


async def test_a_name_that_lives_is_refused_to_another_process(redis_url: str) -> None:
    caller = Listener(redis_url)
    queue = caller.queue("llm")
    first = WorkerCard("twin", "llm", 1, "here", 2, instance="a")
    second = replace(first, pid=2, slots=4, instance="b")
    await queue.register(first)
    await queue.renew(first, [], 2.0)
    with pytest.raises(InvalidConfig, match="process 1 on here") as refused:
        await queue.register(second)
    assert refused.value.field == "name"
    await queue.register(first)  # it may show itself anew, with other cores
    await queue.renew(first, [], 0.05)

    async def comes() -> bool:
        with suppress(InvalidConfig):
            await queue.register(second)
            return True
        return False

    await wait_until_async(comes)  # who was killed renews no more
    await queue.renew(second, [], 60.0)
    await queue.unregister("twin")
    await queue.register(first)  # who has left has left
    with redis.Redis.from_url(redis_url) as client:
        [shown] = Worker.all(connection=client)
        assert (shown.name, shown.pid) == ("twin", 1)
    await caller.aclose()
