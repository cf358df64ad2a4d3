"""The worker of a session is killed in the middle of a commit: what its agent hears is true.

Either the files that were written, from whichever worker, or that nothing was written: and then
nothing is, later either. Tool workers are processes of their own; storage is held by the test.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aios_broker.access.requests import Decision, list_approvals
from aios_broker.contract.errors import ApprovalDenied, NotFound, SessionLost, WorkerLost
from aios_broker.contract.exec import (
    ExecChanges,
    ExecCommit,
    ExecList,
    ExecOpen,
    ExecRun,
    ExecSession,
    ExecSessions,
)
from aios_broker.contract.storage import StorageApply, StorageRead, StorageWrite
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.contract.workspace import Manifest, WorkspaceChanges
from aios_broker.retry import periodic_task
from aios_workers.approvals.service import ApprovalSweep
from aios_workers.modules.services import Services
from aios_workers.modules.state_handler import StateHandler
from aios_workers.runtime.executor import Done, Outcome
from aios_workers.runtime.registry import LoadedModule
from aios_workers.runtime.runs import Run
from tests.caller import Caller, WorkerProcess, running_worker
from tests.scheduler_scene import scheduler
from tests.state_scene import StateScene, state_scene
from tests.tool_scene import ToolScene, answer
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0
LEASE_S = 1.0
# Of one that stands still for a while: it would end itself after three of these.
LONG_LEASE_S = 5.0
WRITE = "open('new.txt', 'w').write('new')"


class HeldStorage(StateHandler):
    """Storage whose `storage.apply` waits for the test, before it is run and before its reply."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, "storage")
        self.may_run, self.may_answer = asyncio.Event(), asyncio.Event()
        self.asked: list[str] = []  # ids, one for each time that it is run
        self.done = 0

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        if not isinstance(syscall.body, StorageApply):
            return await super().run(run, syscall)
        self.asked.append(syscall.id)
        await self.may_run.wait()
        outcome = await super().run(run, syscall)
        self.done += isinstance(outcome, Done)
        await self.may_answer.wait()
        return outcome

    def let_go(self) -> None:
        self.may_run.set()
        self.may_answer.set()


@dataclass
class Kernel:
    """Storage, and tool workers that a test starts and kills."""

    scene: StateScene
    caller: Caller
    tools: ToolScene
    storage: HeldStorage
    stack: AsyncExitStack
    workers: list[WorkerProcess] = field(default_factory=list)

    async def has_storage(self) -> None:
        loaded = LoadedModule(lambda _: self.storage)
        await self.stack.enter_async_context(running_worker(self.caller.url, "storage", loaded))
        self.stack.callback(self.storage.let_go)  # before that worker leaves

    def tool_worker(self, lease_s: float = LEASE_S) -> WorkerProcess:
        worker = WorkerProcess(
            self.caller.url,
            "tool",
            aios_tools=self.tools.file,
            aios_state_dir=self.tools.folder / "state",
            aios_worker_lease_s=lease_s,
        )
        return self.stack.enter_context(worker)

    async def ask(self, body: Body, **fields: Any) -> Any:  # noqa: ANN401
        return await answer(self.caller, body, agent="ann", **fields)

    async def submit(self, body: Body) -> str:
        [syscall] = await self.caller.submit(body, agent="ann")
        return syscall

    async def opened(self, *files: str, code: str = WRITE) -> str:
        session = await self.ask(ExecOpen(workspace=Manifest(files)))
        assert isinstance(session, ExecSession)
        outcome = await self.ask(ExecRun(session.id, code))
        assert outcome.error is None, outcome.error
        return session.id

    async def read(self, path: str) -> str:
        content: str = (await self.scene.ask("ann", StorageRead(path))).content
        return content

    async def keys(self, pattern: str) -> list[bytes]:
        found: list[bytes] = await self.caller.connection.execute("KEYS", pattern)
        return found

    async def is_kept(self) -> bool:
        """Whether a commit has been decided."""
        return bool(await self.keys("*exec_commit:*"))

    async def approval(self) -> str:
        """Return the syscall that waits for a person, as soon as one does."""
        found: list[str] = []

        async def is_asked() -> bool:
            async with self.scene.store.as_steward() as cursor:
                listed = await list_approvals(cursor, None, 1_000)
            found[:] = [one.syscall_id for one in listed.approvals if one.state == "waiting"]
            return bool(found)

        await wait_until_async(is_asked, PATIENCE_S)
        return found[0]

    async def heard(self, syscall: str) -> list[tuple[str, str, int]]:
        """Return what a commit wrote."""
        done = (await self.caller.hear(syscall)).unwrap()
        assert isinstance(done, WorkspaceChanges)
        return [(one.path, one.outcome, one.version) for one in done.changes]


