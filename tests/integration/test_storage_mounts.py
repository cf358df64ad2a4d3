"""Mounted directories: what the host has, and nothing outside of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios_broker.contract.errors import (
    AlreadyExists,
    InvalidConfig,
    InvalidPath,
    KernelError,
    NotFound,
)
from aios_broker.contract.storage import (
    StorageAppend,
    StorageCopy,
    StorageCreate,
    StorageDelete,
    StorageList,
    StorageMkdir,
    StorageMount,
    StorageMove,
    StorageRead,
    StorageSearch,
    StorageStat,
    StorageUnmount,
    StorageVersions,
    StorageWrite,
)
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.storage.host import AllowedDirectories, HostDirectory, MountSetting
from tests.hostile_paths import HOSTILE_PATHS
from tests.storage_scene import Scene, storage_scene


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that may be mounted, beside a secret that may not be reached."""
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    shared = tmp_path.resolve() / "shared"
    (shared / "docs").mkdir(parents=True)
    (shared / "docs" / "a.txt").write_text("one")
    return shared


@pytest.fixture
async def scene(database_url: str, shared: Path) -> AsyncIterator[Scene]:
    async with storage_scene(database_url, storage_mounts=f"{shared}=default/ann") as scene:
        await scene.store.vouched("bob", "default")
        yield scene


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def mounted(scene: Scene, shared: Path, *, writable: bool = True) -> None:
    await scene.ask(StorageMount("host", str(shared), writable))


async def test_changes_of_the_host_are_there_at_once(scene: Scene, shared: Path) -> None:
    await mounted(scene, shared)
    assert (await scene.ask(StorageRead("host/docs/a.txt"))).content == "one"
    (shared / "docs" / "a.txt").write_text("two")
    (shared / "b.txt").write_text("new")
    assert (await scene.ask(StorageRead("host/docs/a.txt"))).content == "two"
    listed = await scene.ask(StorageList("host", recursive=True))
    assert [entry.path for entry in listed.entries] == [
        "/host/b.txt",
        "/host/docs",
        "/host/docs/a.txt",
    ]
    page = await scene.ask(StorageList("host", recursive=True, limit=1, after="/host/b.txt"))
    assert ([entry.path for entry in page.entries], page.more) == (["/host/docs"], True)
    assert (await scene.ask(StorageStat("host/b.txt"))).size_bytes == 3


async def test_what_is_written_lies_on_the_host(scene: Scene, shared: Path) -> None:
    await mounted(scene, shared)
    await scene.ask(StorageCreate("host/new/x.bin", "AP8=", "base64"))
    assert (shared / "new" / "x.bin").read_bytes() == b"\x00\xff"
    await scene.ask(StorageAppend("host/log", "a"))
    await scene.ask(StorageAppend("host/log", "b"))
    assert (shared / "log").read_text() == "ab"
    with pytest.raises(AlreadyExists):
        await scene.ask(StorageCreate("host/log", "c"))
    await scene.ask(StorageWrite("host/log", "whole"))
    assert (shared / "log").read_text() == "whole"
    await scene.ask(StorageMkdir("host/d/e"))
    assert (shared / "d" / "e").is_dir()
    await scene.ask(StorageDelete("host/log"))
    assert not (shared / "log").exists()
    asked = [why.operation for why in scene.approvals.asked]
    assert asked == ["privilege", "overwrite", "delete"]
    assert names_in(shared) == ["d", "docs", "new"]  # nothing left over


async def test_unmounting_takes_nothing_and_asks_nobody(scene: Scene, shared: Path) -> None:
    """What lies there stays, and its owner mounts it again; a person is asked to write in it."""
    await mounted(scene, shared)
    scene.approvals.is_closed = True
    await scene.ask(StorageUnmount("host"))
    assert (shared / "docs" / "a.txt").read_text() == "one"
    await mounted(scene, shared, writable=False)
    assert (await scene.ask(StorageRead("host/docs/a.txt"))).content == "one"
    await scene.ask(StorageUnmount("host"))
    with pytest.raises(NeedsApproval):
        await mounted(scene, shared)


async def test_without_a_person_nothing_is_lost(scene: Scene, shared: Path) -> None:
    await mounted(scene, shared)
    scene.approvals.is_closed = True
    for body in (StorageWrite("host/docs/a.txt", "x"), StorageDelete("host/docs/a.txt")):
        with pytest.raises(NeedsApproval):
            await scene.ask(body)
    assert (shared / "docs" / "a.txt").read_text() == "one"


