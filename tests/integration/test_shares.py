"""The slots of a state module are shared: no flood of one tenant or agent takes them all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_broker.contract.memory import MemoryAdd, MemoryContext, MemoryGet
from aios_broker.contract.names import Module
from aios_broker.contract.storage import StorageList, StorageOperate
from aios_broker.contract.syscall import Body, Need, Syscall, known_needs, new_id
from aios_broker.queues.admission import Admission, Resource, Shortage
from aios_broker.queues.records import JobMetadata, Lease, Submission, WorkerCard
from tests.examples import SAME_EACH_TIME
from tests.queue_user import DATA, QueueUser, queue_user, submitted

SLOTS = 8
OF_TENANT, OF_AGENT = 6, 4
MODEL = "model:any"


@pytest.fixture
async def storage(redis_url: str) -> AsyncIterator[QueueUser]:
    async with queue_user(redis_url, "storage") as user:
        await serve(user)
        yield user


async def serve(user: QueueUser, worker: str = "worker", slots: int = SLOTS) -> None:
    await user.queue.register(WorkerCard(worker, user.module, 1, "here", slots=slots))


async def submit(
    user: QueueUser, tenant: str, agent: str, *needs: str, times: int = 1
) -> list[str]:
    metadata = JobMetadata(agent, "storage.list", tenant=tenant)
    jobs = [
        Submission(new_id(), DATA, metadata, "me", known_needs(" ".join(needs)))
        for _ in range(times)
    ]
    await submitted(user.queue, jobs)
    return [job.job_id for job in jobs]


async def test_a_flood_leaves_places_for_other_agents_and_other_tenants(storage: QueueUser) -> None:
    flood = await submit(storage, "mallory", "m0", times=50)
    assert ids(await storage.claim(SLOTS)) == flood[:OF_AGENT]
    second = await submit(storage, "mallory", "m1", times=50)
    assert ids(await storage.claim(SLOTS)) == second[: OF_TENANT - OF_AGENT]
    other = await submit(storage, "victor", "v")
    assert ids(await storage.claim(SLOTS)) == other


async def test_who_waits_for_a_share_is_next_when_one_of_its_own_ends(storage: QueueUser) -> None:
    flood = await submit(storage, "mallory", "m0", times=20)
    leases = await storage.claim(SLOTS)
    assert await storage.claim(SLOTS) == []
    await storage.finish(leases[0], leases[1])
    assert ids(await storage.claim(SLOTS)) == flood[OF_AGENT : OF_AGENT + 2]


async def test_what_waits_for_a_model_takes_no_place_of_what_does_not(storage: QueueUser) -> None:
    waiting = await submit(storage, "mallory", "m0", MODEL, times=50)
    assert ids(await storage.claim(99)) == waiting[:OF_AGENT]
    quick = await submit(storage, "mallory", "m0", times=OF_AGENT)
    assert ids(await storage.claim(99)) == quick


async def test_why_it_waits_is_told(storage: QueueUser) -> None:
    await submit(storage, "mallory", "m0", times=OF_AGENT)
    await storage.claim(SLOTS)
    [job] = await submit(storage, "mallory", "m0")
    barrier = await Admission(storage.functions).barrier("storage", job)
    share = Resource("place", "", "mallory", "m0")
    assert isinstance(barrier, Shortage)
    assert barrier == Shortage(share, OF_AGENT, OF_AGENT, None, barrier.held_by)
    assert len(barrier.held_by) == OF_AGENT
    assert share.words == "one of the places that agent 'm0' of tenant 'mallory' may have at once"
    assert Resource.parse("model:acme").words.endswith(
        "where calls of tenant 'acme' wait for models"
    )


async def test_more_workers_are_more_places(storage: QueueUser) -> None:
    await serve(storage, "another")
    flood = await submit(storage, "mallory", "m0", times=20)
    assert ids(await storage.claim(99)) == flood[: 2 * OF_AGENT]


async def test_calls_of_tools_leave_places_for_other_agents_and_other_tenants(
    redis_url: str,
) -> None:
    async with queue_user(redis_url, "tool") as user:
        await serve(user)
        flood = await submit(user, "mallory", "m0", "tool:local/sleep", times=50)
        assert ids(await user.claim(SLOTS)) == flood[:OF_AGENT]
        second = await submit(user, "mallory", "m1", "tool:local/sleep", times=50)
        assert ids(await user.claim(SLOTS)) == second[: OF_TENANT - OF_AGENT]
        other = await submit(user, "victor", "v", "tool:local/add")
        assert ids(await user.claim(SLOTS)) == other


async def test_what_calls_no_tool_takes_no_share_of_the_tools(redis_url: str) -> None:
    async with queue_user(redis_url, "tool") as user:
        await serve(user)
        runs = await submit(user, "mallory", "m0", times=OF_AGENT)
        assert ids(await user.claim(SLOTS)) == runs
        calls = await submit(user, "mallory", "m0", "tool:local/add", times=OF_AGENT)
        assert ids(await user.claim(SLOTS)) == calls, "a run in a session waits for its own calls"


async def test_who_has_used_up_its_share_is_owed_no_lock(redis_url: str) -> None:
    async with queue_user(redis_url, "tool") as user:
        await serve(user)
        await submit(user, "mallory", "m0", "tool:local/sleep", times=OF_AGENT)
        assert len(await user.claim(SLOTS)) == OF_AGENT
        [late] = await submit(user, "mallory", "m0", "tool:local/sleep", "lock:a")
        await user.redis.execute("HINCRBY", user.keys.job(late), "aios_ready_ms", -6_000)
        assert await user.claim(SLOTS) == []
        other = await submit(user, "mallory", "m1", "tool:local/add", "lock:a")
        assert ids(await user.claim(SLOTS)) == other


@pytest.mark.parametrize("module", ["llm", "tool"])
async def test_other_modules_have_no_shares(redis_url: str, module: Module) -> None:
    async with queue_user(redis_url, module) as user:
        await serve(user)
        flood = await submit(user, "mallory", "m0", times=SLOTS)
        assert ids(await user.claim(SLOTS)) == flood


@pytest.mark.parametrize(
    ("body", "waits"),
    [
        (StorageOperate("tidy up"), True),
        (StorageList(), False),
        (MemoryAdd("x", evolve=True), True),
        (MemoryAdd("x"), False),
        (MemoryContext("x", core="small"), True),
        (MemoryContext("x"), False),
        (MemoryGet("0" * 32), False),
    ],
)
def test_a_syscall_says_whether_it_waits_for_a_model(body: Body, *, waits: bool) -> None:
    assert Syscall(new_id(), "ada", body).needs == ((Need("model", "any"),) if waits else ())


def ids(leases: list[Lease]) -> list[str]:
    return [lease.job_id for lease in leases]


JOBS = st.tuples(st.sampled_from("AB"), st.sampled_from("xy"), st.sampled_from(["", MODEL]))
STEPS = st.one_of(
    JOBS.map(lambda job: ("submit", job)),
    st.integers(1, SLOTS).map(lambda want: ("claim", want)),
    st.integers(0, 30).map(lambda which: ("finish", which)),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=SAME_EACH_TIME,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(STEPS, max_size=40))
def test_shares_are_kept_and_a_claim_leaves_nothing_that_it_could_lend(
    redis_url: str, steps: list[tuple[str, object]]
) -> None:
    asyncio.run(play(redis_url, steps))


async def play(redis_url: str, steps: list[tuple[str, object]]) -> None:
    async with queue_user(redis_url, "storage") as user:
        await user.redis.execute("FLUSHDB")
        await serve(user)
        waiting: dict[str, tuple[str, str, str]] = {}
        running: dict[str, tuple[Lease, tuple[str, str, str]]] = {}
        for step, what in steps:
            if step == "submit":
                assert isinstance(what, tuple)
                tenant, agent, need = what
                [job_id] = await submit(user, tenant, agent, *filter(None, [need]))
                waiting[job_id] = (tenant, agent, need)
            elif step == "claim":
                assert isinstance(what, int)
                leases = await user.claim(what)
                for lease in leases:
                    running[lease.job_id] = (lease, waiting.pop(lease.job_id))
                held = Counter(each for _, job in running.values() for each in shares(job))
                assert all(count <= most(share) for share, count in held.items())
                if len(leases) < what:
                    for job in waiting.values():
                        assert any(held[share] == most(share) for share in shares(job))
            elif running:
                assert isinstance(what, int)
                lease, _ = running.pop(sorted(running)[what % len(running)])
                assert await user.finish(lease) == [True]


def shares(job: tuple[str, str, str]) -> list[tuple[str, ...]]:
    tenant, agent, need = job
    return [(need, tenant), (need, tenant, agent)]


def most(share: tuple[str, ...]) -> int:
    return OF_TENANT if len(share) == 2 else OF_AGENT
