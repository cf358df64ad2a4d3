"""What one agent asks of a state worker costs the others nothing: each of these stalled them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from aios_broker.access.requests import Decision
from aios_broker.comparing import BOUNDS
from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.job import encode_job
from aios_broker.contract.llm import LlmBody
from aios_broker.contract.memory import MemoryList, MemorySearch
from aios_broker.contract.reply import Reply, Result
from aios_broker.contract.storage import (
    Diff,
    Entries,
    StorageDiff,
    StorageList,
    StorageOperate,
    StorageWrite,
)
from aios_broker.contract.syscall import Body, Syscall, new_id
from aios_broker.places import Holder
from aios_broker.postgres.store import Store
from aios_broker.queues.records import JobMetadata, Submission
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.state_handler import CAPACITY, StateHandler
from aios_workers.runtime.registry import LoadedModule
from tests.caller import Caller, running_worker
from tests.queue_user import submitted
from tests.state_scene import AUDIT_KEY, StateScene, state_scene
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(180)  # a diff alone may take half a minute beside others

STALL_S = 5.0  # what others asked here takes ten and more, or never ends
TRIES = 20
SHORT_S = 0.3


class Silent:
    """A model that never answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def call(self, asked: Syscall, body: LlmBody, step: str) -> Result:
        self.asked += 1
        await asyncio.get_running_loop().create_future()
        raise AssertionError(f"{asked.id} {body} {step}")


@dataclass
class StorageWorker:
    """A storage worker, and agents of several tenants that ask it."""

    scene: StateScene
    caller: Caller
    model: Silent

    async def submit(self, tenant: str, agent: str, *bodies: Body) -> list[str]:
        syscalls = [Syscall(new_id(), agent, body, tenant=tenant) for body in bodies]
        box = self.caller._client
        await submitted(
            self.caller.queue("storage"),
            [
                Submission(
                    each.id,
                    encode_job(each),
                    JobMetadata(agent, each.kind, tenant=tenant),
                    box,
                    each.needs,
                )
                for each in syscalls
            ],
        )
        return [each.id for each in syscalls]

    async def ask(self, tenant: str, agent: str, body: Body) -> Reply:
        [job] = await self.submit(tenant, agent, body)
        return await self.caller.hear(job)

    async def longest_wait_s(self, tenant: str = "victor", agent: str = "v") -> float:
        """Return how long the slowest of some short calls took."""
        longest = 0.0
        for _ in range(TRIES):
            began_s = time.monotonic()
            assert isinstance((await self.ask(tenant, agent, StorageList())).unwrap(), Entries)
            longest = max(longest, time.monotonic() - began_s)
        return longest


@asynccontextmanager
async def storage_worker(
    redis_url: str, database_url: str, limit_s: float | None = None
) -> AsyncIterator[StorageWorker]:
    """Run a worker; `limit_s`: of the first try of each of its agents' transactions."""
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(state_scene(redis_url, database_url))
        model = Silent()
        services = replace(scene.services, calls=model)
        if limit_s is not None:
            store = Store(database_url, limit_s=limit_s, audit_key=AUDIT_KEY)
            stack.push_async_callback(store.aclose)
            services = replace(services, store=store)
        loaded = LoadedModule(lambda _port: StateHandler(services, "storage"))
        await stack.enter_async_context(running_worker(redis_url, "storage", loaded))
        caller = Caller(redis_url)
        stack.push_async_callback(caller.aclose)
        yield StorageWorker(scene, caller, model)


@pytest.fixture
async def worker(redis_url: str, database_url: str) -> AsyncIterator[StorageWorker]:
    async with storage_worker(redis_url, database_url) as opened:
        yield opened


def hostile(seed: int) -> str:
    """Return a text that keeps a diff busy."""
    draw = random.Random(seed)
    lines = [f"{number:x}\n" for number in range(140)]
    return "".join(draw.choice(lines) for _ in range(64 * 1024))


