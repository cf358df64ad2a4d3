"""Search notes and parts of files: by words, by vectors, or by both, in the caller's transaction.

Row-level security decides what is seen: all of it runs as the agent whose cursor it is. `t` is the
table's name in conditions.

Scores lie between 0 and 1 and compare between queries: the cosine, the share of what the query's
words are worth (BM25), or the mean of both. A turn of a conversation has some of what the turns
beside it score better: it may say something only after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import SearchMode
from aios_broker.postgres.store import Cursor, only_row
from aios_workers.modules.services import Embedder
from aios_workers.search.corpora import ChunkQuery, Corpus, Key, NoteQuery, Ranked, Scope
from aios_workers.search.query import Filter, filter_of
from aios_workers.search.words import (
    MOST_MATCHES,
    best_by_words,
    score_sql,
    texts_that_match,
    weigh,
)

MEANING = 0.45  # the share of the cosine in a hybrid score; words have the rest
FROM_BEFORE = 0.7  # of what the turn before scores better
FROM_AFTER = 0.3
LEAST_DEPTH = 50  # of each of the two lists that are joined
EXACT_ROWS = 5_000  # of a scope: up to here all its vectors are compared, 5 ms at most
MAX_SCANNED = 40_000  # entries of the vector index that one search looks at
LEAST_CANDIDATES = 60  # of the vector index's search
MOST_CANDIDATES = 400
MOST_COUNTED = 1_000  # of the rows that wait for their vectors
UNEMBEDDED = "model_id IS NULL"

Vector = NDArray[np.float32]

# Planned anew each time: how many rows a scope has decides between indexes, and a plan for any
# scope reads the whole table.
_PLANNING = """
    SELECT set_config('plan_cache_mode', 'force_custom_plan', true) AS plan,
           set_config('jit', 'off', true) AS jit
"""
_SCANNING = """
    SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true) AS scan,
           set_config('hnsw.ef_search', %s, true) AS candidates,
           set_config('hnsw.max_scan_tuples', %s, true) AS scanned
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is searched for."""

    text: str
    vector: Vector | None
    model: int  # whose vectors are compared
    mode: SearchMode
    k: int
    only: Filter = field(default_factory=Filter)  # what the query's rules ask of each text

    @property
    def depth(self) -> int:
        """How much is ranked: more than is wanted, where two lists are joined."""
        return max(LEAST_DEPTH, 2 * self.k) if self.mode == "hybrid" else self.k


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that both ways of searching have scored."""

    score: float  # its own
    is_inside: bool  # the scope: else it only counts for its neighbours
    place: tuple[int, str, int] | None = None  # of a turn: owner, program, number


async def rank(cursor: Cursor, places: Sequence[tuple[Corpus, Scope]], wanted: Wanted) -> Ranked:
    """Return keys and scores of the k best rows, best first; a key begins with its table's name.

    Equal ones come in the order of places.
    """
    await cursor.execute(_PLANNING)
    found = [
        ((corpus.table, *key), score)
        for corpus, scope in places
        for key, score in await _in_place(cursor, wanted, corpus, scope)
    ]
    return sorted(found, key=lambda item: -item[1])[: wanted.k]


async def _in_place(cursor: Cursor, wanted: Wanted, corpus: Corpus, scope: Scope) -> Ranked:
    if wanted.mode == "semantic":
        return await _nearest(cursor, wanted, corpus, scope)
    weighed = await weigh(cursor, corpus, scope, wanted.text, wanted.only.tsquery)
    words: Ranked = []
    if weighed is not None:
        words = await best_by_words(cursor, corpus, scope, weighed, wanted.depth)
    if wanted.mode == "keyword" or wanted.vector is None:
        return words
    near = await _nearest(cursor, wanted, corpus, scope)
    keys = list(dict.fromkeys(key for key, _ in (*words, *near)))
    if not keys:
        return []
    formula = await score_sql(cursor, weighed)
    await cursor.execute(
        both_query(corpus, scope, wanted, formula),
        {**_parameters(scope, wanted), **_columns(corpus, keys)},
    )
    return fuse({_key(corpus, row): _candidate(row) for row in await cursor.fetchall()})


def _columns(corpus: Corpus, keys: Sequence[Key]) -> dict[str, list[Any]]:
    return {f"keys_{name}": [key[at] for key in keys] for at, name in enumerate(corpus.keys)}


