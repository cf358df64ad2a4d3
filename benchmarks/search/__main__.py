"""What search finds and how fast, on a Postgres of its own.

    python -m benchmarks.search                       recall, latency, hidden rows: some minutes
    python -m benchmarks.search --notes 20000 --json out.json

Recall: notes and questions made for this (`questions.py`), embedded by the kernel's own model; how
often the note that answers a question is among the first ten, by words alone and by both. Latency:
synthetic notes of one agent, through `find` with row-level security, one search at a time.
Hidden: notes made for this, embedded by the kernel's own model, 99 % of them not for the agent that
asks. How many of the ten nearest that it may see are found by the vector index, which row-level
security filters, against a comparison of all of them; the same where nothing is hidden; and as
agents search, where a scope of few notes is compared whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]

from aios_broker.contract.names import SearchMode  # noqa: E402
from aios_broker.postgres.store import AgentRow, Store  # noqa: E402
from aios_workers.search.corpora import NoteQuery  # noqa: E402
from aios_workers.search.minilm import NAME, MiniLm  # noqa: E402
from aios_workers.search.ranking import find  # noqa: E402
from benchmarks.provenance import commit_of, today  # noqa: E402
from benchmarks.search.notes import DIMENSION, Synthetic, Vectors, database, insert  # noqa: E402
from benchmarks.search.questions import REPEATED, REWORDED, others  # noqa: E402

K = 10
OTHERS = 1_900
HIDDEN_AMONG = 20_000
SEARCHES = 300
WARM_UP = 30
VISIBLE = 0.01


class Model:
    """The stored vectors' model, where only its name is asked for."""

    model = NAME
    dimension = DIMENSION

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Refuse: vectors are given."""
        raise NotImplementedError(f"{len(texts)} texts: vectors are given")


async def search(
    store: Store, agent: AgentRow, query: NoteQuery, vector: Vectors | None
) -> list[str]:
    """Return the ids of what one search as this agent finds."""
    async with store.as_agent(agent) as cursor:
        found = await find(cursor, Model(), query, vector)
    return [note_id for (_, note_id), _ in found]


async def recall(url: str) -> dict[str, float]:
    """Return how often the right note is among the first ten, per kind of search."""
    pairs = (*REWORDED, *REPEATED)
    texts = [note for note, _ in pairs] + others(OTHERS)
    model = await asyncio.to_thread(MiniLm.load)
    vectors = await asyncio.to_thread(model.embed, texts)
    asked = await asyncio.to_thread(model.embed, [question for _, question in pairs])
    found: dict[str, float] = {"notes": len(texts), "questions": len(pairs)}
    store = Store(url)
    try:
        agent = await store.vouched("reader", "default")
        ids = insert(url, [agent.id] * len(texts), texts, vectors)
        modes: tuple[SearchMode, ...] = ("keyword", "semantic", "hybrid")
        for mode in modes:
            hits = 0
            for number, (_, question) in enumerate(pairs):
                query = NoteQuery(question, K, mode, owners=(agent.id,))
                vector = None if mode == "keyword" else asked[number]
                hits += ids[number] in await search(store, agent, query, vector)
            found[mode] = round(hits / len(pairs), 4)
    finally:
        await store.aclose()
    return found


async def latency(url: str, notes: int) -> dict[str, Any]:
    """Return how long searches among this many notes of one agent take, ms."""
    synthetic = Synthetic()
    store = Store(url)
    try:
        agent = await store.vouched("reader", "default")
        began = time.perf_counter()
        insert(
            url,
            [agent.id] * notes,
            [synthetic.text() for _ in range(notes)],
            synthetic.vectors(notes),
        )
        found: dict[str, Any] = {"notes": notes, "loaded_s": round(time.perf_counter() - began, 1)}
        asked = synthetic.vectors(SEARCHES + WARM_UP)
        modes: tuple[SearchMode, ...] = ("keyword", "semantic", "hybrid")
        for mode in modes:
            took_ms = []
            for number, vector in enumerate(asked):
                words = f"{synthetic.word()} {synthetic.word()} {synthetic.word()}"
                query = NoteQuery(words, K, mode, owners=(agent.id,))
                began = time.perf_counter()
                await search(store, agent, query, vector)
                if number >= WARM_UP:
                    took_ms.append((time.perf_counter() - began) * 1_000)
            found[mode] = spread(took_ms)
    finally:
        await store.aclose()
    return found


async def hidden(url: str) -> dict[str, Any]:
    """Return the recall among the few notes that an agent may see of many."""
    texts = others(HIDDEN_AMONG + SEARCHES, seed=9)
    dice = np.random.default_rng(3)
    dice.shuffle(texts)
    model = await asyncio.to_thread(MiniLm.load)
    embedded = await asyncio.to_thread(model.embed, texts)
    vectors, asked = embedded[:HIDDEN_AMONG], embedded[HIDDEN_AMONG:]
    is_visible = dice.random(HIDDEN_AMONG) < VISIBLE
    visible = np.flatnonzero(is_visible)
    store = Store(url)
    try:
        reader, owner, few = [
            await store.vouched(name, "default") for name in ("reader", "owner", "few")
        ]
        owners = [few.id if seen else owner.id for seen in is_visible]
        ids = insert(url, owners, texts[:HIDDEN_AMONG], vectors)
        await grant(store, few, reader, "search")
        by_index = await found_of(store, reader, None, Pool(ids, vectors, visible), asked)
        by_owner = await found_of(store, reader, (few.id,), Pool(ids, vectors, visible), asked)
        await grant(store, owner, reader, "search")
        whole = Pool(ids, vectors, np.arange(HIDDEN_AMONG))
        nothing_hidden = await found_of(store, reader, None, whole, asked)
    finally:
        await store.aclose()
    return {
        "notes": HIDDEN_AMONG,
        "visible": len(visible),
        "by_index": by_index,
        "nothing_hidden": nothing_hidden,
        "as_agents_search": by_owner,
    }


@dataclass(frozen=True)
class Pool:
    """Notes with their vectors, and which of them are seen."""

    ids: Sequence[str]
    vectors: Vectors
    seen: NDArray[np.int64]

    def nearest(self, vector: Vectors) -> set[str]:
        """Return the ids of the nearest that are seen, by comparing all."""
        order = np.argsort(-(self.vectors[self.seen] @ vector))[:K]
        return {self.ids[self.seen[at]] for at in order}


async def grant(store: Store, owner: AgentRow, to: AgentRow, verb: str) -> None:
    """Let an agent do something with another's whole memory."""
    async with store.as_steward() as cursor:
        await cursor.execute(
            "INSERT INTO access_grant (tenant_id, owner_id, object_kind, object_id, agent_id, "
            "verbs, granted_by) VALUES (%s, %s, 'block', %s, %s, ARRAY[%s], %s)",
            (owner.tenant_id, owner.id, str(owner.id), to.id, verb, owner.id),
        )


