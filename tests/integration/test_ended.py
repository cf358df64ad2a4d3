"""Records of finished jobs go when their time is over, and no other record goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import msgspec
import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from aios_broker.queues.module_queue import RESULT_TTL_S
from aios_broker.queues.records import JobMetadata, Submission
from tests.queue_user import DATA, QueueUser, submitted

LATER_S = RESULT_TTL_S + 1


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def pass_time(user: QueueUser, raw: redis.Redis, by_s: int = LATER_S) -> None:
    """Let everything that finished have finished so much earlier."""
    ended, registry = user.keys.own("ended:llm"), user.keys.registry("finished", "llm")
    packed = cast("list[bytes]", raw.lrange(ended, 0, -1))
    batches = [msgspec.msgpack.decode(batch) for batch in packed]
    raw.delete(ended)
    for until_s, *rest in batches:
        raw.rpush(ended, msgspec.msgpack.encode([until_s - by_s, *rest]))
    entries = cast("list[tuple[bytes, float]]", raw.zrange(registry, 0, -1, withscores=True))
    for job_id, until_s in entries:
        raw.zadd(registry, {job_id: until_s - by_s})


def records(user: QueueUser, raw: redis.Redis, job_id: str) -> int:
    return int(raw.exists(user.keys.job(job_id), user.keys.results(job_id)))


async def run_one(user: QueueUser) -> str:
    [job_id] = await user.submit(0)
    assert await user.finish(*await user.claim()) == [True]
    return job_id


def fetch(raw: redis.Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=raw, serializer=JSONSerializer)


@pytest.mark.parametrize("who", ["scheduler", "worker"])
async def test_records_go_when_their_time_is_over(
    user: QueueUser, raw: redis.Redis, who: str
) -> None:
    job_id = await run_one(user)
    epoch = await user.lead()

    async def look() -> None:
        if who == "scheduler":
            await user.order.expire(epoch)
        else:
            await run_one(user)

    await look()
    assert records(user, raw, job_id) == 2
    pass_time(user, raw)
    await look()
    assert records(user, raw, job_id) == 0


async def test_of_a_long_backlog_a_finish_deletes_more_than_it_adds(
    user: QueueUser, raw: redis.Redis
) -> None:
    for _ in range(6):
        await run_one(user)
    pass_time(user, raw)
    for _ in range(3):
        await run_one(user)
    assert raw.llen(user.keys.own("ended:llm")) == 3


async def test_a_batch_of_any_length_is_deleted(user: QueueUser, raw: redis.Redis) -> None:
    many = 8_200  # more than Lua unpacks
    ids = await user.submit(*[0] * many)
    assert await user.finish(*await user.claim(many)) == [True] * many
    epoch = await user.lead()
    pass_time(user, raw)

    await user.order.expire(epoch)

    assert raw.llen(user.keys.own("ended:llm")) == 0
    assert records(user, raw, ids[0]) == records(user, raw, ids[-1]) == 0


async def test_a_record_whose_registry_entry_a_stock_tool_dropped_goes_too(
    user: QueueUser, raw: redis.Redis
) -> None:
    job_id = await run_one(user)
    epoch = await user.lead()
    pass_time(user, raw)
    stock = Queue("llm", connection=raw, serializer=JSONSerializer)
    assert stock.finished_job_registry.count == 0  # counting drops what has expired
    await user.order.expire(epoch)
    assert records(user, raw, job_id) == 0


@pytest.mark.parametrize("counted", [False, True], ids=["alone", "after rq info"])
async def test_one_that_is_enqueued_again_keeps_its_record(
    user: QueueUser, raw: redis.Redis, *, counted: bool
) -> None:
    job_id = await run_one(user)
    epoch = await user.lead()
    stock = Queue("llm", connection=raw, serializer=JSONSerializer)
    stock.enqueue_job(fetch(raw, job_id))
    assert await user.order.reconcile(epoch) == 1
    pass_time(user, raw)
    if counted:
        assert stock.finished_job_registry.count == 0

    await user.order.expire(epoch)
    assert records(user, raw, job_id) == 2
    assert await user.finish(*await user.claim()) == [True]  # its second life ends ...
    await user.order.expire(epoch)
    assert records(user, raw, job_id) == 2
    pass_time(user, raw)  # ... and is kept as long as its first
    await user.order.expire(epoch)
    assert records(user, raw, job_id) == 0


@pytest.mark.parametrize("counted", [False, True], ids=["alone", "after rq info"])
async def test_an_id_that_was_deleted_and_came_again_keeps_its_new_record(
    user: QueueUser, raw: redis.Redis, *, counted: bool
) -> None:
    job_id = await run_one(user)
    epoch = await user.lead()
    fetch(raw, job_id).delete()
    pass_time(user, raw)
    await submitted(user.queue, [Submission(job_id, DATA, JobMetadata("ada", "llm.chat"), "me")])
    [lease] = await user.claim()
    if counted:
        await user.order.expire(epoch)  # it runs meanwhile
    await user.finish(lease)

    await user.order.expire(epoch)
    assert records(user, raw, job_id) == 2


async def test_an_old_epoch_deletes_nothing(user: QueueUser, raw: redis.Redis) -> None:
    job_id = await run_one(user)
    epoch = await user.lead()
    pass_time(user, raw)
    await user.order.expire(epoch - 1)
    assert records(user, raw, job_id) == 2
