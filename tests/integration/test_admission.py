"""Needs where the model of the queues does not reach: owners, cores, many jobs, numbers, sweeps."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.syscall import MAX_NEEDS, Need, known_needs, new_id
from aios_broker.queues.admission import (
    MAX_BAR_S,
    Admission,
    NotAdmitted,
    Resource,
    ResourceRow,
    Shortage,
)
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import JobMetadata, Lease, SliceUse, Submission
from tests.examples import SAME_EACH_TIME
from tests.queue_user import DATA, LEASE_S, QueueUser, queue_user, submitted
from tests.waiting import wait_until_async

LOOKAHEAD = 64  # of lib.lua
MOST_OWED = 64  # of admission.lua
CORES = ("small", "large")


@pytest.fixture
def admission(user: QueueUser) -> Admission:
    return Admission(user.functions)


async def submit(
    user: QueueUser, *needs: str, agent: str = "ada", tenant: str = "default", program: str = "main"
) -> str:
    """Submit one job that needs this; return its id."""
    metadata = JobMetadata(agent, "llm.chat", program, tenant)
    job = Submission(new_id(), DATA, metadata, "me", known_needs(" ".join(needs)))
    await submitted(user.queue, [job])
    return job.job_id


async def claim(user: QueueUser, want: int = 1, *cores: str) -> list[str]:
    return [lease.job_id for lease in await take(user, want, *cores)]


async def take(user: QueueUser, want: int = 1, *cores: str) -> list[Lease]:
    return await user.queue.claim("worker", ClaimRequest(want, LEASE_S, cores))


async def slice_end(user: QueueUser, lease: Lease) -> str:
    [verdict] = await user.queue.slice_end(
        "worker", [SliceUse(lease, 0.1, 1, None)], ClaimRequest(0, LEASE_S)
    )
    return verdict


async def grow_old(user: QueueUser, *job_ids: str, by_ms: int = 10_000) -> None:
    for job_id in job_ids:
        await user.redis.execute("HINCRBY", user.keys.job(job_id), "aios_ready_ms", -by_ms)


async def serve(user: QueueUser, *cores: str) -> None:
    """Let cores of these names have workers; the first one takes what names none."""
    for core in cores:
        await user.serve(CoreCard(name=core, model=core, default=core == cores[0]))


# Whose is what.


async def test_a_lock_is_its_tenants_and_a_tool_everybodys(
    user: QueueUser, admission: Admission
) -> None:
    await admission.set_limit("llm", Resource.tool("search"), 1)
    ours = await submit(user, "lock:report")
    theirs = await submit(user, "lock:report", tenant="acme")
    await submit(user, "lock:report")
    with_tool = await submit(user, "tool:search")
    await submit(user, "tool:search", tenant="acme")

    assert await claim(user, 9) == [ours, theirs, with_tool]


async def test_a_program_that_is_needed_is_the_agents_own(
    user: QueueUser, admission: Admission
) -> None:
    """What a child does for its parent waits while the parent is not admitted."""
    epoch = await user.lead()
    parent = Subject.of_program("parent", "ada")
    assert await admission.bar("llm", epoch, [parent], 60.0)
    await submit(user, "program:parent", program="child")
    await submit(user, program="parent")
    of_bob = await submit(user, "program:parent", agent="bob")
    assert await claim(user, 9) == [of_bob]

    assert await admission.bar("llm", epoch, [], 60.0)
    assert len(await claim(user, 9)) == 2


async def test_a_bar_that_nobody_renews_is_over(user: QueueUser, admission: Admission) -> None:
    await admission.bar("llm", await user.lead(), [Subject.of_program("main", "ada")], 0.005)
    mine = await submit(user)
    assert await wait_until_async(lambda: claim(user)) == [mine]


async def test_a_program_has_as_many_places_as_its_limit(
    user: QueueUser, admission: Admission
) -> None:
    await admission.set_limit("llm", Resource.program("parent", "ada"), 2)
    for _ in range(3):
        await submit(user, "program:parent", program="child")
    assert len(await claim(user, 9)) == 2


async def test_a_need_that_this_release_does_not_know_is_not_served(user: QueueUser) -> None:
    strange, other = await submit(user), await submit(user)
    await user.redis.execute("HSET", user.keys.job(strange), "aios_needs", "gpu:big lock:w")
    assert await claim(user, 9) == [other]
    views = {view.job_id: view for view in await user.control.jobs("llm")}
    assert views[strange].needs == (Need("lock", "w"),)


async def test_the_queue_takes_no_more_needs_than_it_may(user: QueueUser) -> None:
    many = tuple(Need("tool", str(n)) for n in range(MAX_NEEDS + 1))
    with pytest.raises(InvalidSyscall, match="limit is"):
        await submitted(user.queue, [Submission(new_id(), DATA, JobMetadata("ada", "x"), "", many)])
    assert await user.waiting() == []


# Limits and holders.


async def test_limits_holders_and_debts_are_shown(user: QueueUser, admission: Admission) -> None:
    tool, lock = Resource.tool("t"), Resource.lock("w")
    await admission.set_limit("llm", tool, 3)
    first = await submit(user, "tool:t", "lock:w")
    await claim(user)
    second = await submit(user, "lock:w")
    await grow_old(user, second)
    assert await claim(user) == []

    rows = await admission.resources("llm")
    assert rows == [ResourceRow(lock, 1, (first,), second), ResourceRow(tool, 3, (first,))]
    assert [row.free for row in rows] == [0, 2]
    assert await admission.resources("tool") == []
    shortage = Shortage(lock, holders=1, limit=1, owed_to=None, held_by=(first,))
    assert await admission.barrier("llm", second) == shortage
    third = await submit(user, "lock:w")
    assert await admission.barrier("llm", third) == Shortage(lock, 1, 1, second, (first,))
    assert await admission.unset_limit("llm", tool)
    assert not await admission.unset_limit("llm", tool)
    assert (await admission.resources("llm"))[1].free is None


async def test_a_program_that_is_not_admitted_says_for_how_long(
    user: QueueUser, admission: Admission
) -> None:
    program = Subject.of_program("main", "ada")
    await admission.bar("llm", await user.lead(), [program], 60.0)
    found = await admission.barrier("llm", await submit(user))
    assert isinstance(found, NotAdmitted)
    assert found.program == program
    assert 50.0 < found.ends_in_s <= 60.0


async def test_what_cannot_be_limited_or_barred_is_refused(admission: Admission) -> None:
    with pytest.raises(InvalidConfig, match="one syscall at a time"):
        await admission.set_limit("llm", Resource.lock("w"), 2)
    with pytest.raises(InvalidConfig, match="limit of tool"):
        await admission.set_limit("llm", Resource.tool("t"), -1)
    with pytest.raises(InvalidConfig, match="is no program"):
        await admission.bar("llm", 1, [Subject.of_agent("ada")], 1.0)
    with pytest.raises(InvalidConfig, match="a bar of"):
        await admission.bar("llm", 1, [], MAX_BAR_S + 1.0)
    with pytest.raises(InvalidSyscall, match="names no tool"):
        Resource.tool("a b")


async def test_a_lowered_limit_lets_those_go_on_who_run(
    user: QueueUser, admission: Admission
) -> None:
    for _ in range(4):
        await submit(user, "tool:t")
    running = await take(user, 3)
    await admission.set_limit("llm", Resource.tool("t"), 2)
    await user.finish(running[0])
    assert await claim(user) == []
    await user.finish(running[1])
    assert len(await claim(user)) == 1


async def test_what_a_dead_worker_held_is_free_with_its_lease(
    user: QueueUser, admission: Admission
) -> None:
    dies = await submit(user, "lock:w")
    await user.queue.claim("gone", ClaimRequest(1, 0.001))
    other = await submit(user, "lock:w")
    assert await claim(user) == []  # its lease stands until it is taken back
    epoch = await user.lead()

    async def is_reclaimed() -> bool:
        return await user.order.reclaim(epoch) == 1

    await wait_until_async(is_reclaimed)  # as soon as the lease has run out
    assert await claim(user, 2) == [dies]
    assert await user.waiting() == [other]


async def test_notes_of_ended_leases_and_of_bars_that_are_over_are_swept(
    user: QueueUser, admission: Admission
) -> None:
    await submit(user, "lock:w", "tool:t")
    [lease] = await take(user)
    epoch = await user.lead()
    await admission.bar("llm", epoch, [Subject.of_program("p", "ada")], 60.0)
    await user.finish(lease)
    assert await user.redis.execute("ZCARD", user.keys.own("holders:llm")) == 1 + 3
    barred = user.keys.own("barred:llm")
    await user.redis.execute("ZADD", barred, 1, str(Subject.of_program("p", "ada")))

    await user.order.reconcile(epoch)

    assert await user.redis.execute("EXISTS", user.keys.own("holders:llm"), barred) == 0


# Debts.


async def test_two_that_take_turns_do_not_starve_one_that_needs_both(user: QueueUser) -> None:
    """While it is young it may be passed over; from then on nobody overtakes it."""
    running = {}
    for lock in ("a", "b"):
        await submit(user, f"lock:{lock}")
        [running[lock]] = await take(user)
    both = await submit(user, "lock:a", "lock:b")

    async def ends_and_another_comes(lock: str) -> list[str]:
        await submit(user, f"lock:{lock}")
        await user.finish(running[lock])
        leases = await take(user)
        for lease in leases:
            running[lock] = lease
        return [lease.job_id for lease in leases]

    for lock in "ababab":
        assert both not in await ends_and_another_comes(lock)
    await grow_old(user, both)
    assert await ends_and_another_comes("a") == []
    assert await ends_and_another_comes("b") == [both]


async def test_who_is_owed_is_lent_first_wherever_it_stands(user: QueueUser) -> None:
    holder = await submit(user, "lock:w")
    [lease] = await take(user)
    owed = await submit(user, "lock:w")
    await grow_old(user, owed)
    assert await claim(user) == []
    others = [await submit(user) for _ in range(3)]
    epoch = await user.lead()
    await user.order.reorder(epoch, [*others, owed])
    assert await claim(user) == [others[0]]

    await user.finish(lease)

    assert await claim(user) == [owed]
    assert await user.waiting() == others[1:]
    assert holder not in await user.waiting()


async def test_of_those_who_are_owed_the_first_goes_first(user: QueueUser) -> None:
    for lock in ("a", "b"):
        await submit(user, f"lock:{lock}")
    leases = await take(user, 2)
    late, early = await submit(user, "lock:a"), await submit(user, "lock:b")
    await grow_old(user, late)
    await grow_old(user, early, by_ms=20_000)
    assert await claim(user) == []
    await user.finish(*leases)
    assert await claim(user) == [early]
    assert await claim(user) == [late]


async def test_a_place_is_owed_to_one_at_a_time(user: QueueUser) -> None:
    await submit(user, "lock:w")
    [lease] = await take(user)
    first, second = await submit(user, "lock:w"), await submit(user, "lock:w")
    await grow_old(user, first, second)
    assert await claim(user) == []
    shortage = Shortage(Resource.lock("w"), 1, 1, owed_to=first, held_by=(lease.job_id,))
    assert await Admission(user.functions).barrier("llm", second) == shortage
    await user.finish(lease)
    assert await claim(user) == [first]


async def test_what_waits_for_a_core_is_left_alone_by_workers_of_others(user: QueueUser) -> None:
    """One in the module's own queue, as a stock producer's is whose core was read from its data."""
    job_id = await submit(user)
    await user.redis.execute("HSET", user.keys.job(job_id), "aios_needs", "core:large")
    await serve(user, "small", "large")
    assert await claim(user, 9, "small") == []
    assert await claim(user, 9, "large") == [job_id]


async def test_what_is_owed_waits_for_the_core_that_its_job_needs(user: QueueUser) -> None:
    """Other workers pass; where nobody serves the core any more, nothing is owed."""
    await serve(user, *CORES)
    await submit(user, "lock:w")
    [lease] = await take(user, 1, "small")
    owed = await submit(user, "lock:w", "core:large")
    await grow_old(user, owed)
    assert await claim(user, 1, "large") == []
    other = await submit(user, "lock:w", "core:small")
    await user.finish(lease)
    assert await claim(user, 2, "small") == []

    await user.queue.unregister("large")

    assert await claim(user, 2, "small") == [other]


async def test_a_core_that_it_does_not_serve_makes_nobody_owe_it(user: QueueUser) -> None:
    await serve(user, *CORES)
    old = await submit(user, "lock:w", "core:large")
    other = await submit(user, "lock:w", "core:small")
    await grow_old(user, old)
    assert await claim(user, 2, "small") == [other]


async def test_one_that_can_never_run_is_owed_nothing(user: QueueUser) -> None:
    """It would keep the lock from everybody, for a tool that nobody may use."""
    await Admission(user.functions).set_limit("llm", Resource.tool("t"), 0)
    never = await submit(user, "tool:t", "lock:w")
    other = await submit(user, "lock:w")
    await grow_old(user, never)
    assert await claim(user) == [other]


async def test_an_owner_over_its_quota_is_owed_nothing(user: QueueUser) -> None:
    await Quotas(user.functions).set("llm", QuotaRow(Subject.of_agent("bob"), max_running=0))
    await submit(user, "lock:w")
    [lease] = await take(user)
    barred = await submit(user, "lock:w", agent="bob")
    mine = await submit(user, "lock:w")
    await grow_old(user, barred)
    assert await claim(user) == []
    await user.finish(lease)
    assert await claim(user, 2) == [mine]


async def test_who_can_never_run_is_owed_nothing(user: QueueUser, admission: Admission) -> None:
    await admission.set_limit("llm", Resource.tool("gone"), 0)
    await submit(user, "lock:w")
    [lease] = await take(user)
    never = await submit(user, "lock:w", "tool:gone")
    other = await submit(user, "lock:w")
    await grow_old(user, never)
    assert await claim(user) == []
    await user.finish(lease)
    assert await claim(user, 2) == [other]


async def test_an_owner_that_has_used_up_its_quota_since_is_owed_nothing_more(
    user: QueueUser,
) -> None:
    await submit(user, "lock:w")
    [lease] = await take(user)
    owed = await submit(user, "lock:w", agent="bob")
    await grow_old(user, owed)
    assert await claim(user) == []
    assert owed.encode() in (await user.redis.execute("HVALS", user.keys.own("owed:llm")))[0]
    mine = await submit(user, "lock:w")
    await Quotas(user.functions).set("llm", QuotaRow(Subject.of_agent("bob"), max_running=0))
    await user.finish(lease)
    assert await claim(user, 2) == [mine]


async def test_who_has_left_and_waits_again_is_owed_nothing_any_more(user: QueueUser) -> None:
    await submit(user, "lock:w")
    [lease] = await take(user)
    owed = await submit(user, "lock:w")
    await grow_old(user, owed)
    assert await claim(user) == []
    await user.control.hold([owed], module="llm")
    other = await submit(user, "lock:w")
    await user.control.release([owed], module="llm")
    await user.finish(lease)
    assert await claim(user) == [other]


async def test_a_debt_that_is_paid_keeps_nobody_back_in_the_same_claim(
    user: QueueUser, admission: Admission
) -> None:
    await admission.set_limit("llm", Resource.tool("t"), 2)
    for _ in range(2):
        await submit(user, "tool:t")
    leases = await take(user, 2)
    owed, other = await submit(user, "tool:t"), await submit(user, "tool:t")
    await grow_old(user, owed)
    assert await claim(user) == []
    await user.finish(*leases)
    assert await claim(user, 2) == [owed, other]


async def test_so_many_are_owed_and_no_more(user: QueueUser) -> None:
    count = MOST_OWED + 6
    for number in range(count):
        await submit(user, f"lock:{number}")
    assert len(await claim(user, count)) == count
    waiting = [await submit(user, f"lock:{number}") for number in range(count)]
    await grow_old(user, *waiting)
    assert await claim(user, count) == []
    assert await user.redis.execute("HLEN", user.keys.own("owed:llm")) == MOST_OWED


async def test_a_slot_is_freed_for_who_needs_what_its_job_holds(user: QueueUser) -> None:
    """And for nobody whose resource another one holds."""
    await submit(user, "lock:a")
    await submit(user, "lock:b")
    first, second = await take(user, 2)
    mine = await submit(user, "lock:a")
    assert await slice_end(user, second) == "go"
    assert await slice_end(user, first) == "suspend"
    await user.suspend(first)
    assert await claim(user, 2) == [mine]


# The look-ahead.


@settings(
    max_examples=40,
    deadline=None,
    derandomize=SAME_EACH_TIME,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_claim_passes_over_what_is_barred_and_over_nothing_else(
    redis_url: str, data: st.DataObject
) -> None:
    """The first that may run among the first LOOKAHEAD of its core are lent, in their order."""
    kinds = st.sampled_from(["", "core:small", "core:large", "lock:a", "lock:b", "tool:t"])
    wants = st.lists(kinds, max_size=3, unique=True).map(
        lambda found: (
            [need for need in found if need and not need.startswith("core")]
            + [need for need in found if need.startswith("core")][:1]
        )
    )
    line = data.draw(st.lists(wants, max_size=90))
    want, limit = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 3))
    asyncio.run(compare(redis_url, line, want, limit))


async def compare(redis_url: str, line: list[list[str]], want: int, limit: int) -> None:
    async with queue_user(redis_url) as user:
        await user.redis.execute("FLUSHALL")
        await serve(user, *CORES)
        await Admission(user.functions).set_limit("llm", Resource.tool("t"), limit)
        jobs = [
            Submission(new_id(), DATA, JobMetadata("ada", "x"), "", known_needs(" ".join(n)))
            for n in line
        ]
        if jobs:
            await submitted(user.queue, jobs)
        expected = first_ones(line, want, {"tool:t": limit, "lock:a": 1, "lock:b": 1})
        assert await claim(user, want, "small") == [jobs[place].job_id for place in expected]


def first_ones(line: list[list[str]], want: int, free: dict[str, int]) -> list[int]:
    """Return the places of those that are lent: far behind only where there is none before."""
    chosen: list[int] = []
    seen = 0
    for place, needs in enumerate(line):
        if "core:large" in needs:
            continue  # it stands in another queue
        seen += 1
        if len(chosen) == want or (chosen and seen > want + LOOKAHEAD):
            break
        resources = [need for need in needs if not need.startswith("core")]
        if all(free[resource] > 0 for resource in resources):
            chosen.append(place)
            for resource in resources:
                free[resource] -= 1
    return chosen