async def found_of(
    store: Store, agent: AgentRow, owners: tuple[int, ...] | None, pool: Pool, asked: Vectors
) -> dict[str, float]:
    """Return how much of what is nearest is found, and how long it takes, ms."""
    hits, took_ms = 0, []
    for vector in asked:
        began = time.perf_counter()
        found = await search(store, agent, NoteQuery("-", K, "semantic", owners=owners), vector)
        took_ms.append((time.perf_counter() - began) * 1_000)
        hits += len(pool.nearest(vector) & set(found))
    return {"recall": round(hits / (K * len(asked)), 4), **spread(took_ms)}


def spread(took_ms: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {
        "p50_ms": round(statistics.median(took_ms), 2),
        "p95_ms": round(statistics.quantiles(took_ms, n=20)[-1], 2),
    }


def main(arguments: list[str]) -> int:
    """Measure, print, and write JSON where asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--notes", type=int, default=100_000, help="of latency")
    parser.add_argument("--only", choices=["recall", "latency", "hidden"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    results: dict[str, Any] = {
        "at": today(),
        "commit": commit_of(ROOT),
        "machine": platform.processor() or "unknown",
        "cpus": os.cpu_count(),
    }
    for name in ("recall", "latency", "hidden"):
        if given.only not in (None, name):
            continue
        with (
            tempfile.TemporaryDirectory(prefix="aios-bench-") as folder,
            database(Path(folder)) as url,
        ):
            work = {
                "recall": lambda: recall(url),
                "latency": lambda: latency(url, given.notes),
                "hidden": lambda: hidden(url),
            }[name]
            results[name] = asyncio.run(work())
        print(name, json.dumps(results[name]))
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
