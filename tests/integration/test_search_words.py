"""Search by words is BM25 over what its owner has now, whatever was written, changed or expired."""

from __future__ import annotations

import random

import pytest

from aios_broker.contract.memory import MemoryAdd, MemorySearch, MemoryShare, MemoryUpdate, Note
from aios_broker.contract.storage import StorageAppend, StorageWrite
from aios_workers.search.words import MOST_MATCHES, MOST_WORDS, lexemes, matching
from benchmarks.search.plain_bm25 import PlainBm25
from tests.state_scene import StateScene

VOCABULARY = ["apple", "banana", "cherry", "kiwi", "grape", "lemon", "mango", "olive", "peach"]
STEPS = 90

_KEPT = "SELECT corpus, owner_id, word, texts FROM word_use"
_COUNTED = """
    SELECT corpus, owner_id, w.lexeme AS word, count(*) AS texts FROM (
        SELECT 'note' AS corpus, owner_id, words FROM note
        UNION ALL SELECT 'file_chunk', owner_id, words FROM file_chunk
    ) t, unnest(t.words) w GROUP BY 1, 2, 3
"""
_KEPT_TEXTS = "SELECT corpus, owner_id, texts, length FROM text_use WHERE texts > 0"
_COUNTED_TEXTS = """
    SELECT 'note' AS corpus, owner_id, count(*) AS texts, sum(length)::bigint AS length
      FROM note GROUP BY 2
    UNION ALL SELECT 'file_chunk', owner_id, count(*), sum(length)::bigint
      FROM file_chunk GROUP BY 2
"""


def bm25(texts: dict[str, list[str]], query: list[str]) -> dict[str, float]:
    """Return the texts' scores: shares of what the query's words are worth."""
    plain = PlainBm25(texts)
    most = sum(plain.weights(query).values())
    return {name: score / most for name, score in plain.scores(query).items()}


class Owners:
    """What each agent has, as plain words."""

    def __init__(self, scene: StateScene, seed: int) -> None:
        self.scene, self.dice = scene, random.Random(seed)
        self.texts: dict[tuple[str, str], dict[str, list[str]]] = {}

    def words(self) -> list[str]:
        return self.dice.choices(VOCABULARY, k=self.dice.randint(1, 12))

    async def step(self) -> None:
        """Add, change, delete, or let expire (whether it is swept yet or not)."""
        self.scene.tenant, agent = (
            self.dice.choice(["one", "two"]),
            self.dice.choice(["ann", "bob"]),
        )
        texts = self.texts.setdefault((self.scene.tenant, agent), {})
        kind = self.dice.choice(["add", "add", "update", "delete", "expire", "vector"])
        if kind == "add" or not texts:
            words = self.words()
            note = await self.scene.ask(agent, MemoryAdd(" ".join(words)))
            assert isinstance(note, Note)
            texts[note.id] = words
            return
        name = self.dice.choice(list(texts))
        if kind == "update":
            texts[name] = self.words()
            await self.scene.ask(agent, MemoryUpdate(name, content=" ".join(texts[name])))
        elif kind == "vector":
            await self.scene.embedded()
        else:
            del texts[name]
            sql = {
                "delete": b"DELETE FROM note WHERE id = %s",
                "expire": b"UPDATE note SET expires_at = now() - interval '1 s' WHERE id = %s",
            }[kind]
            async with self.scene.store.as_steward() as cursor:
                await cursor.execute(sql, (name,))


@pytest.mark.parametrize("seed", [1, 2])
async def test_search_is_bm25_over_what_there_is(scene: StateScene, seed: int) -> None:
    owners = Owners(scene, seed)
    for step in range(STEPS):
        await owners.step()
        if step % 9:
            continue
        query = owners.dice.sample(VOCABULARY, 3)
        for (scene.tenant, agent), texts in owners.texts.items():
            found = await scene.ask(agent, MemorySearch(" ".join(query), k=100, mode="keyword"))
            expected = bm25(texts, query) if texts else {}
            assert {note.id: note.score for note in found.notes} == pytest.approx(expected)
    assert set(await scene.rows(_KEPT)) == set(await scene.rows(_COUNTED))
    assert set(await scene.rows(_KEPT_TEXTS)) == set(await scene.rows(_COUNTED_TEXTS))


