"""How much there may be of what can be piled up: refused by name, whatever operation it is of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from aios_broker.contract.access import AccessGrant, AccessGroupCreate, ObjectRef
from aios_broker.contract.errors import QuotaExceeded
from aios_broker.contract.limits import DEFAULT_LIMITS, OBJECT_KINDS, ObjectKind
from aios_broker.contract.memory import (
    MemoryAdd,
    MemoryClear,
    MemoryLog,
    MemoryRemove,
    MemoryUpdate,
)
from aios_broker.contract.storage import (
    StorageCopy,
    StorageCreate,
    StorageMkdir,
    StorageShare,
    StorageWrite,
)
from aios_broker.contract.syscall import Body
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.access.limits import LimitRow, limits, set_limit, unset_limit
from aios_workers.modules.memory import note as note_module
from tests.state_scene import StateScene


async def most(
    scene: StateScene, kind: ObjectKind, count: int, agent: str = "ann", tenant: str = "default"
) -> None:
    await set_limit(scene.store, LimitRow(tenant, agent, kind, count))


async def refused(scene: StateScene, kind: ObjectKind, body: Body, agent: str = "ann") -> str:
    with pytest.raises(QuotaExceeded) as error:
        await scene.ask(agent, body)
    assert error.value.field == f"quota.{kind}"
    return str(error.value)


async def test_notes_are_limited_by_number_and_room_is_made_by_removing_some(
    scene: StateScene,
) -> None:
    await most(scene, "notes", 2)
    first = await scene.ask("ann", MemoryAdd("one"))
    await scene.ask("ann", MemoryLog("user", "two"))
    told = await refused(scene, "notes", MemoryAdd("three"))
    assert "agent ann has as many notes as it may: 2" in told
    assert "aios quota limit" in told
    await refused(scene, "notes", MemoryLog("user", "three"))
    await scene.ask("bob", MemoryAdd("another agent's"))
    await scene.approved("ann", MemoryRemove(first.id))
    await scene.ask("ann", MemoryAdd("three"))
    await scene.approved("ann", MemoryClear())
    assert await used(scene) == (0, 0)


async def test_bytes_of_notes_count_their_old_versions_too(scene: StateScene) -> None:
    await most(scene, "note_bytes", 2_000)
    note = await scene.ask("ann", MemoryAdd("x" * 900))
    await refused(scene, "note_bytes", MemoryAdd("y" * 1_200))
    await scene.ask("ann", MemoryUpdate(note.id, content="z" * 900))
    await refused(scene, "note_bytes", MemoryUpdate(note.id, content="a" * 900))
    await refused(scene, "note_bytes", MemoryAdd("y" * 300))
    await scene.approved("ann", MemoryRemove(note.id))
    assert await used(scene) == (0, 0)
    await scene.ask("ann", MemoryAdd("y" * 1_200))


async def test_versions_that_are_pushed_out_are_not_counted_any_more(
    scene: StateScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(note_module, "KEPT_VERSIONS", 3)
    note = await scene.ask("ann", MemoryAdd("x" * 100, tags=("a", "bc"), metadata={"a": [1, "b"]}))
    sizes = [(await used(scene))[1]]
    for length in (10, 20, 30, 40, 50):
        await scene.approved("ann", MemoryUpdate(note.id, content="x" * length))
        sizes.append((await used(scene))[1])
    rest = sizes[0] - 100  # of each version: its tags and metadata
    assert rest > 0
    assert sizes[2] == 3 * rest + 100 + 10 + 20
    assert sizes[-1] == 3 * rest + 30 + 40 + 50


async def used(scene: StateScene) -> tuple[int, int]:
    """Return how many notes ann is counted for, and their bytes."""
    [row] = await scene.rows(
        "SELECT u.count, u.bytes FROM note_use u JOIN agent a ON a.id = u.owner_id "
        "WHERE a.name = 'ann'"
    )
    return row.count, row.bytes


async def test_files_and_directories_are_limited_in_trees_too(scene: StateScene) -> None:
    await most(scene, "directories", 4)  # the root is one
    await most(scene, "files", 3)
    await scene.ask("ann", StorageMkdir(path="/a"))
    await scene.ask("ann", StorageCreate(path="/a/1", content="one"))
    await scene.ask("ann", StorageCreate(path="/a/2", content="two"))
    await refused(scene, "files", StorageCopy(path="/a", to="/b"))
    await scene.ask("ann", StorageCreate(path="/a/3", content="three"))
    await refused(scene, "files", StorageCreate(path="/a/4", content="four"))
    await scene.approved("ann", StorageWrite(path="/a/3", content="again"))  # no new file
    await refused(scene, "directories", StorageCreate(path="/a/b/c/d/e/f", content="deep"))


async def test_links_and_grants_are_limited(scene: StateScene) -> None:
    await scene.known("bob", "eve")
    await most(scene, "links", 1)
    await most(scene, "grants", 1)
    await scene.ask("ann", StorageCreate(path="/f", content="text"))
    await scene.ask("ann", StorageShare(path="/f", link=True))
    await refused(scene, "links", StorageShare(path="/f", link=True))
    grants: Sequence[Body] = [
        AccessGrant(ObjectRef("file", name="/f"), ("read",), agent=name) for name in ("bob", "eve")
    ]
    await scene.ask("ann", grants[0])
    await refused(scene, "grants", grants[1])


async def test_what_waits_for_a_person_is_limited(scene: StateScene) -> None:
    await most(scene, "waiting_approvals", 1)
    notes = [await scene.ask("ann", MemoryAdd(text)) for text in ("one", "two")]
    with pytest.raises(NeedsApproval):
        await scene.ask("ann", MemoryRemove(notes[0].id))
    await refused(scene, "waiting_approvals", MemoryRemove(notes[1].id))


async def test_groups_and_agents_are_their_tenants(scene: StateScene) -> None:
    await scene.known("ann")
    await most(scene, "groups", 1, agent="")
    await scene.ask("ann", AccessGroupCreate("one"))
    assert "tenant default has as many groups" in await refused(
        scene, "groups", AccessGroupCreate("two")
    )
    [known] = await scene.rows("SELECT count(*) AS count FROM agent")
    await most(scene, "agents", known.count, agent="")
    with pytest.raises(QuotaExceeded) as error:
        await scene.known("one too many")
    assert error.value.field == "quota.agents"


async def test_no_limit_is_passed_by_those_who_add_at_the_same_time(scene: StateScene) -> None:
    """Each sees what the others have committed: of ten at once as many as there is room for."""
    names = tuple(f"agent-{number}" for number in range(10))
    await scene.known("ann", *names)
    await scene.ask("ann", StorageCreate(path="/f", content="text"))
    notes = [await scene.ask("ann", MemoryAdd(name)) for name in names]
    grants = [AccessGrant(ObjectRef("file", name="/f"), ("read",), agent=name) for name in names]
    limited: Sequence[tuple[ObjectKind, str, Sequence[Body]]] = (
        ("links", "ann", [StorageShare(path="/f", link=True) for _ in names]),
        ("grants", "ann", grants),
        ("groups", "", [AccessGroupCreate(name) for name in names]),
        ("waiting_approvals", "ann", [MemoryRemove(note.id) for note in notes]),
    )
    for kind, agent, bodies in limited:
        await most(scene, kind, 3, agent=agent)
        told = await asyncio.gather(
            *(scene.ask("ann", body) for body in bodies), return_exceptions=True
        )
        over = [each for each in told if isinstance(each, QuotaExceeded)]
        assert [each.field for each in over] == [f"quota.{kind}"] * 7, told
    [known] = await scene.rows("SELECT count(*) AS count FROM agent")
    await most(scene, "agents", known.count + 3, agent="")
    told = await asyncio.gather(
        *(scene.known(f"new-{number}") for number in range(10)), return_exceptions=True
    )
    assert sum(isinstance(each, QuotaExceeded) for each in told) == 7


async def test_the_narrowest_limit_holds_and_the_built_in_one_comes_back(
    scene: StateScene,
) -> None:
    await most(scene, "notes", 0, agent="", tenant="")
    await refused(scene, "notes", MemoryAdd("a"))
    await most(scene, "notes", 1, agent="")
    await scene.ask("ann", MemoryAdd("a"))
    await refused(scene, "notes", MemoryAdd("b"))
    await most(scene, "notes", 2)
    await scene.ask("ann", MemoryAdd("b"))
    await refused(scene, "notes", MemoryAdd("c"))
    for whose in (("default", "ann"), ("default", ""), ("", "")):
        await unset_limit(scene.store, LimitRow(*whose, "notes", 0))
    await scene.ask("ann", MemoryAdd("c"))
    async with scene.store.as_steward() as cursor:
        rows = await limits(cursor)
    assert {row.kind: row.most for row in rows} == {
        kind: DEFAULT_LIMITS[kind].most for kind in OBJECT_KINDS if kind != "file_bytes"
    }


@pytest.fixture(autouse=True)
async def as_it_was(scene: StateScene) -> AsyncIterator[None]:
    """Leave no limit of everybody's behind for other tests of this server."""
    yield
    for kind in OBJECT_KINDS:
        await unset_limit(scene.store, LimitRow("", "", kind, 0))
