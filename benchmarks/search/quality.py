"""How often search finds what answers a question among the first ten; plain BM25 beside it.

    python -m benchmarks.search.quality                    the development set: a minute
    python -m benchmarks.search.quality --locomo PATH      LoCoMo as well: some minutes
    python -m benchmarks.search.quality --friends PATH     FriendsQA as well: two minutes
    python -m benchmarks.search.quality --qmsum PATH       QMSum as well: ten minutes
    python -m benchmarks.search.quality --json out.json

PATH: a clone of github.com/snap-research/locomo, github.com/emorynlp/FriendsQA or
github.com/Yale-LILY/QMSum, its git directory, or the file itself. A question is answered where one
of the texts that answer it is found. Plain BM25 (`plain_bm25.py`) has the words that Postgres makes
of the same texts. All else goes as an agent's searches go, on a Postgres of its own, with row-level
security and the kernel's embedding model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg

ROOT = Path(__file__).resolve().parents[2]

from aios_broker.contract.names import SearchMode  # noqa: E402
from aios_broker.places import Holder  # noqa: E402
from aios_broker.postgres.store import AgentRow, Store  # noqa: E402
from aios_workers.search.corpora import ChunkQuery, Key, NoteQuery  # noqa: E402
from aios_workers.search.indexing import embed_missing  # noqa: E402
from aios_workers.search.minilm import NAME, MiniLm  # noqa: E402
from aios_workers.search.ranking import find  # noqa: E402
from benchmarks.provenance import commit_of, today  # noqa: E402
from benchmarks.search.notes import DIMENSION, Vectors, database  # noqa: E402
from benchmarks.search.plain_bm25 import PlainBm25  # noqa: E402
from benchmarks.search.sets import (  # noqa: E402
    Memory,
    Question,
    development_files,
    development_notes,
    friends,
    locomo,
    qmsum,
)

K = 10
MODES: tuple[SearchMode, ...] = ("keyword", "semantic", "hybrid")
WAYS = ("bm25", *MODES)
Hits = dict[str, dict[str, list[bool]]]  # of each kind of question, by each way of searching
NameOf = Callable[[Key], str]

_NOTE = """
    INSERT INTO note (id, tenant_id, owner_id, program, turn, content, words)
    VALUES (%s, %s, %s, %s, %s, %s, to_tsvector('english', %s))
"""
_FILE = """
    WITH d AS (
        INSERT INTO directory (tenant_id, owner_id, ancestors, path)
        VALUES (%(tenant)s, %(owner)s, '{}', '/') RETURNING id
    )
    INSERT INTO file (tenant_id, owner_id, directory_id, path, version, size_bytes, sha256)
    SELECT %(tenant)s, %(owner)s, id, '/handbook', 1, 1, '' FROM d RETURNING id
"""
_PART = """
    INSERT INTO file_chunk (file_id, ordinal, owner_id, version, start, text, words)
    VALUES (%s, %s, %s, 1, 0, %s, to_tsvector('english', %s))
"""
_LEXEMES = """
    SELECT array_agg(w.lexeme) AS words FROM unnest(to_tsvector('english', %s)) w, unnest(positions)
"""


class Model:
    """The kernel's embedding model, as search and indexing use it."""

    model = NAME
    dimension = DIMENSION

    def __init__(self) -> None:
        self._model = MiniLm.load()

    async def embed(self, texts: Sequence[str], _: Holder) -> Vectors:
        """Return a vector for each text."""
        return await asyncio.to_thread(self._model.embed, texts)


