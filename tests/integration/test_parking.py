"""Parked syscalls in a whole kernel: they hold no slot, and go on when a person has decided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from aios_broker.access.deciders import Decider
from aios_broker.access.requests import Decision, decide, list_approvals
from aios_broker.contract.errors import ApprovalDenied, Cancelled, DeadlineExceeded
from aios_broker.contract.names import Module
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.storage import (
    Content,
    Entry,
    StorageAppend,
    StorageDelete,
    StorageRead,
    StorageWrite,
)
from aios_broker.contract.syscall import Body, Syscall, ToolEcho
from aios_broker.retry import periodic_task
from aios_workers.approvals.irreversible import Irreversible, Takings
from aios_workers.approvals.service import ApprovalSweep, NeedsApproval
from aios_workers.modules.services import Services
from aios_workers.modules.state_handler import StateHandler
from aios_workers.runtime.executor import Done, Outcome
from aios_workers.runtime.registry import LoadedModule
from aios_workers.runtime.runs import Run
from tests.caller import Caller, running_worker
from tests.scheduler_scene import scheduler
from tests.state_scene import StateScene, state_scene
from tests.waiting import wait_until_async

STORAGE: Module = "storage"
ONE = 1  # slot


class OneSlot(StateHandler):
    """The storage module with a single slot."""

    capacity = ONE


class Shouter:
    """A handler of another module: what it does is nowhere in Postgres, and cannot be unsaid."""

    capacity = ONE
    cores = ()

    def __init__(self, services: Services) -> None:
        self._services = services
        self.said: list[str] = []

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        store, approvals = self._services.store, self._services.approvals
        agent = await store.vouched(syscall.agent, syscall.tenant)
        body = await approvals.body_of(agent, syscall) if run.lease.decided else syscall.body
        assert isinstance(body, ToolEcho)
        try:
            async with store.as_agent(agent) as cursor:
                rules = await approvals.rules(cursor, agent)
                takings = Takings((Irreversible("delete", f"shout {body.text}", ()),), rules)
                await approvals.check(cursor, agent, syscall, body, takings)
        except NeedsApproval as needs:
            return await approvals.ask(needs)
        self.said.append(body.text)
        return Done(EchoResult(body.text))

    async def close(self) -> None:
        pass


@asynccontextmanager
async def kernel(redis_url: str, database_url: str) -> AsyncIterator[tuple[StateScene, Caller]]:
    """Yield a scheduler, a storage worker with one slot, the sweep, and a caller."""
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(state_scene(redis_url, database_url))
        services = scene.services
        handler = OneSlot(services, STORAGE)
        await stack.enter_async_context(scheduler(redis_url))
        await stack.enter_async_context(
            running_worker(redis_url, STORAGE, LoadedModule(lambda _port: handler))
        )
        sweep = ApprovalSweep(services.store, services.functions, services.keys)

        async def often() -> float:
            await sweep.sweep()
            return 0.05

        await stack.enter_async_context(periodic_task("approvals", often, "approvals wait"))
        caller = Caller(redis_url)
        stack.push_async_callback(caller.aclose)
        yield scene, caller


async def parked(caller: Caller, scene: StateScene, path: str, deadline_s: float = 60.0) -> str:
    """Write a file and ask to delete it; return the id of what is parked then."""
    [written] = await caller.submit(StorageWrite(path, "content"))
    assert isinstance((await caller.hear(written)).unwrap(), Entry)
    return await parked_call(caller, StorageDelete(path), deadline_s)


async def parked_call(caller: Caller, body: Body, deadline_s: float = 60.0) -> str:
    """Submit what a person has to decide about; return its id when it is parked."""
    [job] = await caller.submit(body, deadline_s=deadline_s)

    async def is_parked() -> bool:
        view = await caller.control.job(job)
        return view is not None and view.state == "parked"

    await wait_until_async(is_parked)
    return job


async def decided(scene: StateScene, job: str, decision: Decision) -> None:
    """Decide in Postgres alone: the sweep has to find it."""
    async with scene.store.as_steward() as cursor:
        listed = await list_approvals(cursor, None, 1_000)
        [approval] = [one for one in listed.approvals if one.syscall_id == job]
        await decide(cursor, approval.id, Decider("operator:test"), decision)


async def test_it_holds_no_slot_and_runs_once_when_it_is_approved(
    redis_url: str, database_url: str
) -> None:
    async with kernel(redis_url, database_url) as (scene, caller):
        job = await parked(caller, scene, "a.txt")
        [read] = await caller.submit(StorageRead("a.txt"))  # by the only slot
        assert isinstance((await caller.hear(read)).unwrap(), Content)
        queue = await caller.control.queue(STORAGE)
        assert (queue.running, queue.parked) == (0, 1)
        await decided(scene, job, Decision("approved"))
        assert (await caller.hear(job)).unwrap().path == "/a.txt"  # type: ignore[union-attr]
        queue = await caller.control.queue(STORAGE)
        assert (queue.running, queue.parked, queue.waiting) == (0, 0, 0)
        used = await scene.rows("SELECT state FROM approval WHERE job_id = %s", job)
        assert [row.state for row in used] == ["used"]


async def test_a_handler_of_any_module_asks_and_runs_what_a_person_made_of_it(
    redis_url: str, database_url: str
) -> None:
    async with kernel(redis_url, database_url) as (scene, caller):
        shouter = Shouter(scene.services)
        async with running_worker(redis_url, "tool", LoadedModule(lambda _port: shouter)):
            job = await parked_call(caller, ToolEcho("loud"))
            assert shouter.said == []
            await decided(scene, job, Decision("approved", arguments={"text": "soft"}))
            assert (await caller.hear(job)).unwrap() == EchoResult("soft")
        assert shouter.said == ["soft"]


async def test_what_has_changed_meanwhile_is_asked_for_anew_and_then_runs(
    redis_url: str, database_url: str
) -> None:
    async with kernel(redis_url, database_url) as (scene, caller):
        job = await parked(caller, scene, "a.txt")
        first = await scene.approval_of(job)
        [appended] = await caller.submit(StorageAppend("a.txt", ", and more"))
        (await caller.hear(appended)).unwrap()
        await decided(scene, job, Decision("approved"))

        async def is_asked_anew() -> bool:
            approval = await scene.approval_of(job)
            return (approval.state, approval.id != first.id) == ("waiting", True)

        await wait_until_async(is_asked_anew)
        [read] = await caller.submit(StorageRead("a.txt"))
        assert isinstance((await caller.hear(read)).unwrap(), Content)
        await decided(scene, job, Decision("approved"))
        assert (await caller.hear(job)).unwrap().path == "/a.txt"  # type: ignore[union-attr]


async def test_a_denial_is_its_answer(redis_url: str, database_url: str) -> None:
    async with kernel(redis_url, database_url) as (scene, caller):
        job = await parked(caller, scene, "a.txt")
        await decided(scene, job, Decision("denied", "not now"))
        with pytest.raises(ApprovalDenied, match="not now"):
            (await caller.hear(job)).unwrap()


async def test_its_deadline_ends_it_and_the_request_is_closed(
    redis_url: str, database_url: str
) -> None:
    async with kernel(redis_url, database_url) as (scene, caller):
        job = await parked(caller, scene, "a.txt", deadline_s=1.0)
        with pytest.raises(DeadlineExceeded):
            (await caller.hear(job)).unwrap()

        async def is_closed() -> bool:
            rows = await scene.rows("SELECT state FROM approval WHERE job_id = %s", job)
            return [row.state for row in rows] == ["expired"]

        await wait_until_async(is_closed)
        [read] = await caller.submit(StorageRead("a.txt"))
        assert isinstance((await caller.hear(read)).unwrap(), Content)


async def test_the_request_of_a_cancelled_one_is_closed(redis_url: str, database_url: str) -> None:
    async with kernel(redis_url, database_url) as (scene, caller):
        job = await parked(caller, scene, "a.txt")
        error = Cancelled("by the test", syscall_id=job)
        assert await caller.control.cancel([job], module=STORAGE, error=error) == ["done"]

        async def is_closed() -> bool:
            rows = await scene.rows("SELECT state FROM approval WHERE job_id = %s", job)
            return [row.state for row in rows] == ["expired"]

        await wait_until_async(is_closed)


async def test_decisions_that_come_at_once_run_all_of_many(
    redis_url: str, database_url: str
) -> None:
    async with kernel(redis_url, database_url) as (scene, caller):
        jobs = [await parked(caller, scene, f"{number}.txt") for number in range(8)]
        await asyncio.gather(
            *(
                decided(scene, job, Decision("approved" if number % 2 else "denied"))
                for number, job in enumerate(jobs)
            )
        )
        replies = await caller.hear_all(jobs)
        assert [reply.error is None for reply in replies] == [bool(n % 2) for n in range(8)]