async def test_a_mount_that_is_to_be_read_is_not_written(scene: Scene, shared: Path) -> None:
    await mounted(scene, shared, writable=False)
    for body in (
        StorageCreate("host/x", "x"),
        StorageWrite("host/docs/a.txt", "x"),
        StorageAppend("host/docs/a.txt", "x"),
        StorageDelete("host/docs/a.txt"),
        StorageMkdir("host/x"),
    ):
        with pytest.raises(InvalidPath, match="read-only"):
            await scene.ask(body)
    assert names_in(shared) == ["docs"]


async def test_it_is_copied_into_the_namespace_and_unmounted(scene: Scene, shared: Path) -> None:
    await mounted(scene, shared)
    await scene.ask(StorageCopy("host/docs/a.txt", "mine/a.txt"))
    assert (await scene.ask(StorageRead("mine/a.txt"))).content == "one"
    for body in (
        StorageMove("host/docs/a.txt", "b"),
        StorageMove("mine/a.txt", "host/b"),
        StorageVersions("host/docs/a.txt"),
        StorageSearch("one", path="host"),
        StorageDelete("host"),
    ):
        with pytest.raises(InvalidPath, match="host"):
            await scene.ask(body)
    await scene.ask(StorageUnmount("host"))
    with pytest.raises(NotFound):
        await scene.ask(StorageRead("host/docs/a.txt"))
    assert (shared / "docs" / "a.txt").read_text() == "one"


async def test_another_agent_does_not_see_it(scene: Scene, shared: Path) -> None:
    await mounted(scene, shared)
    with pytest.raises(NotFound):
        await scene.ask(StorageRead("host/docs/a.txt", owner="ann"), "bob")


@pytest.mark.parametrize("source", ["/", "/etc", "relative", "{shared}/../outside", "{shared}x"])
async def test_only_what_the_operator_allows_is_mounted(
    scene: Scene, shared: Path, source: str
) -> None:
    with pytest.raises(InvalidPath, match="no directory below one that you may mount"):
        await scene.ask(StorageMount("host", source.format(shared=shared)))
    assert (await scene.ask(StorageList())).entries == ()


async def test_only_whom_the_operator_names_mounts(scene: Scene, shared: Path) -> None:
    with pytest.raises(InvalidPath, match=r"may mount \(none\)"):
        await scene.ask(StorageMount("host", str(shared)), "bob")
    scene.tenant = "other"
    with pytest.raises(InvalidPath, match=r"may mount \(none\)"):
        await scene.ask(StorageMount("host", str(shared)), "ann")


async def test_one_to_write_in_waits_for_a_person_one_to_read_does_not(
    scene: Scene, shared: Path
) -> None:
    scene.approvals.is_closed = True
    with pytest.raises(NeedsApproval, match="to be changed there"):
        await mounted(scene, shared, writable=True)
    assert (await scene.ask(StorageList())).entries == ()
    await mounted(scene, shared, writable=False)
    assert [why.operation for why in scene.approvals.asked] == ["privilege"]


async def test_whom_the_operator_no_longer_names_sees_nothing(
    scene: Scene, shared: Path, database_url: str
) -> None:
    await mounted(scene, shared)
    async with storage_scene(database_url, storage_mounts=f"{shared}=default/bob") as later:
        for body in (StorageRead("host/docs/a.txt"), StorageWrite("host/docs/a.txt", "x")):
            with pytest.raises(InvalidPath, match="may not be mounted any more"):
                await later.ask(body)
    assert (shared / "docs" / "a.txt").read_text() == "one"


def test_the_setting_says_which_directories_and_whose(tmp_path: Path) -> None:
    books, plans = tmp_path.resolve() / "books", tmp_path.resolve() / "plans"
    setting = MountSetting(f"{books}=default/ada,research/*; {plans}=default/team:bob;")

    def roots(tenant: str, agent: str) -> list[str]:
        return [str(each) for each in (books, plans) if _may_mount(setting.by(tenant, agent), each)]

    books.mkdir()
    plans.mkdir()
    assert roots("default", "ada") == roots("research", "zoe") == [str(books)]
    assert roots("default", "team:bob") == [str(plans)]
    assert roots("default", "zoe") == roots("other", "ada") == []


