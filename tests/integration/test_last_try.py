"""A job whose workers died again and again may be what killed them: its last try is alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aios_broker.queues.records import PolicyRow
from tests.queue_user import QueueUser, queue_user

MAX_LOSSES = 3


@pytest.fixture
async def user(redis_url: str) -> AsyncIterator[QueueUser]:
    async with queue_user(redis_url) as found:
        await found.functions.load()
        await found.control.set_policy("llm", PolicyRow(max_losses=MAX_LOSSES))
        yield found


async def lose_workers(user: QueueUser, epoch: int, times: int) -> None:
    """Let workers die, one after the other, each with the job at the head alone."""
    leases_key = user.keys.own("leases:llm")
    for _ in range(times):
        [lease] = await user.claim(1)
        assert not lease.alone
        await user.redis.execute("ZADD", leases_key, 1, f"{lease.job_id}:{lease.attempt}")
        assert await user.order.reclaim(epoch) == 1


async def test_what_is_lent_first_for_the_last_time_is_lent_alone(user: QueueUser) -> None:
    epoch = await user.lead()
    [suspect, *others] = await user.submit(0, 0, 0)
    await lose_workers(user, epoch, MAX_LOSSES - 1)
    assert await user.waiting() == [suspect, *others]

    [last] = await user.claim(4)

    assert (last.job_id, last.losses, last.alone) == (suspect, MAX_LOSSES - 1, True)
    together = await user.claim(4)
    assert [(lease.job_id, lease.alone) for lease in together] == [(i, False) for i in others]


async def test_what_stands_behind_others_is_left_for_a_claim_of_its_own(user: QueueUser) -> None:
    epoch = await user.lead()
    [suspect, first, second, last] = await user.submit(0, 0, 0, 0)
    await lose_workers(user, epoch, MAX_LOSSES - 1)
    await user.order.reorder(epoch, [first, second, suspect, last])

    claims = [[lease.job_id for lease in await user.claim(4)] for _ in range(4)]

    assert claims == [[first, second], [suspect], [last], []]


async def test_one_that_has_more_tries_left_is_lent_with_others(user: QueueUser) -> None:
    epoch = await user.lead()
    ids = await user.submit(0, 0, 0)
    await lose_workers(user, epoch, MAX_LOSSES - 2)

    leases = await user.claim(4)

    assert [lease.job_id for lease in leases] == ids
    assert [lease.losses for lease in leases] == [MAX_LOSSES - 2, 0, 0]
    assert not any(lease.alone for lease in leases)
