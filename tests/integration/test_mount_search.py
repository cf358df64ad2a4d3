"""Search in mounted directories: what the host has, a moment after it has it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_broker.contract.access import AccessGrant, ObjectRef
from aios_broker.contract.errors import InvalidPath, NotFound
from aios_broker.contract.storage import (
    FoundFiles,
    StorageMount,
    StorageSearch,
    StorageUnmount,
    StorageWrite,
)
from aios_workers.modules.storage import mounts
from aios_workers.modules.storage.host import MountSetting
from aios_workers.modules.storage.mounts import MountWatch
from tests.state_scene import StateScene, state_scene


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    shared = tmp_path.resolve() / "shared"
    (shared / "docs").mkdir(parents=True)
    (shared / "docs" / "apples.txt").write_text("apples and pears")
    (shared / "tools.txt").write_text("a hammer and nails")
    return shared


@pytest.fixture
async def scene(redis_url: str, database_url: str, shared: Path) -> AsyncIterator[StateScene]:
    async with state_scene(redis_url, database_url, storage_mounts=f"{shared}=default/*") as scene:
        await scene.ask("ann", StorageMount("host", str(shared), searchable=True))
        yield scene


async def looked(scene: StateScene, shared: Path) -> int:
    """Look until nothing is new, and embed; return what was read or forgotten."""
    watch = MountWatch(scene.store, MountSetting(f"{shared}=default/*"))
    done = 0
    while count := await watch.scan():
        done += count
    await scene.embedded()
    return done


async def found(scene: StateScene, query: str, agent: str = "ann", **fields: object) -> list[str]:
    result = await scene.ask(agent, StorageSearch(query, **fields))  # type: ignore[arg-type]
    assert isinstance(result, FoundFiles)
    return [hit.path for hit in result.hits]


@pytest.mark.parametrize("mode", ["keyword", "semantic", "hybrid"])
async def test_files_of_the_host_are_found_beside_ones_own(
    scene: StateScene, shared: Path, mode: str
) -> None:
    await scene.ask("ann", StorageWrite("own.txt", "apples alone"))
    assert await looked(scene, shared) == 2
    assert set((await found(scene, "apples", mode=mode))[:2]) == {
        "/own.txt",
        "/host/docs/apples.txt",
    }
    assert (await found(scene, "hammer and nails", mode=mode))[0] == "/host/tools.txt"
    assert await found(scene, "apples", mode=mode, k=1, group_by="directory", path="host") == [
        "/host/docs"
    ]


async def test_changes_of_the_host_are_picked_up(scene: StateScene, shared: Path) -> None:
    await looked(scene, shared)
    assert await looked(scene, shared) == 0  # nothing is read twice
    (shared / "docs" / "apples.txt").write_text("plums, now")
    (shared / "tools.txt").unlink()
    (shared / "new.txt").write_text("a ladder")
    assert await looked(scene, shared) == 3
    assert await found(scene, "apples", mode="keyword") == []
    assert await found(scene, "hammer", mode="keyword") == []
    assert await found(scene, "plums", mode="keyword") == ["/host/docs/apples.txt"]
    assert (await found(scene, "ladder", mode="semantic"))[0] == "/host/new.txt"
    os.utime(shared / "new.txt", (1, 1))
    assert await looked(scene, shared) == 1


async def test_only_below_a_path_and_only_where_it_was_asked_for(
    scene: StateScene, shared: Path
) -> None:
    await scene.ask("ann", StorageMount("unread", str(shared)))
    await looked(scene, shared)
    assert await found(scene, "apples hammer", path="host/docs") == ["/host/docs/apples.txt"]
    assert await found(scene, "apples", path="host/docs/apples.txt") == ["/host/docs/apples.txt"]
    with pytest.raises(InvalidPath, match="not searched"):
        await found(scene, "apples", path="unread")


async def test_what_is_unmounted_is_forgotten(scene: StateScene, shared: Path) -> None:
    await looked(scene, shared)
    await scene.approved("ann", StorageUnmount("host"))
    assert await found(scene, "apples") == []
    assert await scene.rows("SELECT FROM mount_chunk") == []


async def test_nobody_else_finds_it(scene: StateScene, shared: Path) -> None:
    await looked(scene, shared)
    await scene.known("bob")
    await scene.ask("ann", StorageWrite("own.txt", "something else"))
    await scene.ask("ann", AccessGrant(ObjectRef("directory", "/"), ("search",), agent="bob"))
    for mode in ("keyword", "semantic"):
        assert await found(scene, "apples", "bob", owner="ann", mode=mode) == []
        assert await found(scene, "apples", "bob", shared=True, mode=mode) == []
    with pytest.raises(NotFound):
        await found(scene, "apples", "bob", owner="ann", path="host")


async def test_what_is_no_text_or_too_large_or_cannot_be_entered_is_passed_over(
    scene: StateScene, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(mounts, "MAX_MOUNT_BYTES", 120)
    monkeypatch.setattr(mounts, "FILES_AT_ONCE", 2)
    (shared / "a.bin").write_bytes(b"\xff\xfe apples")
    (shared / "b.txt").write_text("apples " * 100)
    (shared / "link.txt").symlink_to(shared / "tools.txt")
    (shared / "z1.txt").write_text("z" * 60)
    (shared / "z2.txt").write_text("apples, beyond what a mount may have" * 2)
    (shared / "locked").mkdir(mode=0o000)
    await looked(scene, shared)
    assert await found(scene, "apples", mode="keyword") == ["/host/docs/apples.txt"]
    rows = await scene.rows("SELECT inner_path FROM mount_file ORDER BY 1")
    assert [row.inner_path for row in rows] == ["a.bin", "docs/apples.txt", "tools.txt", "z1.txt"]


async def test_a_directory_that_is_away_keeps_what_was_read(
    scene: StateScene, shared: Path
) -> None:
    await looked(scene, shared)
    os.rename(shared, f"{shared}.away")
    assert await looked(scene, shared) == 0
    assert await found(scene, "apples", mode="keyword") == ["/host/docs/apples.txt"]
