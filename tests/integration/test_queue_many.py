"""Many jobs in one step, in a long queue: all of them leave it, and none is looked for alone."""

from __future__ import annotations

import random
import zlib
from collections.abc import AsyncIterator

import pytest
import redis

from aios_broker.contract.errors import Cancelled
from aios_broker.contract.syscall import new_id
from aios_broker.queues.control import AT_ONCE
from aios_broker.queues.module_queue import ClaimRequest, Differs
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import JobMetadata, Submission
from tests.queue_user import DATA, LEASE_S, QueueUser, submitted

WAITING = 1200  # more than is read of the queue at a time
MANY = 7 * AT_ONCE  # more than one step takes


@pytest.fixture
async def user(redis_url: str) -> AsyncIterator[QueueUser]:
    found = QueueUser(redis_url, "tool")
    await found.functions.load()
    yield found
    await found.redis.aclose()


async def submit(user: QueueUser, agents: list[str]) -> list[str]:
    jobs = [
        Submission(new_id(), DATA, JobMetadata(agent=name, kind="tool.echo"), "c")
        for name in agents
    ]
    await submitted(user.queue, jobs)
    return [job.job_id for job in jobs]


async def test_one_that_comes_twice_after_a_stock_tool_packed_it_anew_differs_twice(
    user: QueueUser,
) -> None:
    job = Submission(new_id(), DATA, JobMetadata(agent="ada", kind="tool.echo"), "c")
    await submitted(user.queue, [job])
    packed = zlib.compress(DATA)
    await user.redis.execute("HSET", user.queue.keys.job(job.job_id), "data", packed)

    assert await user.queue.submit([job, job]) == [Differs(packed), Differs(packed)]


def searches(client: redis.Redis) -> int:
    """Return how often Redis went through a list for something that stands somewhere in it."""
    stats = client.info("commandstats")
    return int(stats.get("cmdstat_lrem", {"calls": 0})["calls"])


@pytest.mark.parametrize("how", ["cancel", "hold", "expire"])
async def test_many_that_wait_leave_a_long_queue_in_few_searches(
    user: QueueUser, redis_url: str, how: str
) -> None:
    ids = await submit(user, ["ada"] * WAITING)
    chosen = random.Random(7).sample(ids, MANY)
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        match how:
            case "cancel":
                outcomes = await user.control.cancel(
                    chosen, Cancelled("not any more"), module="tool"
                )
                assert outcomes == ["done"] * MANY
            case "hold":
                assert await user.control.hold(chosen, module="tool") == ["done"] * MANY
            case _:
                epoch = (await user.order.lead("test", 60.0)).epoch
                client.zadd("rq:aios:deadlines:tool", dict.fromkeys(chosen, 1))
                assert await user.order.expire(epoch) == MANY
                assert await user.order.expire(epoch) == 0
        assert await user.waiting() == [job_id for job_id in ids if job_id not in set(chosen)]
        assert 0 < searches(client) <= MANY // AT_ONCE + 1


async def test_no_more_jobs_are_ended_at_once_than_asked_for(
    user: QueueUser, redis_url: str
) -> None:
    ids = await submit(user, ["ada"] * WAITING)
    epoch = (await user.order.lead("test", 60.0)).epoch
    with redis.Redis.from_url(redis_url) as client:
        client.zadd("rq:aios:deadlines:tool", dict.fromkeys(ids, 1))
        assert await user.order.expire(epoch, limit=230) == 230
        assert client.llen("rq:queue:tool") == WAITING - 230


async def test_what_stands_far_behind_barred_jobs_is_taken_by_its_place(
    user: QueueUser, redis_url: str
) -> None:
    await Quotas(user.functions).set("tool", QuotaRow(Subject.of_agent("ada"), max_running=0))
    agents = ["bob"] * 3 + ["ada", "bob"] * 5 + ["ada"] * 300 + ["bob", "ada"] * 150
    ids = await submit(user, agents)
    theirs = [job_id for job_id, agent in zip(ids, agents, strict=True) if agent == "ada"]
    allowed = [job_id for job_id, agent in zip(ids, agents, strict=True) if agent == "bob"]
    taken: list[str] = []
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        claims = 0
        while len(taken) < len(allowed):
            leases = await user.queue.claim("w", ClaimRequest(16, LEASE_S))
            assert leases
            taken += [lease.job_id for lease in leases]
            claims += 1
        assert taken == allowed
        assert await user.waiting() == theirs
        assert searches(client) <= claims
