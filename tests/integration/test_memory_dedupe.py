"""With `dedupe` a note that says the same is returned: of many that ask at once, one adds."""

from __future__ import annotations

import asyncio

import pytest

from aios_broker.contract.memory import (
    Evolved,
    MemoryAdd,
    MemoryGet,
    MemoryList,
    MemoryLog,
    MemoryRemove,
    MemoryTtl,
    MemoryUpdate,
    Note,
)
from tests.state_scene import StateScene


async def notes_of(scene: StateScene, agent: str = "ann") -> list[Note]:
    listed = await scene.ask(agent, MemoryList())
    return list(listed.notes)


async def test_the_same_text_is_one_note(scene: StateScene) -> None:
    first = await scene.ask("ann", MemoryAdd("Tea at five", tags=("a",), dedupe=True))
    again = await scene.ask("ann", MemoryAdd("Tea at five", tags=("b",), dedupe=True))
    assert (first.existing, again.existing, again.id) == (False, True, first.id)
    assert again.tags == ("a",)  # as it is: nothing is merged into it
    assert not (await scene.ask("ann", MemoryGet(first.id))).existing
    # Unless asked for, another one is made; the oldest is the one that is there.
    other = await scene.ask("ann", MemoryAdd("Tea at five"))
    assert (other.existing, other.id == first.id) == (False, False)
    assert (await scene.ask("ann", MemoryAdd("Tea at five", dedupe=True))).id == first.id


@pytest.mark.parametrize(
    "text", ["tea at five", "Tea at five ", "Tea at  five", "Te\u0301a at five"]
)
async def test_another_text_is_another_note(scene: StateScene, text: str) -> None:
    await scene.ask("ann", MemoryAdd("Tea at five"))
    assert not (await scene.ask("ann", MemoryAdd(text, dedupe=True))).existing


async def test_what_is_not_there_is_not_found(scene: StateScene) -> None:
    """Of others, changed since, deleted, expired, or a turn of a log."""
    await scene.ask("bob", MemoryAdd("tea"))
    changed = await scene.ask("ann", MemoryAdd("tea"))
    await scene.ask("ann", MemoryUpdate(changed.id, content="coffee"))
    removed = await scene.ask("ann", MemoryAdd("tea"))
    await scene.approved("ann", MemoryRemove(removed.id))
    await scene.ask("ann", MemoryLog("user", "tea"))
    await scene.ask("ann", MemoryAdd("tea", ttl_s=1.0))
    async with scene.store.as_steward() as cursor:
        await cursor.execute(
            "UPDATE note SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL"
        )
    assert not (await scene.ask("ann", MemoryAdd("tea", dedupe=True))).existing
    assert (await scene.ask("ann", MemoryAdd("coffee", dedupe=True))).id == changed.id


async def test_many_at_once_make_one(scene: StateScene) -> None:
    await scene.known("ann")
    adds = [MemoryAdd(text, dedupe=True) for text in ("tea", "coffee") for _ in range(8)]
    made = await asyncio.gather(*(scene.ask("ann", add) for add in adds))
    assert sorted(note.content for note in await notes_of(scene)) == ["coffee", "tea"]
    assert [note.existing for note in made].count(False) == 2


async def test_it_lives_as_long_as_the_new_one_would(scene: StateScene) -> None:
    first = await scene.ask("ann", MemoryAdd("tea", ttl_s=100.0))
    sooner = await scene.ask("ann", MemoryAdd("tea", ttl_s=10.0, dedupe=True))
    assert sooner.expires_at == first.expires_at
    later = await scene.ask("ann", MemoryAdd("tea", ttl_s=1_000.0, dedupe=True))
    assert later.id == first.id
    assert later.expires_at > first.expires_at + 800
    for_good = await scene.ask("ann", MemoryAdd("tea", dedupe=True))
    assert (for_good.id, for_good.expires_at, for_good.version) == (first.id, None, 1)
    assert (await scene.ask("ann", MemoryGet(first.id))).expires_at is None
    await scene.approved("ann", MemoryTtl(first.id, 50.0))


async def test_a_model_is_not_asked_about_what_is_there(scene: StateScene) -> None:
    first = await scene.ask("ann", MemoryAdd("tea"))
    evolved = await scene.ask("ann", MemoryAdd("tea", evolve=True, dedupe=True))
    assert isinstance(evolved, Evolved)
    assert (evolved.note.id, evolved.note.existing, evolved.changed) == (first.id, True, ())
    assert scene.answers.asked == []