class Asked:
    """One agent's memory on a database, and the questions put to it."""

    def __init__(self, url: str, store: Store, agent: AgentRow, model: Model) -> None:
        self._url, self._store, self._agent, self._model = url, store, agent, model

    async def notes(self, memory: Memory) -> Hits:
        """Load notes, and ask."""
        names = {}
        with self._steward() as connection:
            turns: dict[str, int] = defaultdict(int)
            for place, text in enumerate(memory.texts):
                note_id = f"{self._agent.id:016x}{place:016x}"
                names[note_id] = text.name
                turns[text.conversation] += 1
                turn = turns[text.conversation] if text.conversation else None
                whose = (self._agent.tenant_id, self._agent.id, text.conversation, turn)
                connection.execute(_NOTE, (note_id, *whose, text.words, text.words))
        found = NoteQuery("", K, owners=(self._agent.id,))
        return await self._ask(memory, found, lambda key: names[key[1]])

    async def files(self, memory: Memory) -> Hits:
        """Load the parts of a file, and ask."""
        with self._steward() as connection:
            whose = {"tenant": self._agent.tenant_id, "owner": self._agent.id}
            [file] = connection.execute(_FILE, whose).fetchall()
            for place, text in enumerate(memory.texts):
                row = (file[0], place, self._agent.id, text.words, text.words)
                connection.execute(_PART, row)
        found = ChunkQuery("", K, owner=self._agent.id)
        return await self._ask(memory, found, lambda key: memory.texts[key[2]].name)

    def _steward(self) -> psycopg.Connection[tuple[int, ...]]:
        connection = psycopg.connect(self._url.replace("+psycopg", ""))
        connection.execute("SET ROLE aios_steward")
        return connection

    async def _ask(self, memory: Memory, query: NoteQuery | ChunkQuery, name_of: NameOf) -> Hits:
        while await embed_missing(self._store, self._model):
            pass
        with self._steward() as connection:
            plain = PlainBm25(
                {text.name: _lexemes(connection, text.words) for text in memory.texts}
            )
            hits: Hits = defaultdict(lambda: defaultdict(list))
            for question in memory.questions:
                ranked = list(plain.scores(_lexemes(connection, question.text)))
                _enter(hits, question, "bm25", ranked[:K])
        vectors = await self._model.embed(
            [question.text for question in memory.questions], Holder("", "")
        )
        for question, vector in zip(memory.questions, vectors, strict=True):
            for mode in MODES:
                wanted = replace(query, text=question.text, mode=mode)
                async with self._store.as_agent(self._agent) as cursor:
                    given = None if mode == "keyword" else vector
                    found = await find(cursor, self._model, wanted, given)
                _enter(hits, question, mode, [name_of(key) for key, _ in found])
        return hits


def _enter(hits: Hits, question: Question, way: str, names: Sequence[str]) -> None:
    hits[question.kind][way].append(bool(question.answers & set(names)))


def _lexemes(connection: psycopg.Connection[tuple[int, ...]], text: str) -> list[str]:
    row = connection.execute(_LEXEMES, (text,)).fetchone()
    words: object = row[0] if row else None
    return [str(word) for word in words] if isinstance(words, list) else []


def joined(parts: Iterable[Hits]) -> dict[str, dict[str, float | int]]:
    """Return the shares that were found, in %, of each kind and of the parts as a whole."""
    hits: Hits = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for kind, ways in part.items():
            whole = kind.split(":")[0] if ":" in kind else "all"
            for way, found in ways.items():
                hits[kind][way] += found
                hits[whole][way] += found
    return {
        kind: {
            "questions": len(ways["bm25"]),
            **{way: round(100 * sum(found) / len(found), 1) for way, found in ways.items()},
        }
        for kind, ways in sorted(hits.items())
    }


async def measure(
    url: str, path: Path | None, friends_path: Path | None, qmsum_path: Path | None
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Return what is found of each set."""
    store, model = Store(url, limit_s=300.0), Model()

    async def asked(name: str) -> Asked:
        return Asked(url, store, await store.vouched(name, "default"), model)

    try:
        notes = await (await asked("notes")).notes(development_notes())
        files = await (await asked("files")).files(development_files())
        results = {"development": joined([notes, files])}
        if path is not None:
            parts = [
                await (await asked(f"locomo-{number}")).notes(memory)
                for number, memory in enumerate(locomo(path))
            ]
            results["LoCoMo"] = joined(parts)
        if friends_path is not None:
            results["FriendsQA"] = joined(
                [await (await asked("friends")).notes(friends(friends_path))]
            )
        if qmsum_path is not None:
            parts = [
                await (await asked(f"qmsum-{number}")).notes(memory)
                for number, memory in enumerate(qmsum(qmsum_path))
            ]
            results["QMSum"] = joined(parts)
    finally:
        await store.aclose()
    return results


def main(arguments: list[str]) -> int:
    """Measure, print, and write JSON where asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--locomo", type=Path, metavar="PATH")
    parser.add_argument("--friends", type=Path, metavar="PATH")
    parser.add_argument("--qmsum", type=Path, metavar="PATH")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="aios-bench-") as folder,
        database(Path(folder)) as url,
    ):
        results = asyncio.run(measure(url, given.locomo, given.friends, given.qmsum))
    for name, kinds in results.items():
        print(f"{name}\n{'':32}{'questions':>10}" + "".join(f"{way:>10}" for way in WAYS))
        for kind, found in kinds.items():
            print(f"{kind:32}{found['questions']:10}" + "".join(f"{found[w]:10}" for w in WAYS))
    if given.json is not None:
        text = json.dumps({"at": today(), "commit": commit_of(ROOT), **results}, indent=2)
        given.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
