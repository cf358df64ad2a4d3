"""Embeddings: batches that change nothing, the real model, and everything embedded anew."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError, InvalidConfig
from aios_broker.contract.memory import MemoryAdd, MemorySearch
from aios_broker.contract.storage import StorageSearch, StorageWrite
from aios_broker.places import Holder
from aios_workers.search.embedder import (
    BATCH_TEXTS,
    WINDOW_CHARACTERS,
    BatchedEmbedder,
    Model,
    query_vector,
)
from aios_workers.search.indexing import reindex
from aios_workers.search.minilm import DIMENSION, NAME, MiniLm
from tests.state_scene import HashedWords, state_scene

ANN, BOB, EVE = Holder("acme", "ann"), Holder("acme", "bob"), Holder("evil", "eve")
TEXTS = ["a cat", "the dog barks at night", "x", "", "Rhine", "a much longer text " * 300]


class Counting:
    """A model that remembers its batches, on whatever thread it is called; windows of 4,000."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.go.set()

    def split(self, text: str) -> list[list[int]]:
        return [
            [*map(ord, text[start : start + 4_000])] for start in range(0, len(text) or 1, 4_000)
        ]

    def run(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        assert self.go.wait(20)
        texts = ["".join(map(chr, ids)) for ids in windows]
        self.batches.append(texts)
        self.threads.add(threading.get_ident())
        if "broken" in texts:
            raise RuntimeError("it broke")
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


def batched(model: Counting) -> BatchedEmbedder:
    return BatchedEmbedder("counting", 2, lambda: cast("Model", model))


async def test_texts_of_many_callers_share_batches_off_the_loop() -> None:
    model = Counting()
    model.go.clear()
    async with batched(model) as embedder:
        calls = [asyncio.create_task(embedder.embed(["x" * n], ANN)) for n in range(1, 41)]
        for _ in range(5):
            await asyncio.sleep(0)
        model.go.set()
        rows = await asyncio.gather(*calls)
    assert [round(row[0][0] / row[0][1]) for row in rows] == [*range(1, 41)]  # each its own
    assert len(model.batches) < len(calls)
    assert max(map(len, model.batches)) <= BATCH_TEXTS
    assert threading.get_ident() not in model.threads
    assert len(model.threads) == 1


async def test_a_short_query_waits_for_no_more_than_the_batch_that_is_being_made() -> None:
    model = Counting()
    model.go.clear()
    async with batched(model) as embedder:
        flood = [asyncio.create_task(embedder.embed(["y" * 8_000], EVE)) for _ in range(20)]
        await asyncio.sleep(0)  # the first of them is with the model
        flood += [asyncio.create_task(embedder.embed(["z" * 8_000], BOB)) for _ in range(20)]
        await asyncio.sleep(0)
        short = asyncio.create_task(embedder.embed(["what do I like?"], ANN))
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(short, *flood)
    asked = [batch[0][0] for batch in model.batches]
    assert asked.index("w") <= 2  # behind one batch of each of the others at most
    assert abs(asked[:20].count("y") - asked[:20].count("z")) <= 2  # tenants have as much


async def test_a_short_query_is_with_the_model_without_anothers_long_text() -> None:
    model = Counting()
    model.go.clear()
    async with batched(model) as embedder:
        first = asyncio.create_task(embedder.embed(["a" * 8_000], EVE))
        await asyncio.sleep(0)
        others = [asyncio.create_task(embedder.embed(["y" * 8_000], EVE)) for _ in range(5)]
        short = asyncio.create_task(embedder.embed(["what do I like?"], ANN))
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(first, short, *others)
    with_short = next(batch for batch in model.batches if "what do I like?" in batch)
    assert with_short == ["what do I like?"]
    assert all(len(batch) == 1 for batch in model.batches)


async def test_of_a_long_query_the_model_sees_the_beginning() -> None:
    model = Counting()
    async with batched(model) as embedder:
        assert await query_vector(embedder, "q" * 8_000, "hybrid", ANN) is not None
    assert ["".join(batch) for batch in model.batches] == ["q" * WINDOW_CHARACTERS]


async def test_a_failure_is_heard_by_its_batch_and_nobody_waits_for_ever() -> None:
    model = Counting()
    async with batched(model) as embedder:
        with pytest.raises(CoreError, match="it broke"):
            await embedder.embed(["broken"], ANN)
        assert (await embedder.embed(["fine"], ANN)).shape == (1, 2)
        assert (await embedder.embed([], ANN)).shape == (0, 2)
        model.go.clear()
        left = asyncio.create_task(embedder.embed(["too late"], ANN))
        await asyncio.sleep(0)
        model.go.set()
    with pytest.raises(CoreError, match="closed"):
        await left


async def test_the_real_model_is_the_same_alone_and_in_batches() -> None:
    model = await asyncio.to_thread(MiniLm.load)
    together = await asyncio.to_thread(model.embed, TEXTS)
    async with BatchedEmbedder(NAME, DIMENSION, lambda: model) as embedder:
        alone = np.vstack([await embedder.embed([text], ANN) for text in TEXTS])
    assert together.shape == (len(TEXTS), DIMENSION)
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert np.min(np.sum(together * alone, axis=1)) > 0.99  # int8 rounds by the whole batch
    near, far = await asyncio.to_thread(model.embed, ["a kitten", "a steam engine"])
    assert together[0] @ near > together[0] @ far


async def test_everything_is_embedded_anew_by_another_model(
    redis_url: str, database_url: str
) -> None:
    class Other(HashedWords):
        model, dimension = "other-model", 16

    async with state_scene(redis_url, database_url) as old:
        note = await old.ask("ann", MemoryAdd("apples and pears"))
        await old.ask("ann", StorageWrite("a.txt", "plums and cherries"))
        await old.embedded()
        await old.ask("ann", MemoryAdd("not embedded yet"))
        said: list[str] = []
        assert await reindex(old.store, Other(), said.append) == 3
        assert await reindex(old.store, Other(), said.append) == 0  # nothing is left to do
        with pytest.raises(InvalidConfig, match="reindex"):
            await old.ask("ann", MemorySearch("apples", mode="semantic"))
    async with state_scene(redis_url, database_url, embedder=Other()) as new:
        found = await new.ask("ann", MemorySearch("apples and pears", k=1, mode="semantic"))
        assert [one.id for one in found.notes] == [note.id]
        files = await new.ask("ann", StorageSearch("plums and cherries", mode="semantic"))
        assert [hit.path for hit in files.hits] == ["/a.txt"]
        rows = await new.rows(
            "SELECT indexname AS name FROM pg_indexes WHERE indexname ~ %s ORDER BY 1", "_vector_"
        )
        assert [row.name for row in rows] == [
            f"ix_{table}_vector_2" for table in ("file_chunk", "mount_chunk", "note")
        ]
    assert any("3" in line or "rows" in line for line in said)


async def test_no_model_or_another_dimension_is_refused(redis_url: str, database_url: str) -> None:
    async with state_scene(redis_url, database_url) as scene:
        nothing = SimpleNamespace(model="none", dimension=0)
        with pytest.raises(InvalidConfig, match="no embedding model"):
            await reindex(scene.store, nothing, print)
        wider = SimpleNamespace(model=NAME, dimension=DIMENSION * 2)
        with pytest.raises(InvalidConfig, match="384"):
            await reindex(scene.store, wider, print)
