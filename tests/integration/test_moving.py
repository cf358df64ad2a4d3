"""What goes on at another core than the one it went to."""

import msgspec
import pytest

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import InvalidConfig, UnknownCore
from aios_broker.contract.reply import Chunk
from aios_broker.contract.syscall import new_id
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Lease, SliceUse, Suspension, WorkerCard
from aios_workers.runtime.runs import Leases
from tests.queue_user import DATA, LEASE_S, QueueUser
from tests.routing_scene import (
    BIG,
    TINY,
    TWIN,
    dies,
    give,
    job_of,
    journal,
    listed,
    lost,
    submit,
    take,
    waits_since,
)


async def test_what_a_dead_core_leaves_goes_on_at_another_that_its_name_leads_to(
    user: QueueUser,
) -> None:
    await user.serve(BIG, TWIN)
    await dies(user, "twin")
    ran, waits, named = await submit(user, "gpt-4o", "", "big")
    await user.serve(TWIN)
    [lease] = await user.claim(1, "big")
    await user.suspend(lease, snapshot=b"half of it")
    epoch = await user.lead()
    await dies(user, "big")

    assert await user.order.move(epoch) == (2, 0)

    assert sorted(await listed(user, "twin")) == sorted([ran, waits])
    assert await listed(user, "big") == [named]  # it names the core itself
    found = {lease.job_id: lease for lease in await user.claim(9, "twin")}
    assert found[ran].has_snapshot
    assert (await user.finish(*found.values())) == [True, True]
    box = await user.redis.execute("LRANGE", user.keys.reply("me"), 0, -1)
    assert len(box) == 2  # whoever waits hears it all the same


async def test_one_that_has_run_goes_only_where_its_snapshot_goes_on(user: QueueUser) -> None:
    other = CoreCard(name="other", model="llama", aliases=("gpt-4o-mini",))
    await user.serve(TINY)
    [ran] = await submit(user, "gpt-4o-mini")
    [lease] = await user.claim(1, "tiny")
    await user.suspend(lease, snapshot=b"half of it")
    [fresh] = await submit(user, "gpt-4o-mini")
    await user.serve(other)
    await dies(user, "tiny")
    assert await user.order.move(await user.lead()) == (1, 0)
    assert (await listed(user, "tiny"), await listed(user, "other")) == ([ran], [fresh])


async def test_one_that_lost_its_worker_before_its_first_token_goes_to_any_that_its_name_leads_to(
    user: QueueUser,
) -> None:
    """What was generated, or read by somebody, goes on where its snapshot does."""
    other = CoreCard(name="other", model="llama", aliases=("gpt-4o-mini",))
    await user.serve(TINY, slots=4)
    fresh, counted, read, kept = await submit(user, *["gpt-4o-mini"] * 4)
    leases = {lease.job_id: lease for lease in await user.claim(4, "tiny")}
    epoch, more = await user.lead(), ClaimRequest(0, LEASE_S, ("tiny",))
    for job_id, tokens, checkpoint in ((counted, 3, None), (kept, 0, b"half")):
        use = SliceUse(leases[job_id], 0.1, tokens, checkpoint)
        await user.queue.slice_end("tiny", [use], more)
    await user.queue.emit([(leases[read], Chunk(read, 0, "x"))])
    await user.serve(other, slots=4)
    await dies(user, "tiny")
    await lost(user, epoch)
    assert await user.order.move(epoch) == (1, 0)
    assert await listed(user, "other") == [fresh]
    assert sorted(await listed(user, "tiny")) == sorted([counted, read, kept])
    await user.serve(msgspec.structs.replace(TINY, name="same"), slots=4)
    assert await user.order.move(epoch) == (3, 0)


async def test_what_moves_stands_behind_those_that_wait_for_longer(user: QueueUser) -> None:
    await user.serve(BIG, TWIN, slots=1)
    ids = await submit(user, *["gpt-4o"] * 6)
    left, right = await listed(user, "big"), await listed(user, "twin")
    assert (len(left), len(right)) == (3, 3)
    await waits_since(user, *((job_id, 60 - place) for place, job_id in enumerate(ids)))
    await dies(user, "big")
    assert await user.order.move(await user.lead()) == (3, 0)
    assert await listed(user, "twin") == ids
    assert await journal(user, "move") == [(job_id, "big twin") for job_id in left]


async def test_what_moves_stands_where_its_score_says_if_it_has_one(user: QueueUser) -> None:
    await user.serve(BIG, TWIN, slots=1)
    ids = await submit(user, *["gpt-4o"] * 4)
    left, right = await listed(user, "big"), await listed(user, "twin")
    order = [left[1], right[0], left[0], right[1]]
    for score, job_id in enumerate(order):
        await user.redis.execute("ZADD", user.keys.own("scores:llm"), score, job_id)
    await waits_since(user, *((job_id, place) for place, job_id in enumerate(order)))
    await dies(user, "big")
    assert await user.order.move(await user.lead()) == (2, 0)
    assert await listed(user, "twin") == order
    assert set(order) == set(ids)


