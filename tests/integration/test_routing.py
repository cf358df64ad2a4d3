"""Which core a syscall goes to, what waits where, and what goes on elsewhere."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import InvalidConfig, QueueFull, UnknownCore
from aios_broker.contract.syscall import known_needs, new_id
from aios_broker.ledger.journal import parse_entry
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import (
    JobMetadata,
    Lease,
    PolicyRow,
    SliceUse,
    Submission,
    Suspension,
    WorkerCard,
)
from aios_workers.runtime.leases import Leases
from tests.queue_user import DATA, LEASE_S, QueueUser, queue_user, submitted

BIG = CoreCard(name="big", model="qwen", aliases=("gpt-4o",), default=True)
TWIN = CoreCard(name="twin", model="qwen", aliases=("gpt-4o",))
TINY = CoreCard(name="tiny", model="smollm", aliases=("gpt-4o-mini",))
GONE_MS = 60_000
KEY = Keys().journal


@pytest.fixture
async def user(redis_url: str) -> AsyncIterator[QueueUser]:
    async with queue_user(redis_url) as user:
        yield user


def job_of(core: str = "", *, program: str = "main", client: str = "me") -> Submission:
    needs = known_needs(f"core:{core}" if core else "")
    return Submission(new_id(), DATA, JobMetadata("ada", "llm.chat", program), client, needs)


async def submit(user: QueueUser, *cores: str, program: str = "main") -> list[str]:
    jobs = [job_of(core, program=program) for core in cores]
    await submitted(user.queue, jobs)
    return [job.job_id for job in jobs]


async def listed(user: QueueUser, core: str = "") -> list[str]:
    key = user.keys.queue(f"llm.{core}" if core else "llm")
    return [job_id.decode() for job_id in await user.redis.execute("LRANGE", key, 0, -1)]


async def dies(user: QueueUser, core: str) -> None:
    """Let the workers of a core be silent for longer than they may."""
    for field in await user.redis.execute("HKEYS", user.keys.own("core_workers")):
        if field.decode().split()[0] == core:
            await user.redis.execute("HSET", user.keys.own("core_workers"), field, "1 2")


async def lost(user: QueueUser, epoch: int) -> None:
    """Let the leases of all that runs be over, and be taken back."""
    leases = await user.redis.execute("ZRANGE", user.keys.own("leases:llm"), 0, -1)
    for member in leases:
        await user.redis.execute("ZADD", user.keys.own("leases:llm"), 1, member)
    assert await user.order.reclaim(epoch) == len(leases)


async def give(user: QueueUser, giver: str, to: str) -> str:
    """Let a core give away what it takes next, as a fallback does; return its id."""
    [lease] = await user.claim(1, giver)
    away = Suspension(lease, None, 0.5, core=to)
    settled = await user.queue.suspend(giver, [away], ClaimRequest(0, LEASE_S, (giver,)))
    assert settled.accepted == [True]
    return lease.job_id


async def waits_since(user: QueueUser, *ages_s: tuple[str, int]) -> None:
    """Let jobs have waited for so long already."""
    for job_id, age_s in ages_s:
        await user.redis.execute("HINCRBY", user.keys.job(job_id), "aios_ready_ms", -1000 * age_s)


async def journal(user: QueueUser, event: str) -> list[tuple[str, str]]:
    """Return the id and the detail of each transition of a kind."""
    entries = [parse_entry(entry) for entry in await user.redis.execute("XRANGE", KEY, "-", "+")]
    lines = [line for entry in entries if entry is not None for line in entry.lines()]
    return [(job_id, detail) for name, job_id, _, _, detail in lines if name == event]


async def take(user: QueueUser, *cores: str, want: int = 1) -> list[str]:
    return [lease.job_id for lease in await user.claim(want, *cores)]


# Where names lead.


async def test_a_name_an_alias_and_a_model_lead_to_their_core(user: QueueUser) -> None:
    await user.serve(BIG, TINY)
    ids = await submit(user, "tiny", "gpt-4o-mini", "smollm", "big", "")
    assert await listed(user, "tiny") == ids[:3]
    assert await listed(user, "big") == ids[3:]  # what names none goes to the default
    assert await listed(user) == []
    assert await take(user, "big", want=9) == ids[3:]
    assert await take(user, "tiny", want=9) == ids[:3]


async def test_a_name_that_is_nobodys_is_refused_and_those_that_are_known_are_named(
    user: QueueUser,
) -> None:
    await user.serve(BIG, TINY)
    [refusal] = await user.queue.submit([job_of("nobody")])
    assert isinstance(refusal, UnknownCore)
    assert refusal.remedy is not None
    assert "big, tiny" in refusal.remedy
    assert not await user.redis.execute("EXISTS", user.keys.own("live:llm"))


async def test_without_cores_what_names_none_waits_in_the_modules_own_queue(
    user: QueueUser,
) -> None:
    ids = await submit(user, "")
    assert await listed(user) == ids
    await user.serve(TINY)
    assert await take(user, "tiny") == ids


async def test_without_a_default_the_only_one_else_the_least_loaded_takes_what_names_none(
    user: QueueUser,
) -> None:
    await user.serve(TINY)
    assert await submit(user, "") == await listed(user, "tiny")
    await user.serve(CoreCard(name="other", model="other"), slots=2)
    await submit(user, "", "", "")
    assert (len(await listed(user, "tiny")), len(await listed(user, "other"))) == (2, 2)


async def test_of_several_the_one_with_the_least_to_do_for_each_slot_takes_it(
    user: QueueUser,
) -> None:
    await user.serve(BIG, slots=4)
    await user.serve(TWIN, slots=2)
    await submit(user, *["gpt-4o"] * 9)
    assert (len(await listed(user, "big")), len(await listed(user, "twin"))) == (6, 3)
    await user.claim(2, "twin")  # what runs counts, too
    await submit(user, *["gpt-4o"] * 3)
    assert (len(await listed(user, "big")), len(await listed(user, "twin"))) == (8, 2)


async def test_one_without_a_worker_gets_nothing_while_another_lives(user: QueueUser) -> None:
    await user.serve(BIG, TWIN)
    await dies(user, "big")
    ids = await submit(user, "", "gpt-4o", "qwen")
    assert await listed(user, "twin") == ids
    [named] = await submit(user, "big")
    assert await listed(user, "big") == [named]  # it waits


async def test_a_program_stays_where_its_last_call_was_read_unless_that_core_is_busy(
    user: QueueUser,
) -> None:
    keeps = [msgspec.structs.replace(card, keeps_kv=True) for card in (BIG, TWIN)]
    await user.serve(*keeps, slots=2)
    await submit(user, "gpt-4o", program="a")
    await submit(user, "gpt-4o", program="b")
    assert (len(await listed(user, "big")), len(await listed(user, "twin"))) == (1, 1)
    await submit(user, *["gpt-4o"] * 2, program="b")
    assert len(await listed(user, "twin")) == 3
    await submit(user, *["gpt-4o"] * 4, program="b")
    assert (len(await listed(user, "big")), len(await listed(user, "twin"))) == (4, 4)


async def test_of_two_defaults_the_living_one_takes_what_names_none(user: QueueUser) -> None:
    """The other is a card that nobody took away."""
    await user.serve(BIG, msgspec.structs.replace(TINY, default=True))
    await dies(user, "big")
    ids = await submit(user, "")
    assert await listed(user, "tiny") == ids


# What is refused, and what waits.


async def test_a_known_core_without_a_worker_lets_wait_or_refuses_as_the_policy_says(
    user: QueueUser,
) -> None:
    await user.serve(TINY)
    await dies(user, "tiny")
    ids = await submit(user, "tiny", "")
    assert await listed(user, "tiny") == ids
    await user.control.set_policy("llm", PolicyRow(unserved_core="refuse"))
    for refusal in await user.queue.submit([job_of("gpt-4o-mini"), job_of()]):
        assert isinstance(refusal, UnknownCore)
        assert "no worker serves the core 'tiny'" in str(refusal)
    await user.serve(TINY)
    await submit(user, "gpt-4o-mini", "")


async def test_the_limit_of_waiting_syscalls_is_the_modules(user: QueueUser) -> None:
    await user.serve(BIG, TINY)
    await user.control.set_policy("llm", PolicyRow(max_waiting=3))
    await submit(user, "big", "tiny", "")
    assert [type(each) for each in await user.queue.submit([job_of("tiny")])] == [QueueFull]


async def test_the_cores_tell_who_serves_them_and_what_waits(user: QueueUser) -> None:
    await user.serve(BIG, TINY, slots=3)
    await submit(user, "big", "big", "tiny")
    await user.claim(1, "big")
    await dies(user, "tiny")
    big, tiny = await user.control.cores()
    assert (big.card, big.slots, big.waiting, big.running) == (BIG, 3, 1, 1)
    assert (tiny.card, tiny.slots, tiny.waiting, tiny.running) == (TINY, None, 1, 0)
    assert 0 <= tiny.silent_s < GONE_MS
    queue = await user.control.queue("llm")
    assert (queue.waiting, queue.running) == (2, 1)


# Who takes what.


async def test_a_claim_takes_from_its_own_core_and_from_nobody_elses(user: QueueUser) -> None:
    await user.serve(BIG, TINY)
    mine, theirs = await submit(user, "tiny", "big")
    assert await take(user, "tiny", want=9) == [mine]
    assert await listed(user, "big") == [theirs]
    assert await take(user, want=9) == []  # a worker without a core takes what has none


async def test_neither_the_own_queue_nor_the_modules_starves(user: QueueUser) -> None:
    first, third = await submit(user, "", "")
    await user.serve(TINY)
    second, fourth = await submit(user, "tiny", "tiny")
    for age_s, job_id in enumerate((fourth, third, second, first)):
        await user.redis.execute("HINCRBY", user.keys.job(job_id), "aios_ready_ms", -1000 * age_s)
    order = [await take(user, "tiny") for _ in range(4)]
    assert order == [[first], [second], [third], [fourth]]


async def test_a_job_that_a_stock_tool_pushed_into_a_foreign_queue_does_not_run_there(
    user: QueueUser,
) -> None:
    """Its record says whose it is: it is in one queue, its own."""
    await user.serve(BIG, TINY)
    [job_id] = await submit(user, "")
    await user.redis.execute("RPUSH", user.keys.queue("llm.tiny"), job_id)
    assert await take(user, "tiny") == []
    await user.redis.execute("RPUSH", user.keys.queue("llm.tiny"), job_id)
    await user.order.reconcile(await user.lead())
    assert (await listed(user, "tiny"), await listed(user, "big")) == ([], [job_id])
    assert await take(user, "big") == [job_id]


async def test_rqs_registries_are_those_of_its_queue(user: QueueUser) -> None:
    await user.serve(TINY)
    [job_id] = await submit(user, "tiny")
    [lease] = await user.claim(1, "tiny")
    wip = user.keys.registry("wip", "llm.tiny")
    assert await user.redis.execute("ZRANGE", wip, 0, -1) == [f"{job_id}:1".encode()]
    await user.suspend(lease)
    assert not await user.redis.execute("EXISTS", wip)
    assert await listed(user, "tiny") == [job_id]
    await user.control.hold([job_id], module="llm")
    deferred = user.keys.registry("deferred", "llm.tiny")
    assert await user.redis.execute("ZRANGE", deferred, 0, -1) == [job_id.encode()]
    await user.control.release([job_id], module="llm")
    [lease] = await user.claim(1, "tiny")
    await user.finish(lease)
    finished = user.keys.registry("finished", "llm.tiny")
    assert await user.redis.execute("ZRANGE", finished, 0, -1) == [job_id.encode()]
    assert not await user.redis.execute("KEYS", "*:wip:*")


# What goes on elsewhere.


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
    await user.queue.emit([(leases[read], b"{}")])
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
