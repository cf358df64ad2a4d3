"""Round robin by tenant, agent, program and job on a real Redis, in short and long queues."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aios_broker.contract.syscall import new_id
from aios_broker.queues.order import Order
from aios_broker.queues.records import JobMetadata, Submission
from aios_broker.scheduler import turn_order
from aios_broker.scheduler.ordering import ModuleOrder
from aios_broker.scheduler.policy import policy_named
from aios_broker.scheduler.ranking import LeadershipLost
from tests.queue_user import DATA, QueueUser, submitted
from tests.waiting import wait_until_async

FLOOD = JobMetadata("ada", "llm.chat", "bulk", "acme")
OTHER = JobMetadata("eve", "llm.chat", "task", "umbrella")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits at all waits long enough."""
    monkeypatch.setattr(turn_order, "LEAST_WAIT_MS", 0)


async def send(user: QueueUser, metadata: JobMetadata, count: int = 1) -> list[str]:
    jobs = [Submission(new_id(), DATA, metadata, "me") for _ in range(count)]
    for first in range(0, count, 800):
        await submitted(user.queue, jobs[first : first + 800])
    return [job.job_id for job in jobs]


class Kernel:
    """A scheduler that is told when to look."""

    def __init__(self, user: QueueUser) -> None:
        self.user = user
        self.order = ModuleOrder(user.order, user.control, policy_named("rr"))
        self.epoch = 0

    async def begin(self) -> None:
        await self.user.publish("rr")
        self.epoch = await self.user.lead()
        await self.look()

    async def look(self, times: int = 12) -> bool:
        changed = False
        for _ in range(times):  # the first one sweeps, each reads a piece or two
            changed = await self.order.tick(self.epoch, 1_700_000_000_000)
        return changed

    async def serve(self, count: int, at_once: int = 1) -> list[str]:
        """Claim and end jobs, with a look of the scheduler before each claim."""
        ids: list[str] = []
        await self.look()
        while len(ids) < count:
            await self.look(1)
            leases = await self.user.claim(at_once)
            assert leases
            ids += [lease.job_id for lease in leases]
            await self.user.finish(*leases)
        return ids


@pytest.fixture
async def kernel(user: QueueUser) -> Kernel:
    made = Kernel(user)
    await made.begin()
    return made


async def test_another_tenants_only_job_goes_before_a_flood(
    user: QueueUser, kernel: Kernel
) -> None:
    flood = await send(user, FLOOD, 600)
    [alone] = await send(user, OTHER)
    await kernel.look()
    assert alone in (await user.waiting())[:2]
    assert (await user.waiting())[0] == flood[0]
    assert len(await user.waiting()) == 601