async def test_what_its_dead_worker_was_at_stays_ahead(user: QueueUser) -> None:
    await user.serve(BIG, slots=2)
    ids = await submit(user, *["gpt-4o"] * 3)
    await user.claim(2, "big")
    await user.serve(TWIN, slots=1)
    [older] = await submit(user, "qwen")
    await waits_since(user, (ids[2], 20), (older, 30))
    epoch = await user.lead()
    await dies(user, "big")
    await lost(user, epoch)
    ran = (await listed(user, "big"))[:2]
    assert sorted(ran) == sorted(ids[:2])
    assert await user.order.move(epoch) == (3, 0)
    assert await listed(user, "twin") == [*ran, older, ids[2]]


async def test_what_several_can_take_is_shared_out(user: QueueUser) -> None:
    await user.serve(BIG, slots=1)
    third = msgspec.structs.replace(TWIN, name="third")
    ids = await submit(user, *["gpt-4o"] * 8)
    await user.serve(TWIN, third, slots=2)
    await dies(user, "big")
    assert await user.order.move(await user.lead()) == (8, 0)
    assert (len(await listed(user, "twin")), len(await listed(user, "third"))) == (4, 4)
    moved = {*await listed(user, "twin"), *await listed(user, "third")}
    assert moved == set(ids)


async def test_a_dead_end_after_a_fallback_goes_on_along_the_chains(user: QueueUser) -> None:
    first = CoreCard(name="first", model="a", fallback=("second", "third"))
    second = CoreCard(name="second", model="b", fallback=("third",))
    third = CoreCard(name="third", model="c")
    await user.serve(first, second, third)
    named, [waits] = [(await submit(user, "first"))[0]], await submit(user, "second")
    assert await give(user, "first", "second") == named[0]
    epoch = await user.lead()
    await dies(user, "second")
    assert await user.order.move(epoch) == (1, 0)
    assert await listed(user, "third") == named
    assert await listed(user, "second") == [waits]  # nobody gave it away: its name is that core's
    await dies(user, "third")
    await user.serve(second)
    assert await user.order.move(epoch) == (1, 0)
    assert sorted(await listed(user, "second")) == sorted([waits, *named])
    await dies(user, "second")
    assert await user.order.move(epoch) == (0, 0)  # nobody lives but who gave it away
    await user.control.remove_core("second")
    assert await user.order.move(epoch) == (1, 1)
    assert await listed(user, "third") == named  # it waits for the last one of its chain


async def test_what_waited_in_the_modules_own_queue_falls_back_by_the_chain_of_who_took_it(
    user: QueueUser,
) -> None:
    [job_id] = await submit(user, "")
    await user.serve(CoreCard(name="first", model="a", fallback=("second", "third")))
    await user.serve(CoreCard(name="second", model="b"), CoreCard(name="third", model="c"))
    assert await give(user, "first", "second") == job_id
    await dies(user, "second")
    await dies(user, "first")
    assert await user.order.move(await user.lead()) == (1, 0)
    [lease] = await user.claim(1, "third")
    assert (lease.job_id, lease.tried) == (job_id, ("first",))


async def test_a_worker_that_was_silent_while_its_core_was_removed_registers_it_again(
    user: QueueUser,
) -> None:
    worker = WorkerCard("big", "llm", 1, "here", slots=2, cores=(BIG,))
    leases = Leases(user.queue, worker, LEASE_S)
    await user.queue.register(worker)
    await dies(user, "big")
    await user.control.remove_core("big")
    await leases.renew()
    [core] = await user.control.cores()
    assert (core.card, core.slots) == (BIG, 2)
    [job_id] = await submit(user, "big")
    assert await take(user, "big") == [job_id]


# What stock producers name.


async def stock_job(user: QueueUser, attempt_of: str) -> Lease:
    """Let a stock tool enqueue a job on `llm`, and a worker of this core take it."""
    job_id = new_id()
    fields = ("status", "queued", "data", DATA, "origin", "llm")
    await user.redis.execute("HSET", user.keys.job(job_id), *fields)
    await user.redis.execute("RPUSH", user.keys.queue("llm"), job_id)
    [lease] = await user.claim(1, attempt_of)
    assert (lease.job_id, lease.trusted) == (job_id, False)
    return lease


