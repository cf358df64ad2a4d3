"""What search finds and how fast, on a Postgres of its own.

    python -m benchmarks.search                       recall, latency, hidden rows: some minutes
    python -m benchmarks.search --notes 20000 --json out.json

Recall: notes and questions made for this (`questions.py`), embedded by the kernel's own model; how
often the note that answers a question is among the first ten, by words alone and by both. Latency:
synthetic notes of one agent, through `find_notes` with row-level security, one search at a time.
Hidden: 99 % of the notes belong to others; how many of the ten nearest among those that one may see
are found, against a comparison of all of them.
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
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

from aios_broker.contract.names import SearchMode  # noqa: E402
from aios_broker.store.session import AgentRow, Store  # noqa: E402
from aios_workers.search.minilm import NAME, MiniLm  # noqa: E402
from aios_workers.search.notes import NoteQuery, find_notes  # noqa: E402
from benchmarks.provenance import commit_of, today  # noqa: E402
from benchmarks.search.notes import DIMENSION, Synthetic, Vectors, database, insert  # noqa: E402
from benchmarks.search.questions import REPEATED, REWORDED, others  # noqa: E402

K = 10
OTHERS = 1_900
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
) -> list[str]:  # fmt: skip
    """Return the ids of what one search as this agent finds."""
    async with store.as_agent(agent) as cursor:
        found = await find_notes(cursor, Model(), query, vector)
    return [one.id for one in found]


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
        insert(url, [agent.id] * notes, [synthetic.text() for _ in range(notes)],
               synthetic.vectors(notes))  # fmt: skip
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
            found[mode] = {"p50_ms": round(statistics.median(took_ms), 2),
                           "p95_ms": round(statistics.quantiles(took_ms, n=20)[-1], 2)}  # fmt: skip
    finally:
        await store.aclose()
    return found


async def hidden(url: str, notes: int) -> dict[str, float]:
    """Return the recall among the few notes that an agent may see of many."""
    synthetic = Synthetic(seed=12)
    store = Store(url)
    try:
        reader = await store.vouched("reader", "default")
        owner = await store.vouched("owner", "default")
        few = await store.vouched("few", "default")
        dice = np.random.default_rng(3)
        owners = [few.id if dice.random() < VISIBLE else owner.id for _ in range(notes)]
        vectors = synthetic.vectors(notes)
        ids = insert(url, owners, ["text"] * notes, vectors)
        async with store.as_steward() as cursor:
            await cursor.execute(
                "INSERT INTO access_grant (tenant_id, owner_id, object_kind, object_id, agent_id, "
                "verbs, granted_by) VALUES (%s, %s, 'block', %s, %s, ARRAY['search'], %s)",
                (few.tenant_id, few.id, str(few.id), reader.id, few.id),
            )
        visible = [number for number, one in enumerate(owners) if one == few.id]
        hits, took_ms = 0, []
        asked = synthetic.vectors(SEARCHES)
        for vector in asked:
            nearest = np.argsort(-(vectors[visible] @ vector))[:K]
            exact = {ids[visible[at]] for at in nearest}
            began = time.perf_counter()
            found = await search(store, reader, NoteQuery("text", K, "semantic"), vector)
            took_ms.append((time.perf_counter() - began) * 1_000)
            hits += len(exact & set(found))
    finally:
        await store.aclose()
    return {
        "notes": notes, "visible": len(visible), "recall": round(hits / (K * SEARCHES), 4),
        "p50_ms": round(statistics.median(took_ms), 2),
        "p95_ms": round(statistics.quantiles(took_ms, n=20)[-1], 2),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Measure, print, and write JSON where asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--notes", type=int, default=100_000, help="of latency and hidden rows")
    parser.add_argument("--only", choices=["recall", "latency", "hidden"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    results: dict[str, Any] = {
        "at": today(), "commit": commit_of(ROOT), "machine": platform.processor() or "unknown",
        "cpus": os.cpu_count(),
    }  # fmt: skip
    for name in ("recall", "latency", "hidden"):
        if given.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="aios-bench-") as folder, \
                database(Path(folder)) as url:  # fmt: skip
            work = {"recall": lambda: recall(url), "latency": lambda: latency(url, given.notes),
                    "hidden": lambda: hidden(url, given.notes)}[name]  # fmt: skip
            results[name] = asyncio.run(work())
        print(name, json.dumps(results[name]))
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
