"""Several files changed at once: all or none, one approval for all, bound to what was seen."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from aios_broker.access.requests import Decision
from aios_broker.contract.errors import AlreadyExists, InvalidPath, InvalidSyscall, VersionConflict
from aios_broker.contract.storage import (
    FileChange,
    StorageApply,
    StorageList,
    StorageMkdir,
    StorageRead,
    StorageShare,
    StorageWrite,
)
from aios_workers.approvals.service import NeedsApproval
from tests.state_scene import StateScene, state_scene


@pytest.fixture
async def scene(redis_url: str, database_url: str) -> AsyncIterator[StateScene]:
    async with state_scene(redis_url, database_url) as opened:
        await opened.ask("ann", StorageWrite("a.txt", "one"))
        await opened.ask("ann", StorageWrite("b.txt", "two"))
        yield opened


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def applied(*changes: FileChange) -> StorageApply:
    return StorageApply(changes)


async def texts(scene: StateScene) -> dict[str, str]:
    listed = await scene.ask("ann", StorageList(recursive=True))
    paths = [entry.path for entry in listed.entries if entry.kind == "file"]
    return {path: (await scene.ask("ann", StorageRead(path))).content for path in paths}


async def test_new_files_are_written_without_a_person(scene: StateScene) -> None:
    done = await scene.ask("ann", applied(FileChange("c.txt", "3"), FileChange("d/e.txt", "4")))

    assert [(one.path, one.version) for one in done.entries] == [("/c.txt", 1), ("/d/e.txt", 1)]
    assert await texts(scene) == {"/a.txt": "one", "/b.txt": "two", "/c.txt": "3", "/d/e.txt": "4"}


async def test_what_loses_something_waits_whole_with_one_approval_for_all(
    scene: StateScene,
) -> None:
    changes = (
        FileChange("c.txt", "3", if_version=0),
        FileChange("a.txt", "ONE", if_version=1, if_sha256=sha("one")),
        FileChange("b.txt", if_version=1),
    )
    syscall = scene.syscall("ann", applied(*changes))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    assert await texts(scene) == {"/a.txt": "one", "/b.txt": "two"}
    asked = await scene.approval_of(syscall.id)
    assert asked.diff.startswith("make /c.txt\noverwrite /a.txt\ndelete /b.txt\n")
    assert "-one\n+ONE" in asked.diff

    await scene.decide(syscall.id, Decision("approved"))
    done = await scene.run(syscall)

    assert [one.path for one in done.entries] == ["/c.txt", "/a.txt", "/b.txt"]
    assert await texts(scene) == {"/a.txt": "ONE", "/c.txt": "3"}
    assert await scene.run(syscall) == done  # its effect is entered: it is done once


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (FileChange("a.txt", "x", if_version=2), "/a.txt is at version 1, not version 2"),
        (FileChange("a.txt", "x", if_version=0), "/a.txt is at version 1, not new"),
        (FileChange("a.txt", "x", if_sha256=sha("other")), "/a.txt has other content"),
        (FileChange("z.txt", "x", if_version=1), "/z.txt is not there, not version 1"),
        (FileChange("z.txt", "x", if_sha256=sha("one")), "/z.txt is gone"),
        (FileChange("z.txt"), "there is no file /z.txt"),
    ],
)
async def test_one_that_is_not_as_it_was_keeps_all_back(
    scene: StateScene, change: FileChange, said: str
) -> None:
    with pytest.raises(VersionConflict) as caught:
        await scene.ask("ann", applied(FileChange("new.txt", "x"), change))

    assert said in caught.value.message
    assert await texts(scene) == {"/a.txt": "one", "/b.txt": "two"}


async def test_all_that_are_not_as_they_were_are_named(scene: StateScene) -> None:
    with pytest.raises(VersionConflict, match=r"/a\.txt.*; /b\.txt"):
        await scene.ask(
            "ann",
            applied(FileChange("a.txt", "x", if_version=7), FileChange("b.txt", if_version=7)),
        )


async def test_a_file_that_moved_after_the_approval_is_a_conflict(scene: StateScene) -> None:
    """Also where it is at the same version again: it is another file with other content."""
    syscall = scene.syscall("ann", applied(FileChange("a.txt", "ONE", if_sha256=sha("one"))))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    await scene.decide(syscall.id, Decision("approved"))
    await scene.approved("ann", StorageWrite("a.txt", "elsewhere"))

    with pytest.raises(VersionConflict):
        await scene.run(syscall)
    assert (await texts(scene))["/a.txt"] == "elsewhere"


async def test_a_file_takes_the_place_of_a_directory_only_where_nothing_is(
    scene: StateScene,
) -> None:
    await scene.ask("ann", StorageMkdir("d"))
    with pytest.raises(AlreadyExists):
        await scene.ask("ann", applied(FileChange("new.txt", "x"), FileChange("d", "x")))
    with pytest.raises(InvalidPath):
        await scene.ask("ann", applied(FileChange("a.txt/b", "x")))
    done = scene.syscall("ann", applied(FileChange("a.txt/b", "x"), FileChange("a.txt")))
    with pytest.raises(NeedsApproval):
        await scene.run(done)
    await scene.decide(done.id, Decision("approved"))
    await scene.run(done)
    assert await texts(scene) == {"/a.txt/b": "x", "/b.txt": "two"}


async def test_a_path_is_changed_once(scene: StateScene) -> None:
    with pytest.raises(InvalidSyscall, match=r"/a\.txt is changed 2 times"):
        await scene.ask("ann", applied(FileChange("a.txt", "x"), FileChange("/a.txt", "y")))


async def test_what_is_another_agents_needs_a_grant(scene: StateScene) -> None:
    await scene.known("bob")
    await scene.ask("ann", StorageShare("a.txt", agent="bob", verbs=("read",)))
    for path in ("a.txt", "b.txt", "new.txt"):
        changes = (FileChange(path, "x"),)
        with pytest.raises(Exception, match=r"no grant allows write|nothing at"):
            await scene.ask("bob", StorageApply(changes, owner="ann"))
    assert await texts(scene) == {"/a.txt": "one", "/b.txt": "two"}