def _may_mount(allowed: AllowedDirectories, directory: Path) -> bool:
    try:
        return allowed.where(str(directory)) == str(directory)
    except InvalidPath:
        return False


@pytest.mark.parametrize(
    "setting",
    ["/srv", "/srv=", "/srv=ada", "/srv=default/", "/srv=*/*", "srv=default/ada", "/srv=a/b/-c"],
)
def test_a_setting_that_names_nobody_is_refused(setting: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        MountSetting(setting)
    assert caught.value.field == "AIOS_STORAGE_MOUNTS"


async def test_links_lead_nowhere(scene: Scene, shared: Path, tmp_path: Path) -> None:
    await mounted(scene, shared)
    (shared / "file").symlink_to(tmp_path / "secret.txt")
    (shared / "dir").symlink_to(tmp_path / "outside")
    (shared / "up").symlink_to("..")
    os.mkfifo(shared / "pipe")
    for path in ("file", "dir/secret.txt", "up/secret.txt", "up/shared/docs/a.txt", "pipe", "dir"):
        with pytest.raises(KernelError):
            await scene.ask(StorageRead(f"host/{path}"))
        if path != "pipe":
            with pytest.raises(KernelError):
                await scene.ask(StorageDelete(f"host/{path}"))
    for path in ("dir/new.txt", "up/new.txt"):
        with pytest.raises(KernelError):
            await scene.ask(StorageWrite(f"host/{path}", "x"))
    await scene.ask(StorageWrite("host/file2", "x"))
    listed = await scene.ask(StorageList("host", recursive=True))
    assert [entry.path for entry in listed.entries] == [
        "/host/docs",
        "/host/docs/a.txt",
        "/host/file2",
    ]
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert names_in(tmp_path / "outside") == ["secret.txt"]


@pytest.mark.parametrize("body", [StorageAppend, StorageWrite])
async def test_what_is_no_file_is_not_replaced_by_one(
    scene: Scene,
    shared: Path,
    tmp_path: Path,
    body: type[StorageAppend | StorageWrite],
) -> None:
    await mounted(scene, shared)
    (shared / "link").symlink_to(tmp_path / "secret.txt")
    (shared / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(shared / "pipe")
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(InvalidPath, match="is no file"):
            await scene.ask(body(f"host/{name}", "x"))
        assert not (shared / name).is_file() or (shared / name).is_symlink()
    assert (tmp_path / "secret.txt").read_text() == "secret"


async def test_no_hostile_path_leads_out_of_a_mount(
    scene: Scene, shared: Path, tmp_path: Path
) -> None:
    await mounted(scene, shared)
    outside = names_in(tmp_path), names_in(tmp_path / "outside")
    refused = 0
    for path in HOSTILE_PATHS:
        for body in (StorageRead(f"host/{path}"), StorageWrite(f"host/docs/{path}", "x")):
            try:
                await scene.ask(body)
            except InvalidPath:
                refused += 1
            except NotFound:  # such as `~`, which is a plain name but at the beginning
                continue
    assert refused >= 2 * (len(HOSTILE_PATHS) - 10)
    assert (names_in(tmp_path), names_in(tmp_path / "outside")) == outside


async def test_a_link_that_is_swapped_in_meanwhile_leads_nowhere(
    shared: Path, tmp_path: Path
) -> None:
    """A directory is exchanged for a link to the outside, again and again, beside reads."""
    host = HostDirectory(AllowedDirectories([str(shared)]), str(shared))
    (shared / "docs" / "secret.txt").write_text("harmless")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "outside")
    reading = True

    def swap() -> None:
        while reading:
            os.rename(shared / "docs", tmp_path / "away")
            os.rename(link, shared / "docs")
            os.rename(shared / "docs", link)
            os.rename(tmp_path / "away", shared / "docs")

    def read() -> set[bytes]:
        found = set()
        for _ in range(3_000):
            try:
                found.add(host.read("docs/secret.txt", 0, 100)[0])
            except NotFound:
                found.add(b"")
        return found

    swapping = asyncio.create_task(asyncio.to_thread(swap))
    try:
        found = await asyncio.to_thread(read)
    finally:
        reading = False
        await swapping
    assert found <= {b"harmless", b""}
    assert b"harmless" in found