def _key(corpus: Corpus, row: Any) -> Key:  # noqa: ANN401  a row
    return tuple(row[: len(corpus.keys)])


def _candidate(row: Any) -> Candidate:  # noqa: ANN401  a row
    score = MEANING * max(row.cosine or 0.0, 0.0) + (1 - MEANING) * row.by_words
    place = None if row.turn is None else (row.owner_id, row.program, row.turn)
    return Candidate(score, row.is_inside, place)


def both_query(corpus: Corpus, scope: Scope, wanted: Wanted, formula: str) -> str:
    """Return the SQL that scores rows by their keys, and the turns beside them, both ways."""
    assert wanted.vector is not None
    half = f"halfvec({wanted.vector.size})"
    cosine = f"1 - (t.vector::{half} <=> %(vector)s::{half})"
    return (
        f"WITH wanted AS MATERIALIZED ({corpus.with_neighbours}) "
        f"SELECT {corpus.columns}, CASE WHEN t.model_id = {wanted.model:d} "
        f"AND {scope.by_meaning} THEN {cosine} END "
        f"AS cosine, {formula} AS by_words, ({scope.condition}{wanted.only.sql}) "
        f"AS is_inside, {corpus.turn} "
        f"FROM wanted JOIN {corpus.table} t USING ({', '.join(corpus.keys)})"
    )


def fuse(candidates: Mapping[Key, Candidate]) -> Ranked:
    """Return the rows that are inside the scope, with what their neighbours add, best first."""
    turns = {one.place: one.score for one in candidates.values() if one.place is not None}
    found = [
        (key, one.score + _from_neighbours(one, turns))
        for key, one in sorted(candidates.items())
        if one.is_inside
    ]
    return sorted(found, key=lambda item: -item[1])


def _from_neighbours(one: Candidate, turns: Mapping[tuple[int, str, int], float]) -> float:
    if one.place is None:
        return 0.0
    owner, program, turn = one.place
    before = turns.get((owner, program, turn - 1), 0.0)
    after = turns.get((owner, program, turn + 1), 0.0)
    return FROM_BEFORE * max(0.0, before - one.score) + FROM_AFTER * max(0.0, after - one.score)


def nearest_query(
    corpus: Corpus, wanted: Wanted, scope: Scope, *, exact: bool, is_listed: bool = False
) -> str:
    """Return the SQL of the nearest rows: all vectors of the scope, or by the model's index.

    `is_listed`: of those alone whose keys are given.

    The model's number and the dimension are written out: the index holds for one model only, and
    Postgres must know which when it plans.
    """
    assert wanted.vector is not None
    distance = (
        f"vector::halfvec({wanted.vector.size}) <=> %(vector)s::halfvec({wanted.vector.size})"
    )
    where = f"t.model_id = {wanted.model:d} AND {scope.condition} AND {scope.by_meaning}"
    where += wanted.only.sql
    names = ", ".join(corpus.keys)
    if exact:
        table = f"{corpus.table} t"
        if is_listed:
            table = f"({corpus.given}) given JOIN {table} USING ({names})"
        return (
            f"WITH part AS MATERIALIZED (SELECT {corpus.columns}, t.vector "
            f"FROM {table} WHERE {where}) "
            f"SELECT {names}, {distance} AS distance FROM part ORDER BY distance LIMIT %(depth)s"
        )
    return (
        f"WITH near AS MATERIALIZED (SELECT {corpus.columns}, t.{distance} AS distance "
        f"FROM {corpus.table} t WHERE {where} ORDER BY t.{distance} LIMIT %(depth)s) "
        f"SELECT {names}, distance FROM near ORDER BY distance"
    )


async def _nearest(cursor: Cursor, wanted: Wanted, corpus: Corpus, scope: Scope) -> Ranked:
    if wanted.only.is_selective:
        keys = await texts_that_match(cursor, corpus, scope, wanted.only.tsquery)
        if len(keys) < MOST_MATCHES:  # all of them
            return await _compared(cursor, corpus, wanted, scope, among=keys)
    candidates = min(MOST_CANDIDATES, max(LEAST_CANDIDATES, wanted.depth))
    await cursor.execute(_SCANNING, (str(candidates), str(MAX_SCANNED)))
    exact = scope.countable and await _is_small(cursor, corpus, wanted, scope)
    found = await _compared(cursor, corpus, wanted, scope, exact=exact)
    if not exact and len(found) < wanted.depth:
        # The index was searched as far as may be: what is seen lies too thinly in it.
        found = await _compared(cursor, corpus, wanted, scope, exact=True)
    return found


