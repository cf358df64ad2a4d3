"""Which core a syscall goes to, what waits where, and who takes it."""

import msgspec

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import QueueFull, UnknownCore
from aios_broker.queues.records import PolicyRow
from tests.queue_user import QueueUser
from tests.routing_scene import BIG, TINY, TWIN, dies, job_of, listed, submit, take

GONE_MS = 60_000


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
