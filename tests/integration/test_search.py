"""Search in Postgres: what it finds, whose, and that it goes by the indexes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_broker.contract.errors import InvalidConfig, UnsupportedOption
from aios_broker.contract.memory import (
    MemoryAdd,
    MemoryContext,
    MemorySearch,
    MemoryShare,
    MemoryStat,
    MemoryUpdate,
)
from aios_broker.contract.storage import StorageSearch, StorageShare, StorageStat, StorageWrite
from aios_broker.places import Holder
from aios_broker.postgres.store import Store
from aios_workers.search import indexing
from aios_workers.search.corpora import NOTES, NoteQuery
from aios_workers.search.embedder import KERNEL, NoEmbedder
from aios_workers.search.indexing import BATCH, PORTION_CHARACTERS, embed_missing, portions
from aios_workers.search.ranking import (
    EXACT_ROWS,
    Candidate,
    Wanted,
    find,
    fuse,
    nearest_query,
)
from benchmarks.search.notes import Synthetic, insert
from tests.state_scene import HashedWords, StateScene, state_scene
from tests.waiting import wait_until_async

SHORT_S = 2.0
MANY = EXACT_ROWS + 1_000  # more than are compared one by one


def test_a_turn_has_some_of_what_its_neighbours_score_better() -> None:
    turns = {
        ("a",): Candidate(0.9, False, (1, "p", 1)),  # outside: it counts all the same
        ("b",): Candidate(0.1, True, (1, "p", 2)),
        ("c",): Candidate(0.5, True, (1, "p", 4)),  # 3 was left out: they do not belong together
        ("d",): Candidate(0.6, True, None),
        ("e",): Candidate(0.0, True, (1, "other", 2)),
    }
    assert fuse(turns) == [
        (("b",), pytest.approx(0.1 + 0.7 * 0.8)),
        (("d",), 0.6),
        (("c",), 0.5),
        (("e",), 0.0),
    ]


async def test_k_owner_tags_and_mode_are_kept(scene: StateScene) -> None:
    for number in range(5):
        await scene.ask("ann", MemoryAdd(f"apples number {number}", tags=("even",) * (number % 2)))
    await scene.ask("bob", MemoryAdd("apples of bob"))
    await scene.embedded()
    for mode in ("keyword", "semantic", "hybrid"):
        found = await scene.ask("ann", MemorySearch("apples", k=3, mode=mode))
        assert len(found.notes) == 3
        assert {note.owner for note in found.notes} == {"ann"}
        scores = [note.score for note in found.notes]
        assert scores == sorted(scores, reverse=True)
        tagged = await scene.ask("ann", MemorySearch("apples", tags=("even",), mode=mode))
        assert {note.content for note in tagged.notes} == {"apples number 1", "apples number 3"}


async def test_a_shared_search_is_no_way_around_the_grants(scene: StateScene) -> None:
    await scene.known("ann", "bob")
    hidden = await scene.ask("bob", MemoryAdd("apples that are secret"))
    shown = await scene.ask("bob", MemoryAdd("apples that are shown"))
    await scene.ask("bob", MemoryShare(shown.id, agent="ann"))
    await scene.embedded()
    for mode in ("keyword", "semantic", "hybrid"):
        found = await scene.ask("ann", MemorySearch("apples", shared=True, mode=mode))
        assert [note.id for note in found.notes] == [shown.id]
    rows = await scene.rows(
        "SELECT id FROM aios_note_matches('appl', '{appl}', '{1}', 0.3, 0.9, NULL, 10, 10)"
    )
    assert rows == []  # a session that names nobody
    assert hidden.id != shown.id


async def test_a_changed_text_is_found_by_what_it_says_now(scene: StateScene) -> None:
    note = await scene.ask("ann", MemoryAdd("apples"))
    other = await scene.ask("ann", MemoryAdd("cherries"))
    await scene.embedded()
    await scene.ask("ann", MemoryUpdate(note.id, content="pears"))
    await scene.embedded()
    best = (await scene.ask("ann", MemorySearch("pears", k=1, mode="semantic"))).notes
    assert [one.id for one in best] == [note.id]
    assert (await scene.ask("ann", MemorySearch("apples", mode="keyword"))).notes == ()
    assert other.id != note.id


async def test_files_are_found_by_meaning_and_each_once(scene: StateScene) -> None:
    await scene.ask("ann", StorageWrite("fruit/a.txt", "apples and pears. " * 200))
    await scene.ask("ann", StorageWrite("tools/b.txt", "a hammer and nails"))
    await scene.embedded()
    found = await scene.ask("ann", StorageSearch("apples and pears", k=5, mode="semantic"))
    assert [hit.path for hit in found.hits] == ["/fruit/a.txt", "/tools/b.txt"]
    grouped = await scene.ask("ann", StorageSearch("apples", group_by="directory"))
    assert grouped.hits[0].path == "/fruit"


async def test_without_a_model_words_are_searched_and_meaning_refused(
    redis_url: str, database_url: str
) -> None:
    async with state_scene(redis_url, database_url, embedder=NoEmbedder()) as scene:
        await scene.ask("ann", MemoryAdd("apples"))
        assert len((await scene.ask("ann", MemorySearch("apples"))).notes) == 1
        with pytest.raises(UnsupportedOption, match="no embedding model"):
            await scene.ask("ann", MemorySearch("apples", mode="semantic"))


async def test_vectors_of_another_model_are_not_compared(scene: StateScene) -> None:
    class Other(HashedWords):
        model, dimension = "another", 16

    await scene.ask("ann", MemoryAdd("apples"))
    async with scene.store.as_steward() as cursor:
        [vector] = await Other().embed(["apples"], KERNEL)
        with pytest.raises(InvalidConfig, match="aios reindex"):
            await find(cursor, Other(), NoteQuery("apples"), vector)


async def test_large_searches_go_by_the_indexes(database_url: str) -> None:
    synthetic, store = Synthetic(), Store(database_url)
    try:
        agent = await store.vouched("ann", "default")
        texts = [synthetic.text() for _ in range(MANY)]
        insert(database_url, [agent.id] * MANY, texts, synthetic.vectors(MANY))
        query = NoteQuery("words", 10, owners=(agent.id,))
        wanted = Wanted("words", synthetic.vectors(1)[0], 1, "semantic", 10)
        sql = nearest_query(NOTES, wanted, query.scope, exact=False)
        async with store.as_agent(agent) as cursor:
            await cursor.execute(
                f"EXPLAIN {sql}".encode(),
                {
                    **query.scope.parameters,
                    "depth": 10,
                    "vector": str(list(map(float, synthetic.vectors(1)[0]))),
                },
            )
            plan = "\n".join(row[0] for row in await cursor.fetchall())
        assert "ix_note_vector_1" in plan
        async with store.as_steward() as cursor:  # as the matching function does
            await cursor.execute(
                "EXPLAIN SELECT n.id FROM note n WHERE n.words @@ 'w70 | w900'::tsquery "
                "AND n.owner_id = ANY (ARRAY[1::bigint]) LIMIT 2000"
            )
            plan = "\n".join(row[0] for row in await cursor.fetchall())
        assert "ix_note_words" in plan
    finally:
        await store.aclose()


async def test_a_long_file_keeps_nobodys_note_out_of_search(scene: StateScene) -> None:
    """Each batch is shared: by tenants, and within each by agents."""
    scene.tenant = "flood"
    await scene.ask("ann", StorageWrite("long.txt", "a line of a long file\n" * 20_000))
    await scene.ask("bob", StorageWrite("long.txt", "another line of it\n" * 20_000))
    await scene.ask("cid", StorageWrite("short.txt", "a short file"))
    scene.tenant = "other"
    await scene.ask("ann", StorageWrite("short.txt", "a short file"))
    await embed_missing(scene.store, scene.services.embedder)
    rows = await scene.rows(
        "SELECT t.name AS tenant, a.name AS agent, count(*) AS parts FROM file_chunk c"
        " JOIN agent a ON a.id = c.owner_id JOIN tenant t ON t.id = a.tenant_id"
        " WHERE c.model_id IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2"
    )
    done = {(row.tenant, row.agent): row.parts for row in rows}
    assert sum(done.values()) == BATCH
    assert done["other", "ann"] == done["flood", "cid"] == 1
    assert abs(done["flood", "ann"] - done["flood", "bob"]) <= 1


async def test_of_more_agents_than_a_batch_holds_each_has_its_turn(scene: StateScene) -> None:
    agents = [f"a{number}" for number in range(2 * BATCH)]
    for agent in agents:
        await scene.ask(agent, MemoryAdd("one"))
        await scene.ask(agent, MemoryAdd("two"))
    for _ in range(4):
        await embed_missing(scene.store, scene.services.embedder)
    assert await scene.rows("SELECT FROM note WHERE model_id IS NULL") == []


async def test_where_the_model_is_slow_what_it_has_done_is_kept(
    scene: StateScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "ENOUGH_S", 0.0)
    for _ in range(3):
        await scene.ask("ann", MemoryAdd("x" * PORTION_CHARACTERS))
    for left in (2, 1, 0):
        assert await embed_missing(scene.store, scene.services.embedder) == 1
        rows = await scene.rows("SELECT FROM note WHERE model_id IS NULL")
        assert len(rows) == left


class Slow(HashedWords):
    """Takes longer than a transaction may take in which nothing but the database is waited for."""

    async def embed(self, texts: Sequence[str], holder: Holder) -> NDArray[np.float32]:
        until_s = time.monotonic() + 2 * SHORT_S
        await wait_until_async(lambda: time.monotonic() > until_s)
        return await super().embed(texts, holder)


async def test_an_index_step_may_take_longer_than_other_transactions(
    scene: StateScene, database_url: str
) -> None:
    await scene.ask("ann", MemoryAdd("apples"))
    store = Store(database_url, name="impatient", limit_s=SHORT_S)
    try:
        assert await embed_missing(store, Slow()) == 1
    finally:
        await store.aclose()


async def test_search_says_how_much_of_it_is_not_indexed_yet(scene: StateScene) -> None:
    await scene.ask("ann", MemoryAdd("apples"))
    await scene.ask("ann", StorageWrite("fruit/a.txt", "apples"))
    await scene.ask("bob", MemoryAdd("another's"))
    found = await scene.ask("ann", MemorySearch("apples", mode="semantic"))
    assert (found.notes, found.unindexed) == ((), 1)
    assert (await scene.ask("ann", MemoryContext("apples"))).unindexed == 1
    assert (await scene.ask("ann", MemoryStat())).unindexed_notes == 1
    for search in (StorageSearch("apples"), StorageSearch("apples", shared=True)):
        assert (await scene.ask("ann", search)).unindexed == 1
    assert (await scene.ask("ann", StorageSearch("apples", mode="keyword"))).unindexed == 0
    for path, parts in (("/", 1), ("fruit", 1), ("fruit/a.txt", 1)):
        assert (await scene.ask("ann", StorageStat(path))).unindexed_parts == parts
    await scene.embedded()
    found = await scene.ask("ann", MemorySearch("apples", mode="semantic"))
    assert (len(found.notes), found.unindexed) == (1, 0)
    assert (await scene.ask("ann", MemoryStat())).unindexed_notes == 0
    assert (await scene.ask("ann", StorageSearch("apples"))).unindexed == 0
    assert (await scene.ask("ann", StorageStat("/"))).unindexed_parts == 0


async def test_what_others_have_not_shared_is_not_counted(scene: StateScene) -> None:
    await scene.known("ann", "bob")
    await scene.ask("bob", StorageWrite("open/a.txt", "apples"))
    await scene.ask("bob", StorageWrite("own/a.txt", "apples"))
    await scene.ask("bob", StorageShare("open", agent="ann"))
    assert (await scene.ask("ann", StorageSearch("apples", shared=True))).unindexed == 1
    assert (await scene.ask("ann", StorageSearch("apples"))).unindexed == 0


@given(st.lists(st.integers(0, 3 * PORTION_CHARACTERS), max_size=30))
def test_what_is_indexed_goes_to_the_model_in_portions_that_a_query_can_wait_for(
    lengths: list[int],
) -> None:
    texts = ["x" * length for length in lengths]
    found = list(portions(texts))
    assert [text for portion in found for text in portion] == texts
    for portion in found:
        assert len(portion) == 1 or sum(map(len, portion)) <= PORTION_CHARACTERS