async def _compared(
    cursor: Cursor,
    corpus: Corpus,
    wanted: Wanted,
    scope: Scope,
    *,
    exact: bool = True,
    among: Sequence[Key] | None = None,
) -> Ranked:
    parameters = {**_parameters(scope, wanted), "depth": wanted.depth}
    if among is not None:
        parameters |= _columns(corpus, among)
    sql = nearest_query(corpus, wanted, scope, exact=exact, is_listed=among is not None)
    await cursor.execute(sql, parameters)
    return [(tuple(row[:-1]), 1.0 - row[-1]) for row in await cursor.fetchall()]


def _parameters(scope: Scope, wanted: Wanted) -> dict[str, object]:
    return {
        **scope.parameters,
        **wanted.only.parameters,
        "vector": vector_text(wanted.vector),
    }


async def _is_small(cursor: Cursor, corpus: Corpus, wanted: Wanted, scope: Scope) -> bool:
    await cursor.execute(
        f"SELECT count(*) AS rows FROM (SELECT FROM {corpus.table} t WHERE {scope.condition} "
        f"LIMIT {EXACT_ROWS + 1}) part",
        dict(scope.parameters),
    )
    counted = await only_row(cursor)
    return bool(counted.rows <= EXACT_ROWS)


async def count_unembedded(cursor: Cursor, query: NoteQuery | ChunkQuery) -> int:
    """Return how many rows a search by meaning would look at, once they have their vectors.

    MOST_COUNTED at most for each table, and of those that the cursor's agent may see.
    """
    found = 0
    for corpus, scope in query.places:
        seen = "" if scope.countable else f" AND {_SEEN_OWNERS}"
        await cursor.execute(
            f"SELECT count(*) AS rows FROM (SELECT FROM {corpus.table} t "
            f"WHERE t.{UNEMBEDDED} AND {scope.condition}{seen} LIMIT {MOST_COUNTED}) part",
            dict(scope.parameters),
        )
        found += int((await only_row(cursor)).rows)
    return found


def vector_text(vector: Vector | None) -> str:
    """Return a vector as pgvector reads it."""
    return "[" + ",".join(f"{number:.6g}" for number in (() if vector is None else vector)) + "]"


# Whose rows there are to be seen at all: found by an index, where row-level security looks at each.
_SEEN_OWNERS = "t.owner_id = ANY ((SELECT aios_file_owners('see') || aios_agent_id())::bigint[])"
_ACTIVE = "SELECT id, name, dimension FROM embedding_model WHERE active"


async def model_number(cursor: Cursor, embedder: Embedder) -> int:
    """Return the number of the embedder's model, which the stored vectors have to be of.

    Raises:
        InvalidConfig: They are of another model, or of another dimension.
    """
    await cursor.execute(_ACTIVE)
    found = await cursor.fetchone()
    if found is not None and (found.name, found.dimension) == (embedder.model, embedder.dimension):
        return int(found.id)
    stored = f"{found.name!r} ({found.dimension} numbers)" if found else "no model"
    raise InvalidConfig(
        f"the stored vectors are of {stored}, this worker's model is {embedder.model!r} "
        f"({embedder.dimension} numbers)",
        field="AIOS_EMBEDDING_MODEL",
        remedy="run `aios reindex` to embed everything anew, or name the stored model again",
    )


async def find(
    cursor: Cursor, embedder: Embedder, query: NoteQuery | ChunkQuery, vector: Vector | None
) -> Ranked:
    """Return keys and scores of the k best, best first, that the cursor's agent may see.

    A key begins with its table's name. `vector` is that of the query's text (`query_vector`, before
    the transaction); None: hybrid search is by keywords then.

    Raises:
        InvalidConfig: The stored vectors are of another model than the query's.
    """
    model = 0 if vector is None else await model_number(cursor, embedder)
    only = await filter_of(cursor, query.rules)
    wanted = Wanted(query.text, vector, model, query.mode, query.k, only)
    ranked = await rank(cursor, query.places, wanted)
    return [(key, score) for key, score in ranked if score >= query.min_score]
