"""Places at tools and locks, in the queues alone: limits of cards, and workers that know better."""

from __future__ import annotations

import pytest

from aios_broker.contract.syscall import Need
from aios_broker.contract.tools import ParallelLimits, ToolCard
from aios_broker.queues.admission import Admission, Resource
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Suspension
from tests.integration.test_admission import claim, grow_old, submit, take
from tests.queue_user import LEASE_S, QueueUser


@pytest.fixture
def admission(user: QueueUser) -> Admission:
    return Admission(user.functions)


# Places of an agent and of a tenant at a tool.


async def set_card(user: QueueUser, tool: int, tenant: int, agent: int) -> None:
    limits = user.keys.own("tool_limits:llm")
    await user.redis.execute("HSET", limits, "t", f"{tool} {tenant} {agent}")


async def test_the_card_limits_all_a_tenant_and_an_agent(
    user: QueueUser, admission: Admission
) -> None:
    await set_card(user, 4, 3, 2)
    for agent, tenant in (("ada", "acme"), ("bob", "acme"), ("eve", "other")):
        for _ in range(3):
            await submit(user, "tool:t", agent=agent, tenant=tenant)
    assert len(await claim(user, 9)) == 4
    held = {str(row.resource): len(row.holders) for row in await admission.resources("llm")}
    assert held == {
        "tool:t": 4,
        "tool:acme t": 3,
        "tool:acme ada t": 2,
        "tool:acme bob t": 1,
        "tool:other t": 1,
        "tool:other eve t": 1,
    }
    await admission.set_limit("llm", Resource.tool("t"), 9)
    assert await claim(user, 9) == []  # of two limits the lower one holds
    await set_card(user, 5, 0, 0)
    assert len(await claim(user, 9)) == 1


async def test_who_waits_for_calls_of_its_own_agent_is_owed_nothing(user: QueueUser) -> None:
    """Else a place at the tool would idle for as long as its agent's other call runs."""
    await set_card(user, 2, 0, 1)
    await submit(user, "tool:t", agent="ada")
    mine = await submit(user, "tool:t", agent="ada")
    [running] = await take(user, 1)
    await grow_old(user, mine)
    assert await claim(user) == []
    assert await user.redis.execute("EXISTS", user.keys.own("owed:llm")) == 0
    other = await submit(user, "tool:t", agent="bob")
    assert await claim(user) == [other]
    await user.finish(running)
    assert await claim(user) == [mine]


async def test_what_has_no_limit_is_owed_to_nobody(user: QueueUser) -> None:
    await submit(user, "lock:a", "lock:b")
    running = await take(user)
    first, second = await submit(user, "tool:t", "lock:a"), await submit(user, "tool:t", "lock:b")
    await grow_old(user, first, second)
    assert await claim(user, 2) == []
    assert await user.redis.execute("HLEN", user.keys.own("owed:llm")) == 2
    await user.finish(*running)
    assert set(await claim(user, 2)) == {first, second}


# A worker that knows better.


async def test_the_limit_of_its_card_holds_where_redis_did_not_know_it(user: QueueUser) -> None:
    for _ in range(3):
        await submit(user, "tool:t")
    leases = await take(user, 3)
    card = ToolCard(name="t", parallel=ParallelLimits(tool=1))
    taken = [
        await user.queue.take_needs(lease, (Need("tool", "t"),), card)
        for lease in (*leases, leases[2])
    ]
    assert taken == [False, False, True, True]
    suspensions = [Suspension(lease, None, 0.0, reason="needs") for lease in leases[:2]]
    nothing_more = ClaimRequest(0, LEASE_S)
    settled = await user.queue.suspend("worker", suspensions, nothing_more)
    assert settled.accepted == [True, True]
    assert await user.waiting() == [lease.job_id for lease in leases[:2]]
    assert await claim(user, 3) == []
    await user.queue.take_needs(leases[2], (Need("tool", "t"),), ToolCard(name="t"))
    assert len(await claim(user, 3)) == 2  # the card has no limit any more


async def test_what_its_caller_said_wrongly_is_free_at_once(user: QueueUser) -> None:
    await submit(user, "lock:w")
    [lease] = await take(user)
    other = await submit(user, "lock:w")
    assert await claim(user) == []
    assert await user.queue.take_needs(lease, (Need("tool", "t"),))
    assert await claim(user) == [other]


async def test_what_comes_back_goes_behind_those_that_have_waited_longer(user: QueueUser) -> None:
    ids = [await submit(user, "tool:t") for _ in range(4)]
    for age, job_id in enumerate(ids):
        await user.redis.execute("HSET", user.keys.job(job_id), "aios_submitted_ms", 1000 + age)
    await submit(user, "lock:w")
    leases = {lease.job_id: lease for lease in await take(user, 5)}
    for number in (3, 1, 0, 2):
        lease = leases[ids[number]]
        assert not await user.queue.take_needs(lease, (Need("lock", "w"),))
        back = [Suspension(lease, None, 0.0, reason="needs")]
        await user.queue.suspend("worker", back, ClaimRequest(0, LEASE_S))
    assert await user.waiting() == ids
