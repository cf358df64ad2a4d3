"""Each step of a worker with a job that a stock RQ tool has removed meanwhile, one by one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from aios_broker.contract.reply import Chunk
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Lease, SliceUse
from tests.queue_user import LEASE_S, QueueUser, queue_user

REMOVALS = pytest.mark.parametrize("how", ["cancel", "delete"])


@pytest.fixture
async def user(redis_url: str) -> AsyncIterator[QueueUser]:
    async with queue_user(redis_url) as found:
        await found.functions.load()
        yield found


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


async def removed(user: QueueUser, client: redis.Redis, how: str) -> Lease:
    """Return the lease of a job that runs, and that RQ's tools have removed; another one waits."""
    [job_id, _] = await user.submit(0, 0)
    [lease] = await user.claim()
    assert lease.job_id == job_id
    getattr(Job.fetch(job_id, connection=client, serializer=JSONSerializer), how)()
    return lease


async def stays_removed(user: QueueUser, client: redis.Redis, lease: Lease, how: str) -> None:
    """Check what is left of it: its lease alone, by which the scheduler answers."""
    [found] = Job.fetch_many([lease.job_id], connection=client, serializer=JSONSerializer)
    if how == "delete":
        assert found is None
        assert not client.exists(f"rq:job:{lease.job_id}")
    else:
        assert found is not None
        assert found.get_status() == JobStatus.CANCELED
    assert lease.job_id not in await user.waiting()
    member = f"{lease.job_id}:{lease.attempt}"
    assert client.zscore(user.keys.own("leases:llm"), member) is not None


@REMOVALS
async def test_it_yields_and_is_not_queued(user: QueueUser, client: redis.Redis, how: str) -> None:
    lease = await removed(user, client, how)
    await user.suspend(lease, b"snapshot")
    await stays_removed(user, client, lease, how)
    assert not client.hexists("rq:aios:snapshots", lease.job_id)


@REMOVALS
async def test_it_ends_and_its_result_counts_for_nothing(
    user: QueueUser, client: redis.Redis, how: str
) -> None:
    lease = await removed(user, client, how)
    assert await user.finish(lease) == [False]
    await stays_removed(user, client, lease, how)
    assert lease.job_id.encode() not in client.zrange("rq:finished:llm", 0, -1)


@REMOVALS
async def test_its_slice_ends_and_the_worker_stops(
    user: QueueUser, client: redis.Redis, how: str
) -> None:
    lease = await removed(user, client, how)
    use = SliceUse(lease, 0.1, 3, b"checkpoint")
    assert await user.queue.slice_end("worker", [use], ClaimRequest(0, LEASE_S)) == ["lost"]
    await stays_removed(user, client, lease, how)


async def test_its_worker_dies_and_it_is_not_put_back(user: QueueUser, client: redis.Redis) -> None:
    epoch = await user.lead()
    lease = await removed(user, client, "cancel")
    client.zadd(user.keys.own("leases:llm"), {f"{lease.job_id}:{lease.attempt}": 1})
    assert await user.order.reclaim(epoch) == 0
    await stays_removed(user, client, lease, "cancel")


@REMOVALS
async def test_its_text_goes_on_and_makes_no_record(
    user: QueueUser, client: redis.Redis, how: str
) -> None:
    lease = await removed(user, client, how)
    await user.queue.emit([(lease, Chunk(lease.job_id, 0, "a piece"))])
    await stays_removed(user, client, lease, how)
