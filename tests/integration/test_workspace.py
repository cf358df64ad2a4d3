"""A session's workspace on running workers: storage in, changes told, committed with a person."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aios_broker.access.deciders import Decider
from aios_broker.access.requests import Decision, decide, list_approvals
from aios_broker.contract.access import Approval
from aios_broker.contract.errors import (
    ApprovalDenied,
    NotFound,
    SessionLost,
    VersionConflict,
    WorkspaceLimit,
)
from aios_broker.contract.exec import (
    ExecChanges,
    ExecClose,
    ExecCommit,
    ExecDiscard,
    ExecOpen,
    ExecReset,
    ExecRun,
    ExecSession,
)
from aios_broker.contract.storage import (
    StorageAppend,
    StorageMount,
    StorageRead,
    StorageShare,
    StorageWrite,
)
from aios_broker.contract.syscall import Body
from aios_broker.contract.workspace import ForeignFiles, Manifest, WorkspaceChanges
from aios_broker.retry import periodic_task
from aios_workers.approvals.service import ApprovalSweep
from aios_workers.modules.state_handler import StateHandler
from aios_workers.runtime.registry import LoadedModule
from tests.caller import Caller, running_worker
from tests.scheduler_scene import scheduler
from tests.state_scene import StateScene, state_scene
from tests.tool_scene import ToolScene, answer
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(180)


@dataclass
class Kernel:
    """A tool worker, a storage worker, and whoever decides."""

    scene: StateScene
    caller: Caller
    tools: ToolScene

    async def ask(self, body: Body, **fields: Any) -> Any:  # noqa: ANN401
        return await answer(self.caller, body, **{"agent": "ann", **fields})

    async def write(self, path: str, content: str) -> None:
        await self.scene.ask("ann", StorageWrite(path, content))  # a new one: nobody is asked

    async def read(self, path: str) -> str:
        content: str = (await self.scene.ask("ann", StorageRead(path))).content
        return content

    async def opened(self, *files: str, **fields: Any) -> str:  # noqa: ANN401
        session = await self.ask(ExecOpen(workspace=Manifest(files, **fields)))
        assert isinstance(session, ExecSession)
        return session.id

    async def run(self, session: str, code: str) -> str:
        outcome = await self.ask(ExecRun(session, code))
        assert outcome.error is None, outcome.error
        return str(outcome.value)

    async def changes(self, session: str, *paths: str, diff: bool = False) -> WorkspaceChanges:
        found = await self.ask(ExecChanges(session, paths, diff))
        assert isinstance(found, WorkspaceChanges)
        return found

    async def parked(self, body: Body) -> tuple[str, Approval]:
        """Submit what waits for a person; return its id and what is asked for."""
        [syscall] = await self.caller.submit(body, agent="ann")
        found: list[Approval] = []

        async def is_asked() -> bool:
            async with self.scene.store.as_steward() as cursor:
                listed = await list_approvals(cursor, None, 1_000)
            found[:] = [one for one in listed.approvals if one.state == "waiting"]
            return bool(found)

        await wait_until_async(is_asked, 60)
        return syscall, found[0]

    async def decide(self, approval: Approval, decision: Decision) -> None:
        async with self.scene.store.as_steward() as cursor:
            await decide(cursor, approval.id, Decider("operator:test"), decision)


@pytest.fixture
async def kernel(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Kernel]:
    tools = ToolScene(tmp_path)
    mounts = tmp_path / "books"
    mounts.mkdir()
    (mounts / "one.txt").write_text("a book")
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(
            state_scene(redis_url, database_url, storage_mounts=f"{mounts}=default/ann")
        )
        await stack.enter_async_context(scheduler(redis_url))
        loaded = LoadedModule(lambda _: StateHandler(scene.services, "storage"))
        await stack.enter_async_context(running_worker(redis_url, "storage", loaded))
        await stack.enter_async_context(tools.worker(redis_url))
        services = scene.services
        sweep = ApprovalSweep(services.store, services.functions, services.keys)

        async def often() -> float:
            await sweep.sweep()
            return 0.05

        await stack.enter_async_context(periodic_task("approvals", often, "approvals wait"))
        caller = Caller(redis_url)
        stack.push_async_callback(caller.aclose)
        yield Kernel(scene, caller, tools)


def told(found: WorkspaceChanges) -> list[tuple[str, str]]:
    return [(one.path, one.state) for one in found.changes]


EDIT = """
import os
open("notes/plan.md", "a").write("Buy tea\\n")
os.remove("notes/old.md")
os.makedirs("out/deep")
open("out/deep/new.bin", "wb").write(bytes([0, 255]))
"""


async def edited(kernel: Kernel) -> str:
    await kernel.write("notes/plan.md", "Buy milk\n")
    await kernel.write("notes/old.md", "old")
    await kernel.write("notes/same.md", "same")
    session = await kernel.opened("notes/*.md")
    await kernel.run(session, EDIT)
    return session


async def test_what_code_changed_is_told_committed_with_a_person_and_then_no_change(
    kernel: Kernel,
) -> None:
    session = await edited(kernel)
    assert await kernel.run(session, "open('notes/same.md').read()") == "'same'"

    found = await kernel.changes(session, diff=True)
    assert told(found) == [
        ("/notes/old.md", "removed"),
        ("/notes/plan.md", "changed"),
        ("/out/deep/new.bin", "added"),
    ]
    assert "-old" in found.changes[0].diff
    assert "+Buy tea" in found.changes[1].diff
    assert found.changes[1].version == 1
    assert await kernel.read("notes/plan.md") == "Buy milk\n"  # a copy was changed

    job, asked = await kernel.parked(ExecCommit(session))
    assert (asked.kind, asked.operation) == ("storage.apply", "delete")
    assert "+Buy tea" in asked.diff
    assert "make /out/deep/new.bin" in asked.diff
    assert await kernel.read("notes/plan.md") == "Buy milk\n"
    await kernel.decide(asked, Decision("approved"))
    done = (await kernel.caller.hear(job)).unwrap()

    assert isinstance(done, WorkspaceChanges)
    assert [(one.path, one.outcome, one.version) for one in done.changes] == [
        ("/notes/old.md", "deleted", 1),
        ("/notes/plan.md", "written", 2),
        ("/out/deep/new.bin", "written", 1),
    ]
    assert await kernel.read("notes/plan.md") == "Buy milk\nBuy tea\n"
    assert (await kernel.scene.ask("ann", StorageRead("out/deep/new.bin"))).data == b"\0\xff"
    with pytest.raises(NotFound):
        await kernel.read("notes/old.md")
    assert told(await kernel.changes(session)) == []


async def test_new_files_are_committed_without_a_person_and_by_path(kernel: Kernel) -> None:
    session = await kernel.opened()
    await kernel.run(session, "for n in 'abc': open(n + '.txt', 'w').write(n)")

    done = await kernel.ask(ExecCommit(session, ("a.txt", "/b*")))

    assert [(one.path, one.outcome) for one in done.changes] == [
        ("/a.txt", "written"),
        ("/b.txt", "written"),
    ]
    assert told(await kernel.changes(session)) == [("/c.txt", "added")]


async def test_a_file_that_moved_meanwhile_is_a_conflict_and_nothing_is_written(
    kernel: Kernel,
) -> None:
    session = await edited(kernel)
    await kernel.scene.ask("ann", StorageAppend("notes/plan.md", "Elsewhere\n"))

    with pytest.raises(VersionConflict, match=r"/notes/plan\.md is at version 2, not version 1"):
        await kernel.ask(ExecCommit(session))

    assert await kernel.read("notes/plan.md") == "Buy milk\nElsewhere\n"
    assert await kernel.read("notes/old.md") == "old"
    with pytest.raises(NotFound):
        await kernel.read("out/deep/new.bin")


async def test_a_file_that_moved_while_a_person_decides_is_a_conflict(kernel: Kernel) -> None:
    session = await edited(kernel)
    job, asked = await kernel.parked(ExecCommit(session))
    await kernel.scene.ask("ann", StorageAppend("notes/plan.md", "Elsewhere\n"))
    await kernel.decide(asked, Decision("approved"))

    with pytest.raises(VersionConflict):
        (await kernel.caller.hear(job)).unwrap()
    assert await kernel.read("notes/old.md") == "old"


async def test_what_a_person_refuses_stays_a_change(kernel: Kernel) -> None:
    session = await edited(kernel)
    before = told(await kernel.changes(session))
    job, asked = await kernel.parked(ExecCommit(session))
    await kernel.decide(asked, Decision("denied", "not so"))

    with pytest.raises(ApprovalDenied, match="not so"):
        (await kernel.caller.hear(job)).unwrap()
    assert told(await kernel.changes(session)) == before


async def test_what_is_discarded_is_as_the_manifest_has_it(kernel: Kernel) -> None:
    session = await edited(kernel)
    part = await kernel.ask(ExecDiscard(session, ("notes/old.md",)))
    assert [(one.path, one.outcome) for one in part.changes] == [("/notes/old.md", "restored")]
    assert ("/notes/plan.md", "changed") in told(await kernel.changes(session))

    await kernel.ask(ExecDiscard(session))

    assert told(await kernel.changes(session)) == []
    files = "sorted(f for _, _, fs in __import__('os').walk('.') for f in fs)"
    assert await kernel.run(session, files) == "['old.md', 'plan.md', 'same.md']"
    assert await kernel.run(session, "open('notes/plan.md').read()") == "'Buy milk\\n'"


async def test_a_session_that_is_reset_begins_with_the_manifest(kernel: Kernel) -> None:
    session = await edited(kernel)
    await kernel.ask(ExecReset(session))

    assert await kernel.run(session, "open('notes/plan.md').read()") == "'Buy milk\\n'"
    assert told(await kernel.changes(session)) == []


async def test_files_of_others_and_of_mounts_are_read_and_not_committed(kernel: Kernel) -> None:
    scene = kernel.scene
    await scene.known("ann", "bob")
    await scene.ask("bob", StorageWrite("plans/a.txt", "bob's"))
    await scene.ask("bob", StorageWrite("secret.txt", "not yours"))
    await scene.ask("bob", StorageShare("plans", agent="ann", verbs=("read",)))
    books = str(kernel.tools.folder / "books")
    await scene.ask("ann", StorageMount("/books", books))
    session = await kernel.opened("books", shared=(ForeignFiles("bob", ("plans",)),))

    both = "open('books/one.txt').read(), open('shared/bob/plans/a.txt').read()"
    assert await kernel.run(session, both) == "('a book', \"bob's\")"
    code = "[open(p, 'w').write('x') for p in ('books/one.txt', 'books/two.txt', "
    await kernel.run(session, code + "'shared/bob/plans/a.txt', 'mine.txt')] and None")
    done = await kernel.ask(ExecCommit(session))

    assert [(one.path, one.state, one.outcome) for one in done.changes] == [
        ("/books/one.txt", "refused", "left"),
        ("/books/two.txt", "refused", "left"),
        ("/mine.txt", "added", "written"),
        ("/shared/bob/plans/a.txt", "refused", "left"),
    ]
    assert "mounted" in done.changes[0].why
    assert "bob's" in done.changes[3].why
    with pytest.raises(NotFound):
        await kernel.ask(
            ExecOpen(workspace=Manifest(shared=(ForeignFiles("bob", ("secret.txt",)),)))
        )


async def test_a_manifest_has_limits_and_means_something(kernel: Kernel) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        await kernel.write(name, "x" * 100)
    for limits, field in (
        ({"max_files": 2}, "body.workspace.max_files"),
        ({"max_bytes": 299}, "body.workspace.max_bytes"),
    ):
        with pytest.raises(WorkspaceLimit) as caught:
            await kernel.opened("*.txt", **limits)
        assert caught.value.field == field
    with pytest.raises(NotFound, match=r"/none/\*\.txt|/none"):
        await kernel.opened("none/*.txt")
    with pytest.raises(NotFound, match=r"\*\.md"):
        await kernel.opened("*.md")
    places = kernel.tools.folder
    assert not list(places.glob("**/kept-*"))  # what was not opened has left nothing


async def test_what_storage_cannot_have_is_refused_in_words_and_never_followed(
    kernel: Kernel,
) -> None:
    await kernel.write("kept.txt", "kept")
    await kernel.write("d/inside.txt", "inside")
    session = await kernel.opened("kept.txt", "d")
    code = """
