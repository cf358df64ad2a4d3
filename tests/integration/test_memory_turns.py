"""Turns of a conversation know what was said before them."""

from __future__ import annotations

import asyncio

import pytest

from aios_broker.contract.memory import MemoryAdd, MemoryLog, MemorySearch, MemoryShare
from aios_broker.contract.names import SearchMode
from tests.state_scene import StateScene


async def test_a_turn_is_found_by_the_question_that_it_answers(scene: StateScene) -> None:
    for number in range(20):
        await scene.ask("ann", MemoryAdd(f"holiday number {number}"))
    await scene.ask("ann", MemoryLog("user", "which hotel do you want for the holiday in Rome?"))
    await scene.ask("ann", MemoryLog("assistant", "the cheapest one"))
    await scene.embedded()
    found = await scene.ask("ann", MemorySearch("hotel in Rome", k=2))
    assert [note.content for note in found.notes] == [
        "which hotel do you want for the holiday in Rome?",
        "the cheapest one",
    ]
    alone = await scene.ask("ann", MemorySearch("hotel in Rome", k=5, mode="keyword"))
    assert "the cheapest one" not in {note.content for note in alone.notes}


async def test_turns_are_numbered_within_their_program_and_not_across_a_pause(
    scene: StateScene,
) -> None:
    for program in ("one", "two"):
        for text in ("first", "second"):
            log = MemoryLog("user", f"{text} of {program}")
            await scene.run(scene.syscall("ann", log, program=program))
    async with scene.store.as_steward() as cursor:
        await cursor.execute("UPDATE note SET created_at = created_at - interval '7 hours'")
    await scene.run(scene.syscall("ann", MemoryLog("user", "after a pause"), program="two"))
    await scene.ask("ann", MemoryAdd("no turn"))
    rows = await scene.rows("SELECT content, turn FROM note ORDER BY seq")
    assert [(row.content, row.turn) for row in rows] == [
        ("first of one", 1),
        ("second of one", 2),
        ("first of two", 1),
        ("second of two", 2),
        ("after a pause", 4),
        ("no turn", None),
    ]


async def test_turns_that_come_at_once_have_a_number_each(scene: StateScene) -> None:
    await scene.known("ann")
    logs = [MemoryLog("user", f"turn {number}") for number in range(8)]
    await asyncio.gather(*(scene.ask("ann", log) for log in logs))
    rows = await scene.rows("SELECT turn FROM note ORDER BY turn")
    assert [row.turn for row in rows] == list(range(1, 9))


async def test_a_neighbour_outside_the_search_is_no_result(scene: StateScene) -> None:
    await scene.ask("ann", MemoryLog("user", "which hotel in Rome?"))
    await scene.ask("ann", MemoryLog("tool", "the cheapest one", tool="booking"))
    await scene.embedded()
    found = await scene.ask("ann", MemorySearch("hotel in Rome", category="tool"))
    assert [note.content for note in found.notes] == ["the cheapest one"]


@pytest.mark.parametrize("mode", ["hybrid", "semantic"])
async def test_a_turn_that_is_shared_alone_tells_nothing_of_the_turn_before(
    scene: StateScene, mode: SearchMode
) -> None:
    await scene.known("bob")
    await scene.ask("ann", MemoryLog("user", "the passphrase is heliotrope"))
    later = await scene.ask("ann", MemoryLog("assistant", "the cheapest one"))
    await scene.ask("ann", MemoryShare(note=later.id, agent="bob"))
    await scene.ask("bob", MemoryAdd("a note of bob's"))
    await scene.embedded()

    async def score(agent: str, query: str) -> list[float]:
        search = MemorySearch(query, mode=mode, shared=True)
        found = await scene.ask(agent, search)
        return [note.score for note in found.notes if note.id == later.id]

    assert await score("bob", "heliotrope passphrase") == await score("bob", "zebra elephant")
    assert await score("ann", "heliotrope passphrase") > await score("ann", "zebra elephant")
    if mode == "hybrid":  # by its own words it is found
        assert await score("bob", "cheapest") > [0.1]