async def test_a_stock_job_goes_to_the_queue_of_the_core_that_it_names(user: QueueUser) -> None:
    await user.serve(BIG, TINY)
    lease = await stock_job(user, "big")
    with pytest.raises(UnknownCore) as caught:
        await user.queue.address(lease, "nobody", ("big",))
    assert "big, tiny" in str(caught.value.remedy)
    assert await user.queue.address(lease, "gpt-4o", ("big",))  # its own alias
    lease = await stock_job(user, "big")
    assert not await user.queue.address(lease, "gpt-4o-mini", ("big",))
    wip = user.keys.registry("wip", "llm.tiny")
    assert await user.redis.execute("ZCARD", wip) == 1
    await user.suspend(lease)
    assert await listed(user, "tiny") == [lease.job_id]
    epoch = await user.lead()
    assert await user.order.reconcile(epoch) == 0
    await dies(user, "tiny")
    assert await user.order.move(epoch) == (0, 0)  # it has a name, and that leads nowhere else
    await user.serve(TINY)
    assert await take(user, "tiny") == [lease.job_id]
    assert not await user.queue.address(lease, "big", ("big",))  # its lease is another one's


async def test_an_idle_core_takes_what_waits_for_an_equal_one(user: QueueUser) -> None:
    await user.serve(BIG, slots=1)
    await submit(user, "big")
    await user.claim(1, "big")
    waits = await submit(user, "gpt-4o", "big", "", "gpt-4o", "gpt-4o")
    epoch = await user.lead()
    assert await user.order.move(epoch) == (0, 0)
    await user.serve(TWIN, slots=2)
    assert await user.order.move(epoch) == (2, 0)
    assert await listed(user, "twin") == [waits[0], waits[2]]
    assert await listed(user, "big") == [waits[1], *waits[3:]]
    assert await user.order.move(epoch) == (0, 0)


async def test_a_removed_core_gets_nothing_and_what_waits_for_it_moves_or_ends(
    user: QueueUser,
) -> None:
    await user.serve(BIG, TWIN)
    with pytest.raises(InvalidConfig):
        await user.control.remove_core("big")
    with pytest.raises(UnknownCore):
        await user.control.remove_core("nobody")
    alias, named = await submit(user, "gpt-4o", "big")
    await dies(user, "big")
    await user.control.remove_core("big")
    [refusal] = await user.queue.submit([job_of("big")])
    assert isinstance(refusal, UnknownCore)
    epoch = await user.lead()
    assert await user.order.move(epoch) == (1, 1)
    assert await listed(user, "twin") == [alias]
    assert await user.control.live([named], module="llm") == [False]
    box = await user.redis.execute("LRANGE", user.keys.reply("me"), 0, -1)
    assert b"its core was removed" in box[0]
    await user.order.move(epoch)
    # What has failed there is kept for an hour, and swept with its queue's registry.
    assert await user.order.core_queues() == ["llm.big", "llm.twin"]
    await user.redis.execute("DEL", "rq:failed:llm.big")
    await user.order.move(epoch)
    assert await user.order.core_queues() == ["llm.twin"]
    assert b"rq:queue:llm.big" not in await user.redis.execute("SMEMBERS", user.keys.queues)


async def test_a_core_can_give_a_job_to_another_one(user: QueueUser) -> None:
    """A fallback: it goes on there, and never comes back to whoever gave it away."""
    await user.serve(BIG, TWIN)
    [job_id] = await submit(user, "big")
    [lease] = await user.claim(1, "big")
    away = Suspension(lease, None, 0.5, core="twin")
    settled = await user.queue.suspend("big", [away], ClaimRequest(0, LEASE_S, ("big",)))
    assert settled.accepted == [True]
    assert (await listed(user, "big"), await listed(user, "twin")) == ([], [job_id])
    await dies(user, "twin")
    assert await user.order.move(await user.lead()) == (0, 0)
    await user.serve(TWIN)
    [lease] = await user.claim(1, "twin")
    assert lease.tried == ("big",)
    nowhere = Suspension(lease, None, 0.5, core="nobody")
    await user.queue.suspend("twin", [nowhere], ClaimRequest(0, LEASE_S, ("twin",)))
    assert await listed(user, "twin") == [job_id]  # such a core is not known: it stays


async def test_a_long_queue_of_a_dead_core_is_moved_part_by_part(user: QueueUser) -> None:
    await user.serve(BIG)
    ids = await submit(user, *["gpt-4o", "big"] * 300)
    await user.serve(TWIN)
    await dies(user, "big")
    epoch, moved = await user.lead(), 0
    for _ in range(20):
        moved += (await user.order.move(epoch))[0]
    assert moved == 300
    assert await listed(user, "twin") == ids[::2]
    assert await listed(user, "big") == ids[1::2]
    assert await user.order.move(epoch - 1) == (0, 0)