import os, shutil, socket
os.symlink("/etc/hostname", "outside")
os.symlink("kept.txt", "inside-link")
os.mkfifo("pipe")
os.link("kept.txt", "hard"); open("hard", "a").write("!")
open("setuid", "w").write("x"); os.chmod("setuid", 0o4755)
open("zero\\u200bwidth", "w").write("x")
open("...dots", "w").write("x")
open(b"bytes\\xff", "w").write("x")
socket.socket(socket.AF_UNIX).bind("socket")
shutil.move("d", "e"); os.symlink("e", "d")
"""
    await kernel.run(session, code)

    found = await kernel.changes(session)
    assert {(one.path, one.state) for one in found.changes} == {
        ("/outside", "refused"),
        ("/inside-link", "refused"),
        ("/pipe", "refused"),
        ("/hard", "refused"),
        ("/kept.txt", "refused"),
        ("/setuid", "refused"),
        ("/zero\\u200bwidth", "refused"),
        ("/...dots", "refused"),
        ("/bytes\\udcff", "refused"),
        ("/socket", "refused"),
        ("/d", "refused"),
        ("/e/inside.txt", "added"),
    }
    assert all(one.why for one in found.changes if one.state == "refused")
    done = await kernel.ask(ExecCommit(session))
    assert [one.path for one in done.changes if one.outcome == "written"] == ["/e/inside.txt"]
    assert await kernel.read("d/inside.txt") == "inside"

    await kernel.ask(ExecDiscard(session))
    assert told(await kernel.changes(session)) == []
    assert await kernel.run(session, "open('d/inside.txt').read()") == "'inside'"


async def test_somebody_who_swaps_links_meanwhile_gets_nothing_of_the_machine_out(
    kernel: Kernel,
) -> None:
    """What is looked at is opened part by part, never through a link: whatever is put there."""
    secret = kernel.tools.folder / "secret"
    secret.mkdir()
    (secret / "file.txt").write_text("TOP SECRET")
    session = await kernel.opened()
    code = f"""
