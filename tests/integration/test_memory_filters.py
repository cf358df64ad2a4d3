"""Notes are found, listed and deleted by what they are, when and in which program they came."""

from __future__ import annotations

import time
from typing import Any

import pytest

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.memory import (
    MAX_NOTE_BYTES,
    MemoryAdd,
    MemoryClear,
    MemoryGet,
    MemoryList,
    MemorySearch,
    MemoryUpdate,
)
from aios_workers.approvals.service import NeedsApproval
from tests.state_scene import StateScene


async def fill(scene: StateScene) -> dict[str, str]:
    """Add four notes about apples; return their ids."""
    ids = {}
    for name, tags, metadata, program in (
        ("one", ("red",), {"room": 1, "open": True}, "first"),
        ("two", ("red", "old"), {"room": 2}, "first"),
        ("three", ("green",), {"room": 1}, "second"),
        ("four", (), {}, "second"),
    ):
        body = MemoryAdd(f"apples {name}", tags=tags, metadata=metadata)
        ids[name] = (await scene.run(scene.syscall("ann", body, program=program))).id
    return ids


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({"tags": ("red", "old")}, {"two"}),
        ({"any_tags": ("old", "green")}, {"two", "three"}),
        ({"metadata": {"room": 1}}, {"one", "three"}),
        ({"metadata": {"room": 1, "open": True}}, {"one"}),
        ({"in_program": "second"}, {"three", "four"}),
        ({"in_program": "second", "any_tags": ("green",)}, {"three"}),
        ({"since": 2e9}, set()),
        ({"until": 2e9, "metadata": {"room": 2}}, {"two"}),
    ],
)
async def test_search_list_and_delete_mean_the_same_notes(
    scene: StateScene, only: dict[str, Any], expected: set[str]
) -> None:
    ids = await fill(scene)
    await scene.embedded()
    for mode in ("keyword", "semantic", "hybrid"):
        found = await scene.ask("ann", MemorySearch("apples", mode=mode, **only))
        assert {note.id for note in found.notes} == {ids[name] for name in expected}
    listed = await scene.ask("ann", MemoryList(**only))
    assert {note.id for note in listed.notes} == {ids[name] for name in expected}
    if expected:
        await scene.approved("ann", MemoryClear(**only))
    left = await scene.ask("ann", MemoryList())
    assert {note.id for note in left.notes} == {ids[name] for name in ids.keys() - expected}


async def test_a_delete_by_filter_waits_for_a_person_who_sees_how_many(scene: StateScene) -> None:
    await fill(scene)
    syscall = scene.syscall("ann", MemoryClear(any_tags=("red",)))
    with pytest.raises(NeedsApproval, match="delete 2 of the notes"):
        await scene.run(syscall)
    assert len((await scene.ask("ann", MemoryList())).notes) == 4


async def test_newest_first_pages_and_many_by_their_ids(scene: StateScene) -> None:
    ids = await fill(scene)
    names = list(ids.values())
    page = await scene.ask("ann", MemoryList(newest_first=True, limit=2))
    assert ([note.id for note in page.notes], page.more) == (names[:1:-1], True)
    rest = await scene.ask("ann", MemoryList(newest_first=True, after=page.notes[-1].id))
    assert ([note.id for note in rest.notes], rest.more) == (names[1::-1], False)
    some = await scene.ask("ann", MemoryList(notes=(ids["four"], ids["one"], "0" * 32)))
    assert [note.id for note in some.notes] == [ids["one"], ids["four"]]


async def test_time_is_that_of_adding(scene: StateScene) -> None:
    await fill(scene)
    middle = time.time()
    await scene.ask("ann", MemoryAdd("apples of today"))
    later = MemorySearch("apples", mode="keyword", since=middle)
    assert len((await scene.ask("ann", later)).notes) == 1
    before = MemorySearch("apples", mode="keyword", until=middle)
    assert len((await scene.ask("ann", before)).notes) == 4


async def test_scores_have_a_threshold(scene: StateScene) -> None:
    await fill(scene)
    await scene.embedded()
    found = await scene.ask("ann", MemorySearch("apples four"))
    scores = [note.score for note in found.notes]
    assert all(0.0 <= score <= 1.0 for score in scores)
    best = await scene.ask("ann", MemorySearch("apples four", min_score=scores[0] - 1e-6))
    assert [note.content for note in best.notes] == ["apples four"]


async def test_metadata_is_merged(scene: StateScene) -> None:
    note = await scene.ask("ann", MemoryAdd("x", metadata={"a": 1, "b": 2.0, "c": 3}))
    after = await scene.ask("ann", MemoryUpdate(note.id, metadata={"a": 4, "c": None, "d": 5}))
    assert after.metadata == {"a": 4, "b": 2.0, "d": 5}
    assert isinstance(after.metadata["b"], float)


async def test_numbers_of_metadata_come_back_as_they_were_given(scene: StateScene) -> None:
    given: dict[str, Any] = {
        "floats": [1.0, 1e15, 1e16, -1e16, 1.2345e17, 1e23, 1.7976931348623157e308, 5e-324],
        "integers": [2**53 + 1, 10**16, -(2**63), 2**64 - 1],
        "inside": {"a": [{"b": 1e16}]},
        "others": [True, None, "1e16"],
    }
    note = await scene.ask("ann", MemoryAdd("x", metadata=given))
    await scene.ask("ann", MemoryUpdate(note.id, content="y"))
    old = await scene.ask("ann", MemoryGet(note.id, version=1))
    [listed] = (await scene.ask("ann", MemoryList(metadata={"inside": given["inside"]}))).notes
    for read in (old, listed, await scene.ask("ann", MemoryGet(note.id))):
        assert repr(sorted(read.metadata.items())) == repr(sorted(given.items()))


async def test_a_notes_size_is_counted_in_bytes(scene: StateScene) -> None:
    with pytest.raises(InvalidSyscall, match="bytes") as refused:
        await scene.ask("ann", MemoryAdd("é" * (MAX_NOTE_BYTES // 2 + 1)))
    assert refused.value.field == "content"
    await scene.ask("ann", MemoryAdd("é" * (MAX_NOTE_BYTES // 2)))