async def test_calls_that_wait_for_a_model_take_nobodys_place(worker: StorageWorker) -> None:
    for tenant in ("mallory", "mafia"):
        for number in range(2):
            operates = [StorageOperate("tidy up")] * CAPACITY
            await worker.submit(tenant, f"m{number}", *operates)
    await wait_until_async(lambda: worker.model.asked > CAPACITY)
    assert await worker.longest_wait_s() < STALL_S
    assert await worker.longest_wait_s("mallory", "m0") < STALL_S
    assert await worker.longest_wait_s("mafia", "m9") < STALL_S


@pytest.mark.timeout(120)
async def test_a_diff_that_takes_minutes_is_nobody_elses_matter(worker: StorageWorker) -> None:
    reply = await worker.ask("mallory", "m", StorageWrite("f", hostile(1)))
    assert reply.error is None
    overwrites = [StorageWrite("f", hostile(number)) for number in (2, 3)]
    asked = await worker.submit("mallory", "m", *overwrites)
    assert await worker.longest_wait_s() < STALL_S

    async def are_parked() -> bool:
        views = [await worker.caller.control.job(job) for job in asked]
        return all(view is not None and view.state == "parked" for view in views)

    # On a loaded machine each takes all of its time by the clock, one after the other.
    await wait_until_async(are_parked, len(overwrites) * BOUNDS.wall_s + 10.0)
    approval = await worker.scene.approval_of(asked[0])
    assert "differ in too much to be compared" in approval.diff


async def test_what_takes_longer_than_a_transaction_may_is_given_more_time(
    redis_url: str, database_url: str
) -> None:
    """Under load many words did: their write began anew until its deadline, and cost Postgres."""
    words = "".join(f"{number:x}\n" for number in range(170_000))
    async with storage_worker(redis_url, database_url, SHORT_S) as worker:
        reply = await worker.ask("acme", "ann", StorageWrite("words.txt", words))
        assert reply.error is None


async def test_who_waits_for_a_lock_of_its_own_keeps_no_connection_from_others(
    worker: StorageWorker,
) -> None:
    store = worker.scene.store
    await worker.ask("mallory", "m", StorageWrite("f", "x"))
    name = "aios.storage mallory/m"  # `namespace_lock`
    async with store.as_steward() as cursor:
        await cursor.execute(
            "SELECT count(pg_advisory_xact_lock(hashtextextended(%s, 0)))", (name,)
        )
        writes = [StorageWrite(f"g{number}", "x") for number in range(2 * CAPACITY)]
        await worker.submit("mallory", "m", *writes)
        await wait_until_async(lambda: store.places.waiting)
        assert await worker.longest_wait_s() < STALL_S
        assert await worker.longest_wait_s("mallory", "another") < STALL_S


async def test_a_diff_that_cannot_be_made_in_time_is_refused(scene: StateScene) -> None:
    await scene.ask("ann", StorageWrite("f", hostile(1)))
    with pytest.raises(NeedsApproval):
        await scene.ask("ann", StorageWrite("f", hostile(2)))
    syscall = scene.syscall("ann", StorageWrite("f", hostile(2)))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    await scene.decide(syscall.id, Decision("approved"))
    await scene.run(syscall)
    with pytest.raises(InvalidSyscall, match="too much to be compared within") as refused:
        await scene.ask("ann", StorageDiff("f", 1))
    assert refused.value.remedy
    same = await scene.ask("ann", StorageDiff("f", 2, 2))
    assert same == Diff("/f", 2, 2, "")


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (MemorySearch("word " * 200), MemorySearch("word")),
        (MemoryList(limit=1_000), MemoryList()),
        (MemoryList(metadata={"none": 1}), MemoryList(tags=("none",))),
    ],
    ids=["search", "list", "list by metadata"],
)
async def test_a_long_read_waits_for_its_tenants_last_one_and_nothing_else_does(
    redis_url: str, database_url: str, long: Body, short: Body
) -> None:
    async with state_scene(redis_url, database_url) as scene:
        turns = scene.services.long_reads
        async with turns.one(Holder("default", "bob")):
            waiting = asyncio.create_task(scene.ask("ann", long))
            await wait_until_async(lambda: turns.waiting == 1)
            await scene.ask("ann", short)
            await replace(scene, tenant="other").ask("ann", long)
            assert not waiting.done()
        await waiting