import os, threading
os.makedirs("real"); open("real/file.txt", "w").write("mine")
going = True
def swap():
    while going:
        for name, target in (("d", {str(secret)!r}), ("f", {str(secret / "file.txt")!r})):
            try:
                if name == "d":
                    os.rename("real", "d"); os.rename("d", "real")
                    os.symlink(target, "d"); os.unlink("d")
                else:
                    open("f", "w").write("mine"); os.unlink("f")
                    os.symlink(target, "f"); os.unlink("f")
            except OSError:
                pass
[threading.Thread(target=swap, daemon=True).start() for _ in range(3)] and None
"""
    await kernel.run(session, code)
    digest = hashlib.sha256(b"TOP SECRET").hexdigest()
    for _ in range(30):
        found = await kernel.changes(session, diff=True)
        assert not any(one.sha256 == digest or "SECRET" in one.diff for one in found.changes)
    discarded = asyncio.create_task(kernel.ask(ExecDiscard(session)))
    await asyncio.wait([discarded])
    assert (secret / "file.txt").read_text() == "TOP SECRET"


NESTED = """
import os
for n in range({depth}):
    os.mkdir("d"); os.chdir("d")
open("f", "w").write("x"); os.chmod(".", 0)
os.chdir(os.environ["HOME"])
"""


async def test_folders_that_lie_too_deep_for_storage_are_told_and_discarded(
    kernel: Kernel,
) -> None:
    session = await kernel.opened()
    await kernel.run(session, NESTED.format(depth=150))

    [one] = (await kernel.changes(session)).changes
    assert (one.state, "64" in one.why) == ("refused", True)
    await kernel.ask(ExecDiscard(session))
    assert await kernel.run(session, "os.listdir('.')") == "[]"


async def test_a_session_whose_folders_lie_too_deep_ends_and_no_other_does(
    kernel: Kernel,
) -> None:
    """What walks through them would need a call within a call for each."""
    other, session = await kernel.opened(), await kernel.opened()
    with pytest.raises(SessionLost, match="deeper in each other"):
        await kernel.ask(ExecRun(session, NESTED.format(depth=3000) + "while True: pass"))
    assert await kernel.run(other, "1 + 1") == "2"


async def test_a_workspace_goes_with_its_session(kernel: Kernel) -> None:
    session = await edited(kernel)
    await kernel.ask(ExecClose(session))
    lost = await kernel.opened("notes")
    with pytest.raises(SessionLost):
        await kernel.ask(ExecRun(lost, "import os; os._exit(3)"))

    for body in (ExecChanges(lost), ExecCommit(lost), ExecDiscard(lost)):
        with pytest.raises(SessionLost, match="interpreter ended"):
            await kernel.ask(body)
