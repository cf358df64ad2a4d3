"""The storage module, operation by operation, on a real Postgres."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aios_broker.contract.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidPath,
    InvalidSyscall,
    NotFound,
    ObjectLocked,
    QuotaExceeded,
    UnknownAgent,
    VersionConflict,
)
from aios_broker.contract.storage import (
    StorageAppend,
    StorageCopy,
    StorageCreate,
    StorageDelete,
    StorageDiff,
    StorageList,
    StorageLock,
    StorageMkdir,
    StorageMove,
    StorageOpen,
    StorageRead,
    StorageRollback,
    StorageSearch,
    StorageShare,
    StorageStat,
    StorageUnlock,
    StorageUnshare,
    StorageVersions,
    StorageWrite,
)
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.access.limits import LimitRow, set_limit
from tests.storage_scene import Scene, storage_scene


@pytest_asyncio.fixture
async def scene(database_url: str) -> AsyncIterator[Scene]:
    async with storage_scene(
        database_url, storage_max_bytes=100_000, storage_keep_versions=5
    ) as scene:
        await scene.store.vouched("bob", "default")
        yield scene


async def read(scene: Scene, path: str, agent: str = "ann", **fields: object) -> str:
    result = await scene.ask(StorageRead(path, **fields), agent)  # type: ignore[arg-type]
    return str(result.content)


async def paths(scene: Scene, path: str = "/", agent: str = "ann", **fields: object) -> list[str]:
    result = await scene.ask(StorageList(path, **fields), agent)  # type: ignore[arg-type]
    return [entry.path for entry in result.entries]


async def used_bytes(scene: Scene, agent: str = "ann") -> tuple[int, int]:
    """Return what the account says, and what is there."""
    [row] = await scene.rows(
        "SELECT storage_used_bytes AS used, (SELECT coalesce(sum(size_bytes), 0) FROM blob "
        "WHERE owner_id = a.id) AS kept FROM agent a WHERE name = %s",
        agent,
    )
    return row.used, int(row.kept)


async def test_a_file_is_made_read_and_changed_version_by_version(scene: Scene) -> None:
    made = await scene.entry(StorageCreate("notes/a.md", "one"))
    assert (made.path, made.version, made.size_bytes) == ("/notes/a.md", 1, 3)
    with pytest.raises(AlreadyExists):
        await scene.ask(StorageCreate("/notes/a.md", "two"))
    assert (await scene.entry(StorageWrite("notes/a.md", "two"))).version == 2
    assert (await scene.entry(StorageAppend("notes/a.md", " three"))).version == 3
    assert await read(scene, "notes/a.md") == "two three"
    assert await read(scene, "notes/a.md", version=1) == "one"
    listed = await scene.ask(StorageVersions("notes/a.md"))
    assert [(v.version, v.operation, v.by) for v in listed.versions] == [
        (3, "append", "ann"),
        (2, "write", "ann"),
        (1, "create", "ann"),
    ]
    difference = await scene.ask(StorageDiff("notes/a.md", 1))
    assert "-one" in difference.diff
    assert "+two three" in difference.diff


async def test_what_is_not_utf8_comes_back_as_it_was(scene: Scene) -> None:
    content = bytes(range(256))
    await scene.ask(StorageCreate("b.bin", base64.b64encode(content).decode(), encoding="base64"))
    result = await scene.ask(StorageRead("b.bin"))
    assert result.encoding == "base64"
    assert base64.b64decode(result.content) == content
    with pytest.raises(InvalidSyscall, match=r"body\.content"):
        await scene.ask(StorageCreate("c.bin", "%%%", encoding="base64"))


async def test_a_text_is_read_piece_by_piece_without_a_cut_character(scene: Scene) -> None:
    text = "aé€😀" * 20
    await scene.ask(StorageCreate("t", text))
    got, offset, end = "", 0, False
    while not end:
        piece = await scene.ask(StorageRead("t", offset=offset, max_bytes=5))
        assert piece.encoding == "utf-8"
        got, offset, end = got + piece.content, offset + len(piece.content.encode()), piece.end
    assert got == text


async def test_if_version_refuses_a_change_of_another_version(scene: Scene) -> None:
    await scene.ask(StorageWrite("a", "1", if_version=0))
    for version in (0, 2):
        with pytest.raises(VersionConflict):
            await scene.ask(StorageWrite("a", "x", if_version=version))
    assert (await scene.entry(StorageWrite("a", "2", if_version=1))).version == 2


async def test_if_version_refuses_an_append_to_another_version(scene: Scene) -> None:
    await scene.ask(StorageAppend("a", "1", if_version=0))
    for version in (0, 2):
        with pytest.raises(VersionConflict):
            await scene.ask(StorageAppend("a", "x", if_version=version))
    assert (await scene.entry(StorageAppend("a", "2", if_version=1))).size_bytes == 2


async def test_a_syscall_that_is_run_again_changes_nothing_and_answers_the_same(
    scene: Scene,
) -> None:
    bodies = [
        StorageCreate("d/a", "1"),
        StorageAppend("d/a", "2"),
        StorageWrite("d/a", "3"),
        StorageRollback("d/a", version=1),
        StorageMove("d/a", "d/b"),
        StorageCopy("d/b", "c"),
        StorageLock("c"),
        StorageUnlock("c"),
        StorageMkdir("e/f"),
        StorageShare("c", agent="bob"),
        StorageUnshare("c"),
        StorageDelete("c"),
        StorageShare("d/b", link=True),
        StorageDelete("d", recursive=True),
    ]
    for body in bodies:
        first = await scene.ask(body)
        assert await scene.again() == first, body
    versions = await scene.rows("SELECT count(*) AS n FROM file_version")
    assert versions[0].n == 0


async def test_directories_are_made_listed_page_by_page_and_emptied(scene: Scene) -> None:
    for path in ("a/1", "a/2", "a/b/3", "ab", "a%/x", "a_/y"):
        await scene.ask(StorageCreate(path, path))
    assert await paths(scene) == ["/a", "/a%", "/a_", "/ab"]
    assert await paths(scene, "a") == ["/a/1", "/a/2", "/a/b"]
    everything = await paths(scene, "a/", recursive=True)
    assert everything == ["/a/1", "/a/2", "/a/b", "/a/b/3"]
    page = await scene.ask(StorageList("a", recursive=True, limit=2))
    assert page.more
    assert await paths(scene, "a", recursive=True, after=page.entries[-1].path) == everything[2:]
    with pytest.raises(InvalidSyscall, match="recursive"):
        await scene.ask(StorageDelete("a"))
    await scene.ask(StorageDelete("a", recursive=True))
    assert await paths(scene) == ["/a%", "/a_", "/ab"]
    with pytest.raises(NotFound):
        await scene.ask(StorageStat("a/1"))
    assert await used_bytes(scene) == (len("ab") + len("a%/x") + len("a_/y"),) * 2


async def test_moves_keep_history_and_carry_what_is_below(scene: Scene) -> None:
    await scene.ask(StorageCreate("a/b/c", "1"))
    await scene.ask(StorageWrite("a/b/c", "2"))
    await scene.ask(StorageMove("a/b", "x/y"))
    assert await paths(scene, recursive=True) == ["/a", "/x", "/x/y", "/x/y/c"]
    assert await read(scene, "x/y/c", version=1) == "1"
    rows = await scene.rows(
        "SELECT d.path, array(SELECT p.path FROM unnest(d.ancestors) WITH ORDINALITY u(id, n) "
        "JOIN directory p ON p.id = u.id ORDER BY n) AS way FROM directory d ORDER BY path"
    )
    assert {row.path: row.way for row in rows} == {
        "/": ["/"],
        "/a": ["/", "/a"],
        "/x": ["/", "/x"],
        "/x/y": ["/", "/x", "/x/y"],
    }
    with pytest.raises(InvalidPath):
        await scene.ask(StorageMove("x", "x/y/z"))
    with pytest.raises(InvalidPath):
        await scene.ask(StorageCreate("x/y/c/d", ""))
    await scene.ask(StorageCreate("z", "old"))
    with pytest.raises(AlreadyExists):
        await scene.ask(StorageMove("x/y/c", "z"))
    assert (await scene.entry(StorageMove("x/y/c", "z", overwrite=True))).version == 2
    assert await read(scene, "z") == "2"
    assert await used_bytes(scene) == (2, 2)


async def test_copies_are_files_of_their_own(scene: Scene) -> None:
    await scene.ask(StorageCreate("a/b/c", "1"))
    await scene.ask(StorageCreate("a/d", "2"))
    await scene.ask(StorageCopy("a", "e"))
    assert await paths(scene, "e", recursive=True) == ["/e/b", "/e/b/c", "/e/d"]
    await scene.ask(StorageWrite("a/d", "3"))
    assert await read(scene, "e/d") == "2"
    with pytest.raises(InvalidPath):
        await scene.ask(StorageCopy("a", "a/f"))
    assert (await scene.entry(StorageCopy("a/d", "e/d", overwrite=True))).version == 2
    assert await used_bytes(scene) == (3, 3)


async def test_rollback_by_number_and_by_time(scene: Scene) -> None:
    await scene.ask(StorageCreate("a", "1"))
    between_s = time.time()
    await scene.ask(StorageWrite("a", "2"))
    scene.approvals.asked.clear()
    assert (await scene.entry(StorageRollback("a", at=between_s))).version == 3
    assert await read(scene, "a") == "1"
    assert [why.operation for why in scene.approvals.asked] == ["rollback"]
    with pytest.raises(NotFound):
        await scene.ask(StorageRollback("a", at=1.0))
    with pytest.raises(NotFound):
        await scene.ask(StorageRollback("a", version=9))
    with pytest.raises(InvalidSyscall):
        await scene.ask(StorageRollback("a"))
    scene.approvals.asked.clear()
    await scene.ask(StorageRollback("a", version=3))
    assert scene.approvals.asked == []  # nothing other is newer


async def test_old_versions_are_dropped_and_their_bytes_with_them(scene: Scene) -> None:
    for n in range(8):
        await scene.ask(StorageWrite("a", str(n)))
    listed = await scene.ask(StorageVersions("a"))
    assert [v.version for v in listed.versions] == [8, 7, 6, 5, 4]
    assert await used_bytes(scene) == (5, 5)
    with pytest.raises(NotFound):
        await read(scene, "a", version=3)


async def test_the_quota_counts_what_versions_keep_and_refuses_whole_changes(
    scene: Scene,
) -> None:
    await scene.ask(StorageCreate("a", "x" * 60_000))
    await scene.ask(StorageCopy("a", "b"))  # the same content: nothing more
    with pytest.raises(QuotaExceeded, match=r"bytes of files.*as it may: 100000") as error:
        await scene.ask(StorageWrite("a", "y" * 40_001))
    assert error.value.field == "quota.file_bytes"
    assert await read(scene, "a") == "x" * 60_000
    assert await used_bytes(scene) == (60_000, 60_000)
    await scene.ask(StorageWrite("a", "y" * 40_000))
    await set_limit(scene.store, LimitRow("default", "ann", "file_bytes", 100_001))
    await scene.ask(StorageCreate("c", "z"))
    with pytest.raises(QuotaExceeded):
        await scene.ask(StorageCreate("d", "w"))


async def test_a_lock_keeps_others_out_until_it_is_over(scene: Scene) -> None:
    await scene.ask(StorageCreate("d/a", "1"))
    await scene.ask(StorageShare("d", agent="bob", verbs=("read", "write")))
    locked = await scene.ask(StorageLock("d/a", owner="ann"), "bob")
    assert locked.locked_by == "bob"
    for body in (
        StorageWrite("d/a", "2"),
        StorageAppend("d/a", "2"),
        StorageDelete("d/a"),
        StorageMove("d/a", "b"),
        StorageMove("d", "e"),
        StorageDelete("d", recursive=True),
        StorageRollback("d/a", version=1),
        StorageLock("d/a"),
    ):
        with pytest.raises(ObjectLocked, match="bob"):
            await scene.ask(body)
    await scene.ask(StorageAppend("d/a", "2", owner="ann"), "bob")
    await scene.ask(StorageLock("d/a", ttl_s=0.001, owner="ann"), "bob")
    await asyncio.sleep(0.01)  # the lock's own time
    await scene.ask(StorageWrite("d/a", "3"))
    await scene.ask(StorageLock("d/a"))
    with pytest.raises(ObjectLocked, match="ann"):
        await scene.ask(StorageUnlock("d/a", owner="ann"), "bob")
    assert (await scene.entry(StorageUnlock("d/a"))).locked_by == ""


async def test_an_owner_breaks_whosever_lock_on_its_own_file(scene: Scene) -> None:
    await scene.ask(StorageCreate("d/a", "1"))
    for name in ("bob", "carl"):
        await scene.store.vouched(name, "default")
        await scene.ask(StorageShare("d", agent=name, verbs=("read", "write")))
    await scene.ask(StorageLock("d/a", ttl_s=86_400.0, owner="ann"), "bob")
    with pytest.raises(ObjectLocked, match="bob"):
        await scene.ask(StorageUnlock("d/a", owner="ann"), "carl")
    assert (await scene.entry(StorageUnlock("d/a"))).locked_by == ""
    await scene.ask(StorageAppend("d/a", "2"))
    await scene.ask(StorageAppend("d/a", "3", owner="ann"), "bob")


async def test_another_agents_files_are_not_there_until_they_are_shared(scene: Scene) -> None:
    await scene.ask(StorageCreate("d/a", "1"))
    for body in (
        StorageRead("d/a", owner="ann"),
        StorageStat("d/a", owner="ann"),
        StorageList("d", owner="ann"),
        StorageWrite("d/a", "x", owner="ann"),
        StorageDelete("d/a", owner="ann"),
        StorageCreate("d/b", "x", owner="ann"),
        StorageCopy("d/a", "mine", owner="ann"),
        StorageVersions("d/a", owner="ann"),
        StorageSearch("1", owner="ann"),
        StorageList(owner="ann"),
        StorageRead("no", owner="ann"),
    ):
        with pytest.raises(NotFound):
            await scene.ask(body, "bob")
    with pytest.raises(UnknownAgent):
        await scene.ask(StorageRead("d/a", owner="nobody"), "bob")
    await scene.ask(StorageShare("d", agent="bob"))
    assert await read(scene, "d/a", "bob", owner="ann") == "1"
    assert await paths(scene, "d", "bob", owner="ann") == ["/d/a"]
    for change in (
        StorageWrite("d/a", "x", owner="ann"),
        StorageCreate("d/b", "x", owner="ann"),
        StorageDelete("d/a", owner="ann"),
        StorageLock("d/a", owner="ann"),
        StorageMove("d/a", "d/c", owner="ann"),
        StorageMkdir("d/e", owner="ann"),
    ):
        with pytest.raises(AccessDenied):
            await scene.ask(change, "bob")
    assert (await scene.entry(StorageCopy("d/a", "mine", owner="ann"), "bob")).owner == "bob"
    await scene.ask(StorageUnshare("d", agent="bob"))
    with pytest.raises(NotFound):
        await scene.ask(StorageRead("d/a", owner="ann"), "bob")


async def test_a_grant_to_write_changes_the_owners_file_at_the_owners_expense(
    scene: Scene,
) -> None:
    await scene.ask(StorageCreate("d/a", "1"))
    await scene.ask(StorageShare("d", agent="bob", verbs=("read", "write")))
    await scene.ask(StorageWrite("d/a", "22", owner="ann"), "bob")
    await scene.ask(StorageCreate("d/e/b", "333", owner="ann"), "bob")
    assert await read(scene, "d/e/b") == "333"
    with pytest.raises(NotFound):
        await scene.ask(StorageMove("d/a", "outside", owner="ann"), "bob")
    assert await used_bytes(scene) == (6, 6)
    assert await used_bytes(scene, "bob") == (0, 0)
    listed = await scene.ask(StorageVersions("d/a"))
    assert [v.by for v in listed.versions] == ["bob", "ann"]


async def test_a_link_reads_one_file_until_it_expires_or_is_taken_back(scene: Scene) -> None:
    await scene.ask(StorageCreate("a", "1"))
    shared = await scene.ask(StorageShare("a", link=True))
    await scene.ask(StorageWrite("a", "2"))
    assert (await scene.ask(StorageOpen(shared.link), "bob")).content == "2"
    with pytest.raises(NotFound):
        await scene.ask(StorageRead("a", owner="ann"), "bob")
    with pytest.raises(NotFound):
        await scene.ask(StorageOpen(shared.link + "x"), "bob")
    assert all(
        shared.link not in row.digest for row in await scene.rows("SELECT * FROM share_link")
    )
    short = await scene.ask(StorageShare("a", link=True, ttl_s=0.001))
    await asyncio.sleep(0.01)  # the link's own time
    with pytest.raises(NotFound):
        await scene.ask(StorageOpen(short.link), "bob")
    await scene.ask(StorageUnshare("a"))
    with pytest.raises(NotFound):
        await scene.ask(StorageOpen(shared.link), "bob")


async def test_what_cannot_be_taken_back_is_asked_for_and_until_then_nothing_changes(
    scene: Scene,
) -> None:
    await scene.ask(StorageCreate("a", "1"))
    await scene.ask(StorageWrite("a", "2"))
    await scene.ask(StorageCreate("b", "3"))
    await scene.ask(StorageCreate("scratch/c", "4"))
    await scene.ask(StorageCreate("empty"))
    await scene.ask(StorageShare("a", link=True))
    scene.approvals.asked.clear()
    scene.approvals.is_closed = True
    expected = [
        (StorageWrite("a", "x"), "overwrite", True, False),
        (StorageWrite("empty", "x"), "overwrite", False, False),
        (StorageDelete("a"), "delete", True, False),
        (StorageDelete("scratch", recursive=True), "delete", True, True),
        (StorageWrite("scratch/c", "x"), "overwrite", False, True),
        (StorageMove("a", "b", overwrite=True), "delete", True, False),
        (StorageMove("a", "scratch/a"), "delete", True, False),
        (StorageCopy("a", "b", overwrite=True), "overwrite", True, False),
        (StorageRollback("a", version=1), "rollback", True, False),
        (StorageUnshare("a"), "unshare", True, False),
    ]
    for body, *_ in expected:
        with pytest.raises(NeedsApproval):
            await scene.ask(body)
    asked = [(why.operation, why.lossy, why.scratch) for why in scene.approvals.asked]
    assert asked == [tuple(rest) for _, *rest in expected]
    assert await read(scene, "a") == "2"
    assert await paths(scene, recursive=True) == ["/a", "/b", "/empty", "/scratch", "/scratch/c"]


async def test_concurrent_appends_lose_nothing(scene: Scene) -> None:
    await asyncio.gather(*(scene.ask(StorageAppend("log", f"{n},")) for n in range(40)))
    assert sorted((await read(scene, "log")).split(",")[:-1], key=int) == [
        str(n) for n in range(40)
    ]


async def test_search_sees_a_write_at_once_below_a_path_and_by_directory(scene: Scene) -> None:
    await scene.ask(StorageCreate("a/cats.md", "The cat sleeps. " * 100))
    await scene.ask(StorageCreate("a/more.md", "A cat again."))
    await scene.ask(StorageCreate("b/dogs.md", "The dog barks at a cat."))

    async def found(**fields: object) -> list[str]:
        body = StorageSearch("cat", mode="keyword", **fields)  # type: ignore[arg-type]
        return [hit.path for hit in (await scene.ask(body)).hits]

    assert sorted(await found()) == ["/a/cats.md", "/a/more.md", "/b/dogs.md"]
    assert len(await found(k=2)) == 2
    assert await found(path="b") == ["/b/dogs.md"]
    assert sorted(await found(group_by="directory")) == ["/a", "/b"]
    await scene.ask(StorageWrite("b/dogs.md", "only dogs"))
    assert "/b/dogs.md" not in await found()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a\x00b", "a\\b", "a\uff0fb", "x" * 300])
async def test_a_path_that_leads_outside_is_refused_by_every_operation(
    scene: Scene, path: str
) -> None:
    for body in (
        StorageCreate(path),
        StorageRead(path),
        StorageWrite(path, ""),
        StorageList(path),
        StorageMove("a", path),
        StorageCopy("a", path),
        StorageDelete(path),
        StorageMkdir(path),
        StorageShare(path, link=True),
        StorageSearch("x", path=path),
        StorageLock(path),
    ):
        if isinstance(body, StorageMove | StorageCopy):
            await scene.ask(StorageWrite("a", "1"))
        with pytest.raises(InvalidPath):
            await scene.ask(body)
