"""The run queue follows the policy that is in force, in short queues and in long ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.order import Order
from aios_broker.queues.records import SliceUse
from aios_broker.redis.connection import Answer, Argument
from aios_broker.scheduler import ordering
from aios_broker.scheduler.ordering import ModuleOrder
from aios_broker.scheduler.policy import policy_named
from aios_broker.scheduler.ranking import LeadershipLost
from tests.queue_user import QueueUser
from tests.waiting import wait_until_async


def module_order(user: QueueUser) -> ModuleOrder:
    return ModuleOrder(user.order, user.control, policy_named("rr"))


async def now_ms(user: QueueUser) -> int:
    seconds, micros = await user.redis.execute("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture(autouse=True)
def policies_are_read_at_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "POLICY_EVERY_S", 0.0)


async def test_priority_brings_the_least_nice_to_the_head(user: QueueUser) -> None:
    await user.publish("priority")
    nice, plain, urgent, also_plain = await user.submit(10, 0, -10, 0)
    queue, epoch = module_order(user), await user.lead()
    assert await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [urgent, plain, also_plain, nice]
    assert not await queue.tick(epoch, await now_ms(user))  # all is in order: nothing is sent


async def test_what_comes_later_finds_its_place(user: QueueUser) -> None:
    await user.publish("priority")
    [nice, plain] = await user.submit(10, 0)
    queue, epoch = module_order(user), await user.lead()
    await queue.tick(epoch, await now_ms(user))
    [urgent] = await user.submit(-10)
    assert await user.waiting() == [plain, nice, urgent]
    assert await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [urgent, plain, nice]


async def test_a_changed_nice_value_counts_at_the_next_tick(user: QueueUser) -> None:
    await user.publish("priority")
    first, second = await user.submit(0, 0)
    queue, epoch = module_order(user), await user.lead()
    await queue.tick(epoch, await now_ms(user))
    await user.control.nice([second], -5, module="llm")
    await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [second, first]


class Raced(Order):
    """Lets something else happen between the look at a queue and the change that it leads to."""

    meanwhile: Callable[[], Awaitable[object]] | None = None  # what happens, once

    async def _call(self, step: str, arguments: Sequence[Argument]) -> Answer:
        if step == "reorder" and (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            await meanwhile()
        return await super()._call(step, arguments)


@pytest.mark.parametrize("ranked_before", [False, True])
async def test_a_nice_value_that_changes_while_its_job_is_ranked_counts(
    user: QueueUser, *, ranked_before: bool
) -> None:
    await user.publish("priority")
    epoch = await user.lead()
    late, plain = await user.submit(0, 0)
    raced = Raced(user.functions, user.module, user.keys)
    queue = ModuleOrder(raced, user.control, policy_named("rr"))
    if ranked_before:
        await queue.tick(epoch, await now_ms(user))
        [late] = await user.submit(-10)  # at the tail: it changes the order, which is its moment

    # Given an operator who changes the value after the scheduler has read it
    async def renice() -> None:
        assert await user.control.nice([late, plain], 5, module="llm") == ["done", "done"]
        await user.control.nice([plain], -15, module="llm")

    raced.meanwhile = renice
    for _ in range(3):
        await queue.tick(epoch, await now_ms(user))
    assert (await user.waiting())[0] == plain
    assert (await user.waiting())[-1] == late


async def test_one_suspended_while_it_is_ranked_is_ranked_anew(user: QueueUser) -> None:
    await user.publish("priority")
    epoch = await user.lead()
    await user.submit(0)
    [lease] = await user.claim()
    submitted_ms = await now_ms(user)

    async def a_millisecond_on() -> bool:
        return await now_ms(user) > submitted_ms

    async def suspend() -> None:
        await wait_until_async(a_millisecond_on)
        await user.suspend(lease)

    raced = Raced(user.functions, user.module, user.keys)
    raced.meanwhile = suspend
    queue = ModuleOrder(raced, user.control, policy_named("rr"))
    await queue.tick(epoch, await now_ms(user))
    assert await user.order.scores([lease.job_id]) == [None]


async def test_a_suspended_job_returns_to_its_place(user: QueueUser) -> None:
    await user.publish("priority")
    urgent, plain = await user.submit(-10, 0)
    queue, epoch = module_order(user), await user.lead()
    await queue.tick(epoch, await now_ms(user))
    [lease] = await user.claim()
    assert lease.job_id == urgent
    await user.suspend(lease)
    assert await user.waiting() == [plain, urgent]
    await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [urgent, plain]


async def test_a_running_job_yields_to_a_lower_score_and_to_no_other(user: QueueUser) -> None:
    await user.publish("priority")
    await user.submit(0)
    [lease] = await user.claim()  # at once: nobody had ranked it
    queue, epoch = module_order(user), await user.lead()

    async def verdict() -> str:
        await queue.tick(epoch, await now_ms(user))
        [answer] = await user.queue.slice_end(
            "worker", [SliceUse(lease, 0.1, 1, None)], ClaimRequest(0, 30.0)
        )
        return answer

    await user.submit(5)
    assert await verdict() == "go"
    await user.submit(-5)
    assert await verdict() == "suspend"


@pytest.mark.parametrize("policy", ["fifo", "rr"])
async def test_leaving_priority_restores_the_order_once(user: QueueUser, policy: str) -> None:
    await user.publish("priority")
    submitted = []
    for nice in (10, 0, -10):  # one by one: at one time by one, they stand in submission order
        submitted += await user.submit(nice)
        before = await now_ms(user)
        while await now_ms(user) == before:
            pass
    queue, epoch = module_order(user), await user.lead()
    await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == submitted[::-1]

    await user.publish(policy)
    assert await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == submitted
    assert not await queue.tick(epoch, await now_ms(user))


async def test_a_policy_that_is_not_known_changes_nothing(
    user: QueueUser, caplog: pytest.LogCaptureFixture
) -> None:
    await user.publish("priority")
    nice, plain = await user.submit(10, 0)
    queue, epoch = module_order(user), await user.lead()
    await queue.tick(epoch, await now_ms(user))
    await user.redis.execute("HSET", user.keys.own("policy:llm"), "name", "lottery")
    [urgent] = await user.submit(-10)
    for _ in range(3):
        await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [urgent, plain, nice]
    assert sum("lottery" in record.message for record in caplog.records) == 1


async def test_an_epoch_that_is_over_changes_nothing(user: QueueUser) -> None:
    await user.publish("priority")
    waiting = await user.submit(10, 0, -10)
    old = await user.lead(lease_s=0.001)
    before = await now_ms(user)
    while await now_ms(user) < before + 2:
        pass
    new = await user.lead()
    assert new == old + 1
    with pytest.raises(LeadershipLost):
        await module_order(user).tick(old, await now_ms(user))
    assert await user.waiting() == waiting
    assert await user.redis.execute("EXISTS", user.keys.own("scores:llm")) == 0


async def test_a_long_queue_is_ranked_at_its_ends_each_tick_and_whole_now_and_then(
    user: QueueUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "WHOLE_QUEUE", 20)
    monkeypatch.setattr(ordering, "END", 5)
    monkeypatch.setattr(ordering, "SLACK", 1)
    await user.publish("priority")
    old = await user.submit(*[0] * 40)
    queue, epoch = module_order(user), await user.lead()
    await queue.tick(epoch, await now_ms(user))

    # Given arrivals at the tail: one that belongs to the head, others that belong behind
    [nice] = await user.submit(5)
    [urgent] = await user.submit(-5)
    [buried] = await user.submit(-6)
    filler = await user.submit(*[1] * 5)

    # When the ends are ranked, then the head takes what it sees of the tail, in place
    await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [*old, nice, urgent, buried, *filler]
    scores = await user.order.scores([*filler, buried])
    assert None not in scores[:5]  # seen and scored where they stand
    assert scores[5] is None  # between the ends: not looked at

    await user.claim(1)
    [last] = await user.submit(-7)
    await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [last, *old[1:], nice, urgent, buried, *filler]

    # When the whole queue is due, then everything is in order
    monkeypatch.setattr(queue._lists[0], "whole_due_s", 0.0)
    await queue.tick(epoch, await now_ms(user))
    assert await user.waiting() == [last, buried, urgent, *old[1:], *filler, nice]


async def test_reordering_many_jobs_loses_none(
    user: QueueUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "WHOLE_EVERY_S", 0.0)  # what a decision disturbs, the next
    monkeypatch.setattr(ordering, "WHOLE_SHARE", 1e9)  # sweep puts right
    await user.publish("priority")
    submitted = await user.submit(*[number % 40 - 20 for number in range(3_000)])
    queue, epoch = module_order(user), await user.lead()
    while await queue.tick(epoch, await now_ms(user)):  # a piece per tick
        pass
    waiting = await user.waiting()
    assert sorted(waiting) == sorted(submitted)
    nice_of = {job_id: number % 40 - 20 for number, job_id in enumerate(submitted)}
    nices = [nice_of[job_id] for job_id in waiting]
    assert nices == sorted(nices)
