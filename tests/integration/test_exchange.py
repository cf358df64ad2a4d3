"""Exchanging waiting jobs: a pair at a time, only where both stand where they were read."""

from __future__ import annotations

import pytest

from aios_broker.queues.order import Exchange
from aios_broker.scheduler import sweep as sweeps
from aios_broker.scheduler.policy import policy_named
from aios_broker.scheduler.ranking import LeadershipLost, Ranker
from aios_broker.scheduler.sweep import Sweep
from tests.queue_user import QueueUser

NOW_MS = 1


async def test_a_pair_changes_places(user: QueueUser) -> None:
    a, b, c, d = await user.submit(0, 0, 0, 0)
    assert await user.order.exchange(await user.lead(), [Exchange(0, a, 3, d)]) == (1, 0)
    assert await user.waiting() == [d, b, c, a]


async def test_a_head_that_moved_is_allowed_for(user: QueueUser) -> None:
    a, b, c, d, e = await user.submit(0, 0, 0, 0, 0)
    epoch = await user.lead()
    await user.claim(2)
    pairs = [Exchange(2, c, 4, e), Exchange(2, e, 3, d)]
    assert await user.order.exchange(epoch, pairs) == (2, 2)
    assert await user.waiting() == [d, e, c]
    assert {a, b}.isdisjoint(await user.waiting())


async def test_a_job_that_left_is_let_alone(user: QueueUser) -> None:
    a, b, c = await user.submit(0, 0, 0)
    epoch = await user.lead()
    await user.claim(1)
    assert await user.order.exchange(epoch, [Exchange(0, a, 2, c)]) == (0, 0)
    assert await user.waiting() == [b, c]


async def test_an_epoch_that_is_over_exchanges_nothing(user: QueueUser) -> None:
    a, b = await user.submit(0, 0)
    epoch = await user.lead()
    assert await user.order.exchange(epoch + 1, [Exchange(0, a, 1, b)]) is None
    assert await user.waiting() == [a, b]
    with pytest.raises(LeadershipLost):
        await Sweep(user.order, Ranker(user.order, policy_named("priority")), rescore=True).step(
            epoch + 1, NOW_MS
        )


async def test_a_sweep_reads_on_where_the_head_was_claimed_meanwhile(
    user: QueueUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "PIECE", 10)
    monkeypatch.setattr(sweeps, "OVERLAP", 5)
    submitted = await user.submit(*[number % 40 - 20 for number in range(60)])
    sweep, epoch = (
        Sweep(user.order, Ranker(user.order, policy_named("priority"))),
        await user.lead(),
    )
    claimed = 0
    while await sweep.step(epoch, NOW_MS):
        claimed += len(await user.claim(1))
    assert claimed >= 5
    assert sweep.changed
    waiting = await user.waiting()
    assert len(waiting) == len(submitted) - claimed
    assert set(waiting) < set(submitted)
    assert None not in await user.order.scores(waiting)  # all of it was read, the last one too