async def killed(worker: WorkerProcess) -> None:
    worker.send(signal.SIGKILL)
    await worker.left()


@contextmanager
def stopped(worker: WorkerProcess) -> Iterator[None]:
    """Have a worker stand still for the length of a block: others take it for dead."""
    worker.send(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send(signal.SIGCONT)


@asynccontextmanager
async def kernel_of(redis_url: str, database_url: str, folder: Path) -> AsyncIterator[Kernel]:
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(state_scene(redis_url, database_url))
        await stack.enter_async_context(scheduler(redis_url))
        services = scene.services
        sweep = ApprovalSweep(services.store, services.functions, services.keys)

        async def often() -> float:
            await sweep.sweep()
            return 0.05

        await stack.enter_async_context(periodic_task("approvals", often, "approvals wait"))
        caller = Caller(redis_url)
        caller.patience_s = PATIENCE_S
        stack.push_async_callback(caller.aclose)
        yield Kernel(scene, caller, ToolScene(folder), HeldStorage(services), stack)


@pytest.fixture
async def kernel(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Kernel]:
    async with kernel_of(redis_url, database_url, tmp_path) as found:
        yield found


async def test_a_worker_killed_before_it_looked_says_that_nothing_was_written(
    kernel: Kernel,
) -> None:
    kernel.storage.let_go()
    await kernel.has_storage()
    worker = kernel.tool_worker()
    session = await kernel.opened()
    run = await kernel.submit(ExecRun(session, "import time; time.sleep(600)", timeout_s=600.0))

    async def is_busy() -> bool:
        listed = await kernel.ask(ExecList())
        assert isinstance(listed, ExecSessions)
        return listed.sessions[0].state == "busy"

    await wait_until_async(is_busy, PATIENCE_S)
    commit = await kernel.submit(ExecCommit(session))
    await wait_until_async(lambda: is_running(kernel, commit), PATIENCE_S)
    await killed(worker)
    kernel.tool_worker()

    with pytest.raises(SessionLost, match="nothing of this commit was written"):
        await kernel.heard(commit)
    with pytest.raises((SessionLost, WorkerLost)):
        (await kernel.caller.hear(run)).unwrap()
    assert kernel.storage.asked == []
    with pytest.raises(NotFound):
        await kernel.read("new.txt")


async def is_running(kernel: Kernel, syscall: str) -> bool:
    return await kernel.caller.state(syscall) == "running"


async def test_what_was_decided_before_storage_was_asked_is_written_by_another_worker(
    kernel: Kernel,
) -> None:
    worker = kernel.tool_worker()
    session = await kernel.opened()
    commit = await kernel.submit(ExecCommit(session))
    await wait_until_async(kernel.is_kept, PATIENCE_S)  # there is no storage to ask yet
    await killed(worker)
    kernel.storage.let_go()
    await kernel.has_storage()
    kernel.tool_worker()

    assert await kernel.heard(commit) == [("/new.txt", "written", 1)]
    assert await kernel.read("new.txt") == "new"
    assert len(kernel.storage.asked) == 1


async def test_what_storage_had_accepted_is_waited_for_by_another_worker(kernel: Kernel) -> None:
    await kernel.has_storage()
    worker = kernel.tool_worker()
    session = await kernel.opened()
    commit = await kernel.submit(ExecCommit(session))
    await wait_until_async(lambda: kernel.storage.asked, PATIENCE_S)
    await killed(worker)
    kernel.tool_worker()
    await wait_until_async(lambda: has_begun_again(kernel, commit), PATIENCE_S)
    kernel.storage.let_go()

    assert await kernel.heard(commit) == [("/new.txt", "written", 1)]
    assert await kernel.read("new.txt") == "new"
    assert len(kernel.storage.asked) == 1


async def has_begun_again(kernel: Kernel, syscall: str) -> bool:
    view = await kernel.caller.control.job(syscall)
    return view is not None and view.state == "running" and view.losses > 0


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["kept", "forgotten"])
async def test_what_was_written_before_the_kill_is_told_by_another_worker(
    kernel: Kernel, *, is_forgotten: bool
) -> None:
    """Also where Redis has forgotten the result by then: it keeps one for a minute."""
    kernel.storage.may_run.set()
    await kernel.has_storage()
    worker = kernel.tool_worker()
    session = await kernel.opened()
    commit = await kernel.submit(ExecCommit(session))
    await wait_until_async(lambda: kernel.storage.done, PATIENCE_S)
    await killed(worker)
    kernel.storage.let_go()
    [apply] = kernel.storage.asked

    async def has_ended() -> bool:
        return await kernel.caller.state(apply) in ("finished", "gone")

    await wait_until_async(has_ended, PATIENCE_S)
    if is_forgotten:
        await kernel.caller.connection.execute("DEL", *await kernel.keys(f"*{apply}*"))
    kernel.tool_worker()

    assert await kernel.heard(commit) == [("/new.txt", "written", 1)]
    assert set(kernel.storage.asked) == {apply}
    assert len(kernel.storage.asked) == 1 + is_forgotten
    assert (await kernel.scene.ask("ann", StorageRead("new.txt"))).version == 1