async def test_who_has_just_come_to_a_long_queue_has_a_turn_at_once(
    user: QueueUser, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(user, FLOOD, 3_000)
    await send(user, OTHER)
    await kernel.look(20)
    monkeypatch.setattr(turn_order, "LEAST_WAIT_MS", 60_000)  # nobody here waits for so long
    for _ in range(3):
        [mine] = await send(user, OTHER)
        await kernel.look(1)
        assert mine in (await user.waiting())[:4]
        leases = await user.claim(4)
        assert mine in {lease.job_id for lease in leases}
        await user.finish(*leases)


async def test_who_was_pushed_out_of_sight_between_look_and_change_has_its_turn_all_the_same(
    user: QueueUser, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(user, FLOOD, 3_000)
    await send(user, OTHER)
    await kernel.look(20)
    await user.finish(*await user.claim(4))
    put_first = Order.put_first

    async def flooded(
        order: Order, epoch: int, job_ids: Sequence[str], *, ends: int, middle: int
    ) -> list[str] | None:
        await send(user, FLOOD, 400)  # as many come while the scheduler decides
        return await put_first(order, epoch, job_ids, ends=ends, middle=middle)

    [mine] = await send(user, OTHER)
    await send(user, FLOOD, 50)
    with monkeypatch.context() as patched:
        patched.setattr(Order, "put_first", flooded)
        await kernel.look(1)
    assert mine not in (await user.waiting())[:100]
    await kernel.look(2)
    assert mine in (await user.waiting())[:3]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the ids whose owners the scheduler reads, as it does."""
    ids: list[str] = []
    owners = Order.owners

    async def noted(order: Order, job_ids: Sequence[str]) -> list[JobMetadata | None]:
        ids.extend(job_ids)
        return await owners(order, job_ids)

    monkeypatch.setattr(Order, "owners", noted)
    return ids


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at once is little, so that few jobs are many pieces."""
    for name, number in (("READ_AT_ONCE", 20), ("PIECE", 50), ("NEW_AT_ONCE", 200)):
        monkeypatch.setattr(turn_order, name, number)
    monkeypatch.setattr(turn_order, "OVERLAP", 4)


@pytest.mark.parametrize("depth", [1_600, 6_400])
async def test_who_comes_to_a_queue_that_was_one_programs_has_a_turn_at_once_however_long_it_is(
    user: QueueUser, kernel: Kernel, read: list[str], depth: int
) -> None:
    flood = await send(user, FLOOD, depth)
    await kernel.look(1)
    flood += await send(user, FLOOD, 100)
    [alone] = await send(user, OTHER)
    await kernel.look(1)
    assert (await user.waiting())[:2] == [flood[0], alone]
    assert len(read) < 600
    assert sorted(await user.waiting()) == sorted([*flood, alone])


async def test_what_stood_before_the_newcomers_is_taken_in_as_it_comes_to_the_head(
    user: QueueUser, kernel: Kernel, read: list[str]
) -> None:
    flood = await send(user, FLOOD, 600)
    await kernel.look(1)
    other = await send(user, OTHER, 500)
    more = await send(user, FLOOD, 50)
    ids = await kernel.serve(900, at_once=20)
    assert len(set(ids[:800]) & set(other)) == 400
    assert [each for each in ids if each not in set(other)] == [*flood, *more][: 900 - 450]
    assert [each for each in ids if each in set(other)] == other[:450]
    assert len(read) == len(set(read)), "a job's owner is read once"


async def test_a_job_that_came_back_to_the_head_stays_there_beside_what_is_not_read(
    user: QueueUser, kernel: Kernel
) -> None:
    await send(user, FLOOD, 600)
    await kernel.look(1)
    other = await send(user, OTHER, 3)
    await kernel.look(1)
    [first, second] = await user.claim(2, lease_s=0.001)
    assert second.job_id == other[0]
    await kernel.look(1)

    async def is_reclaimed() -> bool:
        await user.order.reclaim(kernel.epoch)
        return not await user.order.running()

    await wait_until_async(is_reclaimed)
    back = (await user.waiting())[:2]
    assert set(back) == {first.job_id, second.job_id}
    await kernel.look(1)
    assert (await user.waiting())[:2] == back


async def test_a_burst_is_taken_in_part_by_part_and_who_came_first_waits_for_no_later_part(
    user: QueueUser, kernel: Kernel, small: None, read: list[str]
) -> None:
    await send(user, FLOOD, 150)
    await send(user, OTHER)
    await kernel.look()
    read.clear()
    await send(user, FLOOD, 150)
    [mine] = await send(user, OTHER)
    await send(user, FLOOD, 900)
    await kernel.look(1)
    assert mine in (await user.waiting())[:4]
    assert len(read) <= 250


@pytest.mark.parametrize(("looks_before", "most_new"), [(0, 20_000), (1, 20_000), (0, 300)])
async def test_nobody_is_left_out_of_what_comes_while_the_scheduler_reads(
    user: QueueUser,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    small: None,
    looks_before: int,
    most_new: int,
) -> None:
    monkeypatch.setattr(turn_order, "MOST_NEW", most_new)
    await send(user, FLOOD, 500)
    await kernel.look(looks_before)
    mine = await send(user, OTHER)
    before_tail = Order.before_tail

    async def flooded(order: Order, offset: int, count: int) -> list[str]:
        await send(user, FLOOD, 70)
        mine.extend(await send(user, OTHER))
        await send(user, FLOOD, 70)
        return await before_tail(order, offset, count)

    with monkeypatch.context() as patched:
        patched.setattr(Order, "before_tail", flooded)
        await kernel.look(8)
    await kernel.look(40)
    ids = await kernel.serve(2 * len(mine), at_once=4)
    assert [each for each in ids if each in set(mine)] == mine


async def test_more_comes_while_a_queue_is_read_backwards_than_is_read_at_once(
    user: QueueUser, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    monkeypatch.setattr(turn_order, "MOST_NEW", 300)
    other = await send(user, OTHER)
    flood = await send(user, FLOOD, 500)
    await kernel.look(1)
    other += await send(user, OTHER)
    flood += await send(user, FLOOD, 270)
    assert await kernel.order.sweep(kernel.epoch, 1_700_000_000_000)
    await kernel.look(40)
    assert set(other) <= set((await user.waiting())[:4])
    ids = await kernel.serve(700, at_once=20)
    assert [each for each in ids if each not in other] == flood[:698]


async def test_the_last_one_of_a_program_that_was_alone_comes_back_behind_a_newcomer(
    user: QueueUser, kernel: Kernel
) -> None:
    flood = await send(user, FLOOD, 3)
    await kernel.look(1)
    await send(user, FLOOD, 200)
    await send(user, OTHER)
    await kernel.look(1)
    leases = await user.claim(8)
    [last] = [lease for lease in leases if lease.job_id == flood[-1]]
    await kernel.look(1)
    [mine] = await send(user, OTHER)
    await user.suspend(last)
    await kernel.look(2)
    assert mine in (await user.waiting())[:4]


@pytest.mark.parametrize("depth", [150, 700, 3_000])
@pytest.mark.parametrize("newcomers", [1, 120])
async def test_one_that_was_claimed_before_its_turn_comes_back_behind_newcomers(
    user: QueueUser, kernel: Kernel, depth: int, newcomers: int
) -> None:
    """More was claimed between two looks than the scheduler had put in order."""
    await send(user, FLOOD, depth // 2)
    await send(user, OTHER, depth // 2)
    await kernel.look(20)
    leases = await user.claim(100)
    mine = await send(user, JobMetadata("zoe", "llm.chat", "main", "late"), newcomers)
    await user.suspend(leases[-1])
    await kernel.look(2)
    assert mine[0] in (await user.waiting())[:4]


@pytest.mark.parametrize("depth", [60, 700, 3_000])
async def test_tenants_that_wait_are_served_alike(
    user: QueueUser, kernel: Kernel, depth: int
) -> None:
    flood = await send(user, FLOOD, depth)
    other = await send(user, OTHER, depth)
    await kernel.look()
    ids = await kernel.serve(40)
    assert abs(len(set(ids) & set(flood)) - len(set(ids) & set(other))) <= 1
    served = [each for each in ids if each in set(flood)]
    assert served == flood[: len(served)]  # a program's own jobs keep their order
    assert sorted(await user.waiting()) == sorted({*flood, *other} - {*ids})


async def test_batches_of_claims_are_shared_as_single_ones_are(
    user: QueueUser, kernel: Kernel
) -> None:
    flood = await send(user, FLOOD, 200)
    other = await send(user, OTHER, 200)
    ids = await kernel.serve(48, at_once=8)
    assert len(set(ids) & set(flood)) == len(set(ids) & set(other)) == 24


async def test_agents_and_programs_of_the_flooding_tenant_take_turns_too(
    user: QueueUser, kernel: Kernel
) -> None:
    await send(user, FLOOD, 300)
    [sibling] = await send(user, JobMetadata("bob", "llm.chat", "main", "acme"))
    [program] = await send(user, JobMetadata("ada", "llm.chat", "small", "acme"))
    await kernel.look()
    first = (await user.waiting())[:6]
    assert sibling in first
    assert program in first


async def test_an_agent_gains_nothing_by_many_programs(user: QueueUser, kernel: Kernel) -> None:
    for name in ("bulk", "more", "and more"):
        await send(user, JobMetadata("ada", "llm.chat", name.replace(" ", "-"), "acme"), 20)
    bobs = await send(user, JobMetadata("bob", "llm.chat", "bulk", "acme"), 20)
    ids = await kernel.serve(12)
    assert len(set(ids) & set(bobs)) == 6


async def test_a_suspended_job_comes_back_for_its_next_turn(
    user: QueueUser, kernel: Kernel
) -> None:
    [long] = await send(user, OTHER)
    [lease] = await user.claim()
    assert lease.job_id == long
    await send(user, FLOOD, 600)
    await kernel.look()
    await user.suspend(lease)
    await kernel.look()
    assert long in (await user.waiting())[:2]


async def test_what_is_one_programs_alone_is_not_even_read(user: QueueUser, kernel: Kernel) -> None:
    ids = await send(user, FLOOD, 50)  # before anybody has looked
    assert isinstance(await user.order.turns(8, 0), str)
    assert not await kernel.look()
    assert await user.waiting() == ids
    await send(user, OTHER)
    assert not isinstance(await user.order.turns(8, 0), str)


async def test_when_nothing_is_live_it_begins_anew(user: QueueUser) -> None:
    """Whether or not a scheduler looks in between."""
    await send(user, FLOOD)
    await send(user, OTHER)
    assert not isinstance(await user.order.turns(8, 0), str)
    await user.finish(*await user.claim(2))
    await send(user, FLOOD, 2)
    assert isinstance(await user.order.turns(8, 0), str)


async def test_a_burst_longer_than_a_piece_is_read_whole(user: QueueUser, kernel: Kernel) -> None:
    await send(user, OTHER, 2)
    await send(user, FLOOD, 2)
    await kernel.look()
    flood = await send(user, FLOOD, 1_200)
    other = await send(user, OTHER, 5)
    await kernel.look()
    head = (await user.waiting())[:14]
    assert len(set(other) & set(head)) == 5
    assert len(set(flood) & set(head)) <= 7


async def test_a_scheduler_that_takes_over_reads_who_waits(user: QueueUser, kernel: Kernel) -> None:
    await send(user, FLOOD, 700)
    [alone] = await send(user, OTHER)
    await user.redis.execute("DEL", user.keys.own("scheduler"))  # its lease has run out
    another = Kernel(user)
    another.epoch = (await user.order.lead("another", 30.0, seen_epoch=kernel.epoch)).epoch
    await another.look()
    assert alone in (await user.waiting())[:2]
    await send(user, JobMetadata("zoe", "llm.chat", "main", "late"))
    with pytest.raises(LeadershipLost):
        await kernel.look()


async def test_a_wide_chat_counts_as_its_answers(user: QueueUser, kernel: Kernel) -> None:
    wide = JobMetadata("ada", "llm.chat", "bulk", "acme", width=4)
    many = await send(user, wide, 20)
    other = await send(user, OTHER, 20)
    ids = await kernel.serve(15)
    assert len(set(ids) & set(other)) >= 11
    assert set(ids) & set(many)