async def test_words_of_files_are_counted_through_all_that_changes_them(scene: StateScene) -> None:
    await scene.ask("ann", StorageWrite("a.txt", "apples and pears. " * 200))
    await scene.ask("ann", StorageWrite("b.txt", "cherries"))
    await scene.ask("ann", StorageAppend("a.txt", "plums, plums, plums"))
    await scene.ask("bob", StorageWrite("a.txt", "apples"))
    assert set(await scene.rows(_KEPT)) == set(await scene.rows(_COUNTED)) != set()
    async with scene.store.as_steward() as cursor:
        await cursor.execute("DELETE FROM file WHERE path = '/a.txt'")
    assert set(await scene.rows(_KEPT)) == set(await scene.rows(_COUNTED)) != set()
    async with scene.store.as_steward() as cursor:
        await cursor.execute("DELETE FROM agent WHERE name = 'ann'")
    kept = await scene.rows("SELECT word FROM word_use")
    assert [row.word for row in kept] == []


async def test_scores_tell_nothing_of_notes_that_are_not_seen(scene: StateScene) -> None:
    await scene.known("ann", "bob")
    shown = await scene.ask("bob", MemoryAdd("apples and pears"))
    assert isinstance(shown, Note)
    await scene.ask("bob", MemoryShare(shown.id, agent="ann"))
    query = MemorySearch("apples plums", shared=True, mode="keyword")
    before = await scene.ask("ann", query)
    assert [note.id for note in before.notes] == [shown.id]
    for number in range(5):
        await scene.ask("bob", MemoryAdd(f"apples that are hidden {number}"))
    await scene.ask("bob", MemoryAdd("plums that are hidden"))
    after = await scene.ask("ann", query)
    assert [note.score for note in after.notes] == [note.score for note in before.notes]


async def test_many_times_in_one_text_are_told_apart(scene: StateScene) -> None:
    texts = {}
    for times in (1, 2, 3, 10, 40, 99):
        words = ["apple"] * times + ["pear"] * (100 - times)
        note = await scene.ask("ann", MemoryAdd(" ".join(words)))
        texts[note.id] = words
    texts[(await scene.ask("ann", MemoryAdd("nothing"))).id] = ["nothing"]
    found = await scene.ask("ann", MemorySearch("apple", mode="keyword"))
    assert {note.id: note.score for note in found.notes} == pytest.approx(bm25(texts, ["apple"]))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('"red apples"', {"red apples are good"}),
        ("apples -green", {"red apples are good", "apples, and a door that is red"}),
        ('good "red apples"', {"red apples are good"}),
        ('"red apples" or "green apples"', {"red apples are good", "green apples"}),
        ('apples -"red apples" -door', {"green apples"}),
        ('"apples red"', set()),
        ('"the"', set()),  # a stop word binds nothing, and finds nothing by words
        ("the and of", set()),
        ("quince", set()),
    ],
)
async def test_phrases_and_words_that_are_not_to_be_there(
    scene: StateScene, query: str, expected: set[str]
) -> None:
    for text in ("red apples are good", "apples, and a door that is red", "green apples", "pears"):
        await scene.ask("ann", MemoryAdd(text))
    found = await scene.ask("ann", MemorySearch(query, mode="keyword"))
    assert {note.content for note in found.notes} == expected


async def test_a_very_long_query_costs_its_rarest_words_alone(scene: StateScene) -> None:
    words = [f"word{number}" for number in range(900)]
    await scene.ask("ann", MemoryAdd(" ".join(words)))
    for number in range(MOST_WORDS):
        await scene.ask("ann", MemoryAdd(f"{words[0]} {words[1]} rare{number}"))
    query = " ".join((*words[:2], *(f"rare{number}" for number in range(MOST_WORDS))))
    found = await scene.ask("ann", MemorySearch(query, k=100, mode="keyword"))
    assert len(found.notes) == MOST_WORDS  # the first note has none of them
    long = await scene.ask("ann", MemorySearch(" ".join(words)[:8_000], mode="keyword"))
    assert words[500] in long.notes[0].content


def test_what_is_ranked_has_the_rarest_words() -> None:
    assert matching(["a", "b"], [10, 20]) == "'a' | 'b'"
    assert matching(["a", "b"], [10, MOST_MATCHES]) == "'a'"
    common = MOST_MATCHES + 1
    assert matching(["a", "b", "c"], [common] * 3) == "'a' & ('b' | 'c')"
    assert matching(["it's"], [1], "!'b'") == "('it''s') & (!'b')"


def test_the_words_of_a_query_are_read_back() -> None:
    assert lexemes(r"'a' & ( 'it''s' | 'b\\c' ) & 'a'") == ["a", "it's", "b\\c"]
