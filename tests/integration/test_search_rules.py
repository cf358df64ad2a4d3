"""A phrase in quotes and a word after `-` bind every mode of search, in small scopes and large."""

from __future__ import annotations

import numpy as np
import pytest

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.memory import (
    MemoryAdd,
    MemoryContext,
    MemoryList,
    MemoryLog,
    MemorySearch,
    MemoryShare,
)
from aios_broker.contract.names import SearchMode
from aios_broker.contract.storage import StorageSearch, StorageWrite
from aios_broker.contract.syscall import Body, Syscall, check_syscall, decode_syscall, new_id
from aios_broker.postgres.store import Store
from aios_workers.search.corpora import NoteQuery
from aios_workers.search.query import read_query
from aios_workers.search.ranking import EXACT_ROWS, find
from aios_workers.search.words import MOST_MATCHES
from benchmarks.search.notes import Synthetic, insert
from tests.state_scene import HashedWords, StateScene

MODES: tuple[SearchMode, ...] = ("keyword", "semantic", "hybrid")
MANY = EXACT_ROWS + 1_000  # more than are compared one by one
TEXTS = (
    "we stay in a hotel near the station",
    "the station has a hotel, and is near",
    "a hostel near the station",
    "the hotel burned down",
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("hotel -station", {3}),
        ('"near the station" hotel', {0, 2}),
        ('hotel station -"near the station"', {1, 3}),
        ('hotel "near the station" -hostel', {0}),
        ('"near the station" or "burned down"', {0, 2, 3}),
        ('"station near" hotel', set()),
    ],
)
async def test_rules_bind_every_mode(
    scene: StateScene, mode: SearchMode, query: str, expected: set[int]
) -> None:
    for text in TEXTS:
        await scene.ask("ann", MemoryAdd(text))
    await scene.embedded()
    found = await scene.ask("ann", MemorySearch(query, mode=mode))
    assert {TEXTS.index(note.content) for note in found.notes} == expected


@pytest.mark.parametrize("mode", MODES)
async def test_rules_bind_what_is_shared_and_the_turns_beside_a_hit(
    scene: StateScene, mode: SearchMode
) -> None:
    await scene.known("ann", "bob")
    await scene.ask("bob", MemoryLog("user", "which hotel near the station?"))
    await scene.ask("bob", MemoryLog("assistant", "the cheapest"))
    await scene.ask("bob", MemoryShare(agent="ann"))
    await scene.ask("ann", MemoryAdd("a hotel far away"))
    await scene.embedded()
    search = MemorySearch('hotel "near the station"', mode=mode, shared=True)
    found = await scene.ask("ann", search)
    assert [note.content for note in found.notes] == ["which hotel near the station?"]


@pytest.mark.parametrize("mode", MODES)
async def test_rules_bind_each_part_of_a_file(scene: StateScene, mode: SearchMode) -> None:
    await scene.ask("ann", StorageWrite("a.txt", "a hotel near the station"))
    await scene.ask("ann", StorageWrite("b.txt", "a hotel far away"))
    await scene.embedded()
    for query, expected in (('hotel "near the station"', "/a.txt"), ("hotel -station", "/b.txt")):
        found = await scene.ask("ann", StorageSearch(query, mode=mode))
        assert [hit.path for hit in found.hits] == [expected]


async def test_what_is_recalled_for_a_message_is_not_ruled_by_its_quotes(
    scene: StateScene,
) -> None:
    await scene.ask("ann", MemoryAdd("the hotel burned down"))
    await scene.embedded()
    recall = await scene.ask("ann", MemoryContext('he said "what a hotel" -down'))
    assert "burned" in recall.text


async def test_rules_bind_large_searches(database_url: str) -> None:
    """By the vectors' index, by the words' index where a phrase is rare, and where nothing is."""
    synthetic, store = Synthetic(), Store(database_url)
    try:
        agent = await store.vouched("ann", "default")
        texts = [f"often said {number} {synthetic.text()}" for number in range(MANY)]
        for at in range(MOST_MATCHES // 2):
            texts[at] = texts[at].replace("often said", "seldom so said")
        vectors = synthetic.vectors(MANY)
        ids = insert(database_url, [agent.id] * MANY, texts, vectors)
        for query, there, absent in (
            ('"often said" words', "often said", "nowhere"),
            ('"seldom so said" words', "seldom so said", "nowhere"),
            ("words -seldom", "", "seldom"),
            ("words -often", "", "often"),
            ('"said often" words', "said often", "nowhere"),
        ):
            said = read_query(query)
            kept = [at for at, text in enumerate(texts) if there in text and absent not in text]
            nearest = sorted(kept, key=lambda at: -float(vectors[at] @ vectors[0]))[:10]
            for mode in ("semantic", "hybrid"):
                asked = NoteQuery(said.text, 10, mode, owners=(agent.id,), rules=said.rules)
                async with store.as_agent(agent) as cursor:
                    found = await find(cursor, HashedWords(), asked, np.asarray(vectors[0]))
                names = [note_id for (_, note_id), _ in found]
                assert set(names) <= {ids[at] for at in kept}
                assert len(names) == min(10, len(kept))
                if mode == "semantic":
                    assert len({ids[at] for at in nearest} & set(names)) >= min(8, len(kept))
    finally:
        await store.aclose()


@pytest.mark.parametrize("query", ["-hotel", '-"near the station" -hotel'])
async def test_what_looks_for_nothing_is_refused(scene: StateScene, query: str) -> None:
    bodies: tuple[Body, ...] = (MemorySearch(query), StorageSearch(query))
    for body in bodies:
        with pytest.raises(InvalidSyscall, match="only what must not") as refused:
            await scene.ask("ann", body)
        assert refused.value.field == "body.query"


def test_blank_queries_and_times_that_end_before_they_begin_are_refused() -> None:
    for build in (
        lambda: MemorySearch(" \n"),
        lambda: MemoryContext("\t"),
        lambda: StorageSearch(" "),
    ):
        with pytest.raises(InvalidSyscall, match="blank") as refused:
            build()
        assert (refused.value.field, refused.value.remedy is None) == ("body.query", False)
    with pytest.raises(InvalidSyscall, match=r"\(1700000001\.5\) is after `until`") as refused:
        MemoryList(since=1_700_000_001.5, until=1_700_000_000)
    assert (refused.value.field, refused.value.remedy is None) == ("body.since", False)
    assert MemoryList(since=1.0, until=1.0).since == 1.0  # an empty time is none that is wrong


def test_they_are_refused_of_who_sends_json_too() -> None:
    sent = b'{"id":"%s","agent":"ann","body":{"type":"memory.clear","since":2,"until":1}}'
    with pytest.raises(InvalidSyscall) as refused:
        decode_syscall(sent % new_id().encode())
    assert refused.value.field == "body.since"
    check_syscall(Syscall(new_id(), "ann", MemorySearch("x", since=1, until=2)))