OVERWRITE = "open('plan.txt', 'a').write(' and tea')"


@pytest.mark.parametrize("state", ["approved", "denied"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_waits_for_a_person_is_told_by_another_worker_as_it_was_decided(
    kernel: Kernel, state: str, when: str
) -> None:
    """Whether the person decides before there is another worker, or after that has begun."""
    kernel.storage.let_go()
    await kernel.has_storage()
    await kernel.scene.ask("ann", StorageWrite("plan.txt", "milk"))
    worker = kernel.tool_worker()
    session = await kernel.opened("plan.txt", code=OVERWRITE)
    commit = await kernel.submit(ExecCommit(session))
    apply = await kernel.approval()
    decision = Decision("approved") if state == "approved" else Decision("denied", "not so")
    await killed(worker)
    if when == "before":
        await kernel.scene.decide(apply, decision)
    kernel.tool_worker()
    if when == "after":
        await wait_until_async(lambda: has_begun_again(kernel, commit), PATIENCE_S)
        await kernel.scene.decide(apply, decision)

    if state == "approved":
        assert await kernel.heard(commit) == [("/plan.txt", "written", 2)]
        assert await kernel.read("plan.txt") == "milk and tea"
    else:
        with pytest.raises(ApprovalDenied, match="not so"):
            await kernel.heard(commit)
        assert await kernel.read("plan.txt") == "milk"
    assert set(kernel.storage.asked) == {apply}


async def test_a_worker_that_lost_its_lease_goes_on_with_the_commit_that_it_had_begun(
    kernel: Kernel,
) -> None:
    await kernel.has_storage()
    worker = kernel.tool_worker(LONG_LEASE_S)
    session = await kernel.opened()
    commit = await kernel.submit(ExecCommit(session))
    await wait_until_async(lambda: kernel.storage.asked, PATIENCE_S)
    with stopped(worker):
        kernel.storage.let_go()
        await wait_until_async(lambda: kernel.storage.done, PATIENCE_S)

        async def is_reclaimed() -> bool:
            return await kernel.caller.state(commit) == "queued"

        await wait_until_async(is_reclaimed, PATIENCE_S)

    assert await kernel.heard(commit) == [("/new.txt", "written", 1)]
    assert len(kernel.storage.asked) == 1
    found = await kernel.ask(ExecChanges(session))
    assert found.changes == ()  # the session has it as it was written
    await kernel.ask(ExecRun(session, "open('new.txt', 'a').write('er')"))
    [changed] = (await kernel.ask(ExecChanges(session))).changes
    assert (changed.state, changed.version) == ("changed", 1)


async def test_a_commit_that_is_run_again_when_it_was_done_says_what_it_wrote(
    kernel: Kernel,
) -> None:
    """Its worker lost the lease after all and before the answer; the session sees no change."""
    kernel.storage.let_go()
    await kernel.has_storage()
    kernel.tool_worker()
    session = await kernel.opened()
    commit = await kernel.submit(ExecCommit(session))
    first = await kernel.heard(commit)
    forgotten = [key for key in await kernel.keys(f"*{commit}*") if b"exec_commit" not in key]
    await kernel.caller.connection.execute("DEL", *forgotten)
    del kernel.caller.replies[commit]
    await kernel.caller.submit(ExecCommit(session), agent="ann", id=commit)

    assert await kernel.heard(commit) == first == [("/new.txt", "written", 1)]
    assert len(kernel.storage.asked) == 1


async def test_a_worker_that_was_taken_for_dead_writes_nothing_after_that_was_said(
    kernel: Kernel,
) -> None:
    kernel.storage.let_go()
    await kernel.has_storage()
    worker = kernel.tool_worker(LONG_LEASE_S)
    session = await kernel.opened()
    with stopped(worker):
        other = kernel.tool_worker()
        commit = await kernel.submit(ExecCommit(session))
        with pytest.raises(SessionLost, match="nothing of this commit was written"):
            await kernel.heard(commit)
        await killed(other)
        before = set(await kernel.keys("*exec_inbox:*"))

    async def has_answered() -> bool:  # into the inbox of one who takes it no more
        return bool(set(await kernel.keys("*exec_inbox:*")) - before)

    await wait_until_async(has_answered, PATIENCE_S)
    assert kernel.storage.asked == []
    with pytest.raises(NotFound):
        await kernel.read("new.txt")
