"""A lease says that its job was parked and a person has decided: whoever claims it, each time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis
import rq
from rq.serializers import JSONSerializer

from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Ending, Lease, Suspension
from tests.queue_user import LEASE_S, QueueUser, queue_user

NOTHING_MORE = ClaimRequest(0, LEASE_S)


@pytest.fixture
async def user(redis_url: str) -> AsyncIterator[QueueUser]:
    async with queue_user(redis_url) as found:
        yield found


async def parked(user: QueueUser) -> str:
    """Submit a job and park it; return its id."""
    [job_id] = await user.submit(0)
    [lease] = await user.claim()
    assert not lease.decided
    await user.queue.suspend("worker", [Suspension(lease, None, 0.5, reason="park")], NOTHING_MORE)
    return job_id


async def decided(user: QueueUser, job_id: str) -> None:
    assert await user.control.unpark([job_id], module="llm") == ["done"]


async def the_one_that_is_lent(user: QueueUser) -> Lease:
    [lease] = await user.claim(4)
    return lease


async def test_each_claim_says_so_also_after_a_worker_died(user: QueueUser) -> None:
    epoch = await user.lead()
    await decided(user, await parked(user))
    lease = await the_one_that_is_lent(user)
    assert lease.decided
    member = f"{lease.job_id}:{lease.attempt}"
    await user.redis.execute("ZADD", user.keys.own("leases:llm"), 1, member)
    assert await user.order.reclaim(epoch) == 1
    lease = await the_one_that_is_lent(user)
    assert (lease.losses, lease.decided) == (1, True)
    await user.suspend(lease)
    assert (await the_one_that_is_lent(user)).decided


async def test_one_that_only_waited_or_was_suspended_is_not_decided(user: QueueUser) -> None:
    await user.submit(0)
    lease = await the_one_that_is_lent(user)
    await user.suspend(lease)
    assert not (await the_one_that_is_lent(user)).decided


async def test_one_that_was_held_meanwhile_is_decided_when_it_is_released(user: QueueUser) -> None:
    job_id = await parked(user)
    await user.control.hold([job_id], module="llm")
    await decided(user, job_id)
    assert await user.claim() == []
    await user.control.release([job_id], module="llm")
    assert (await the_one_that_is_lent(user)).decided


async def test_a_stock_worker_is_told_so_too(user: QueueUser) -> None:
    job_id = await parked(user)
    await decided(user, job_id)
    lease = await user.queue.claim_one(job_id, "stock", LEASE_S)
    assert isinstance(lease, Lease)
    assert lease.decided


async def test_a_new_life_is_not_decided(user: QueueUser) -> None:
    epoch = await user.lead()
    job_id = await parked(user)
    await decided(user, job_id)
    lease = await the_one_that_is_lent(user)
    await user.queue.finish("worker", [Ending(lease, "failed", b"{}", 0.5)], NOTHING_MORE)
    with redis.Redis.from_url(user.url) as raw:
        rq.job.Job.fetch(job_id, connection=raw, serializer=JSONSerializer).requeue()
    assert await user.order.reconcile(epoch) == 1
    assert not (await the_one_that_is_lent(user)).decided
