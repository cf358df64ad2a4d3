"""Search notes and parts of files: by words, by vectors, or by both, in the caller's transaction.

Row-level security decides what is seen: all of it runs as the agent whose cursor it is. `t` is the
table's name in conditions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import SearchMode
from aios_broker.postgres.store import Cursor, only_row
from aios_workers.modules.services import Embedder

FUSION_K = 60  # of reciprocal rank fusion: how little the first ranks count above the next ones
LEAST_DEPTH = 50  # of each of the two lists that are fused
EXACT_ROWS = 5_000  # of a scope: up to here all its vectors are compared, 5 ms at most
MAX_MATCHES = 1_000  # of the words of a query, any of them: those beyond are not ranked
MAX_SCANNED = 40_000  # entries of the vector index that one search looks at
LEAST_CANDIDATES = 60  # of the vector index's search
MOST_CANDIDATES = 400
MOST_COUNTED = 1_000  # of the rows that wait for their vectors
UNEMBEDDED = "model_id IS NULL"

Vector = NDArray[np.float32]
Key = tuple[Any, ...]
Ranked = list[tuple[Key, float]]  # best first

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
_QUERY = """
    SELECT numnode(q) AS nodes, q::text AS every, replace(q::text, ' & ', ' | ') AS any
      FROM websearch_to_tsquery('english', %s) q
"""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A table that is searched: its rows have words, and vectors of what `text` says."""

    table: str
    keys: tuple[str, ...]
    order: str  # in which its rows get their vectors
    text: str  # SQL

    @property
    def columns(self) -> str:
        """Return the keys as they are selected."""
        return ", ".join(f"t.{key}" for key in self.keys)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows may be found: a condition on `t`, written by the module, and its parameters."""

    condition: str = "true"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    countable: bool = False  # by an index: a small scope is then searched exactly
    owners: tuple[int, ...] | None = None  # whose rows alone it has; None: anybody's


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is searched for."""

    text: str
    vector: Vector | None
    model: int  # whose vectors are compared
    mode: SearchMode
    k: int

    @property
    def depth(self) -> int:
        """How much is ranked: more than is wanted, where two lists are fused."""
        return max(LEAST_DEPTH, 2 * self.k) if self.mode == "hybrid" else self.k


async def rank(cursor: Cursor, places: Sequence[tuple[Corpus, Scope]], wanted: Wanted) -> Ranked:
    """Return keys and scores of the k best rows, best first; a key begins with its table's name.

    Scores compare within one answer: the cosine, the rank by words, or the fused rank.
    """
    await cursor.execute(_PLANNING)
    lists: list[Ranked] = []
    if wanted.mode != "keyword" and wanted.vector is not None:
        lists.append(await _over(places, partial(_nearest, cursor, wanted)))
    if wanted.mode != "semantic":
        lists.append(await _over(places, partial(_by_words, cursor, wanted)))
    if len(lists) == 1:
        return lists[0][: wanted.k]
    return fuse(lists)[: wanted.k]


async def _over(
    places: Sequence[tuple[Corpus, Scope]], look: Callable[[Corpus, Scope], Awaitable[Ranked]]
) -> Ranked:
    """Return what is found in all places, best first; equal ones in the order of places."""
    found = [
        ((corpus.table, *key), score)
        for corpus, scope in places
        for key, score in await look(corpus, scope)
    ]
    return sorted(found, key=lambda item: -item[1])


def fuse(lists: Sequence[Ranked]) -> Ranked:
    """Join ranked lists by reciprocal rank fusion; the first list decides where two are equal."""
    scores: dict[Key, float] = {}
    for ranked in lists:
        for place, (key, _) in enumerate(ranked, start=1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (FUSION_K + place)
    return sorted(scores.items(), key=lambda item: -item[1])


def nearest_query(corpus: Corpus, wanted: Wanted, scope: Scope, *, exact: bool) -> str:
    """Return the SQL of the nearest rows: all vectors of the scope, or by the model's index.

    The model's number and the dimension are written out: the index holds for one model only, and
    Postgres must know which when it plans.
    """
    assert wanted.vector is not None
    distance = (
        f"vector::halfvec({wanted.vector.size}) <=> %(vector)s::halfvec({wanted.vector.size})"
    )
    where = f"t.model_id = {wanted.model:d} AND {scope.condition}"
    names = ", ".join(corpus.keys)
    if exact:
        return (
            f"WITH part AS MATERIALIZED (SELECT {corpus.columns}, t.vector "
            f"FROM {corpus.table} t WHERE {where}) "
            f"SELECT {names}, {distance} AS distance FROM part ORDER BY distance LIMIT %(depth)s"
        )
    return (
        f"WITH near AS MATERIALIZED (SELECT {corpus.columns}, t.{distance} AS distance "
        f"FROM {corpus.table} t WHERE {where} ORDER BY t.{distance} LIMIT %(depth)s) "
        f"SELECT {names}, distance FROM near ORDER BY distance"
    )


async def _nearest(cursor: Cursor, wanted: Wanted, corpus: Corpus, scope: Scope) -> Ranked:
    candidates = min(MOST_CANDIDATES, max(LEAST_CANDIDATES, wanted.depth))
    await cursor.execute(_SCANNING, (str(candidates), str(MAX_SCANNED)))
    exact = scope.countable and await _is_small(cursor, corpus, wanted, scope)
    found = await _compared(cursor, corpus, wanted, scope, exact=exact)
    if not exact and len(found) < wanted.depth:
        # The index was searched as far as may be: what is seen lies too thinly in it.
        found = await _compared(cursor, corpus, wanted, scope, exact=True)
    return found


async def _compared(
    cursor: Cursor, corpus: Corpus, wanted: Wanted, scope: Scope, *, exact: bool
) -> Ranked:
    parameters = {**scope.parameters, "vector": vector_text(wanted.vector), "depth": wanted.depth}
    await cursor.execute(nearest_query(corpus, wanted, scope, exact=exact), parameters)
    return [(tuple(row[:-1]), 1.0 - row[-1]) for row in await cursor.fetchall()]


async def _is_small(cursor: Cursor, corpus: Corpus, wanted: Wanted, scope: Scope) -> bool:
    await cursor.execute(
        f"SELECT count(*) AS rows FROM (SELECT FROM {corpus.table} t WHERE {scope.condition} "
        f"LIMIT {EXACT_ROWS + 1}) part",
        dict(scope.parameters),
    )
    counted = await only_row(cursor)
    return bool(counted.rows <= EXACT_ROWS)


async def _by_words(cursor: Cursor, wanted: Wanted, corpus: Corpus, scope: Scope) -> Ranked:
    """Return rows with all words of the query, then those with any of them."""
    await cursor.execute(_QUERY, (wanted.text,))
    query = await only_row(cursor)
    if not query.nodes:  # nothing but stop words
        return []
    found = await _matches(cursor, corpus, wanted, scope, query.every)
    # A query that excludes a word would, with `or`, find all that lack it.
    if len(found) >= wanted.depth or query.any == query.every or "!" in query.every:
        return found
    known = {key for key, _ in found}
    others = await _matches(cursor, corpus, wanted, scope, query.any)
    least = min((score for _, score in found), default=1.0)
    found += [(key, min(score, least)) for key, score in others if key not in known]
    return found[: wanted.depth]


async def _matches(
    cursor: Cursor, corpus: Corpus, wanted: Wanted, scope: Scope, query: str
) -> Ranked:
    names = ", ".join(corpus.keys)
    await cursor.execute(
        f"WITH part AS MATERIALIZED (SELECT {corpus.columns}, t.words "
        f"FROM aios_{corpus.table}_matches(%(query)s::tsquery, %(of)s::bigint[], {MAX_MATCHES}) m "
        f"JOIN {corpus.table} t USING ({names}) WHERE {scope.condition}) "
        f"SELECT {names}, ts_rank_cd(words, %(query)s::tsquery, 1) AS score FROM part "
        f"ORDER BY score DESC, {names} LIMIT %(depth)s",
        {
            **scope.parameters,
            "query": query,
            "depth": wanted.depth,
            "of": None if scope.owners is None else list(scope.owners),
        },
    )
    return [(tuple(row[:-1]), float(row[-1])) for row in await cursor.fetchall()]


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

# Of the text alone, so that a query in a person's own words lies near it: labels first, since the
# end of a long content does not reach the vector.
_NOTE_TEXT = (
    "concat_ws(E'\\n', nullif(btrim(array_to_string("
    "array_append(keywords || tags, context), ' ')), ''), content)"
)
NOTES = Corpus("note", ("id",), "seq", _NOTE_TEXT)
CHUNKS = Corpus("file_chunk", ("file_id", "ordinal"), "file_id, ordinal", "text")
MOUNTED = replace(CHUNKS, table="mount_chunk")
CORPORA = (NOTES, CHUNKS, MOUNTED)
_BELOW = (
    "EXISTS (SELECT FROM file f WHERE f.id = t.file_id "
    "AND (f.path = %(path)s OR starts_with(f.path, %(below)s)))"
)
_BELOW_MOUNT = (
    "EXISTS (SELECT FROM mount_file f JOIN mount m ON m.id = f.mount_id WHERE f.id = t.file_id "
    "AND (m.path || '/' || f.inner_path = %(path)s "
    "OR starts_with(m.path || '/' || f.inner_path, %(below)s)))"
)


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


@dataclass(frozen=True, slots=True)
class NoteQuery:
    """A search among notes; without owners and ids, among all that the agent may see."""

    text: str
    k: int = 10
    mode: SearchMode = "hybrid"
    owners: tuple[int, ...] | None = None  # whose notes; None with no ids: anybody's
    ids: tuple[str, ...] = ()  # single notes beside theirs
    tags: tuple[str, ...] = ()  # all of them
    category: str | None = None

    @property
    def places(self) -> list[tuple[Corpus, Scope]]:
        """Return the table, and which of its notes may be found."""
        return [(NOTES, self.scope)]

    @property
    def scope(self) -> Scope:
        """Return which notes may be found; those that have expired may not."""
        conditions = ["(t.expires_at IS NULL OR t.expires_at > now())"]
        everybody = self.owners is None and not self.ids
        if not everybody and self.ids:
            conditions.append("(t.owner_id = ANY(%(owners)s) OR t.id = ANY(%(ids)s))")
        elif not everybody:
            conditions.append("t.owner_id = ANY(%(owners)s)")
        if self.tags:
            conditions.append("t.tags @> %(tags)s::text[]")
        if self.category is not None:
            conditions.append("t.category = %(category)s")
        parameters = {
            "owners": list(self.owners or ()),
            "ids": list(self.ids),
            "tags": list(self.tags),
            "category": self.category,
        }
        owners = None if everybody or self.ids else self.owners
        return Scope(" AND ".join(conditions), parameters, countable=not everybody, owners=owners)


@dataclass(frozen=True, slots=True)
class ChunkQuery:
    """A search among the parts of files; without an owner, of all that the agent may see."""

    text: str
    k: int = 10  # parts: ask for more where they are grouped by file
    mode: SearchMode = "hybrid"
    owner: int | None = None
    path: str = "/"  # a file, or a directory with all below
    mounts_of: int | None = None  # whose mounted directories are searched as well; None: nobody's

    @property
    def places(self) -> list[tuple[Corpus, Scope]]:
        """Return the tables, and which of their parts may be found."""
        places = [(CHUNKS, self._scope(_BELOW, self.owner))]
        if self.mounts_of is not None:
            places.append((MOUNTED, self._scope(_BELOW_MOUNT, self.mounts_of)))
        return places

    def _scope(self, below: str, owner: int | None) -> Scope:
        conditions = [] if owner is None else ["t.owner_id = %(owner)s"]
        if self.path != "/":
            conditions.append(below)
        parameters = {"owner": owner, "path": self.path, "below": self.path.rstrip("/") + "/"}
        owners = None if owner is None else (owner,)
        return Scope(" AND ".join(conditions) or "true", parameters, owner is not None, owners)


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
    wanted = Wanted(query.text, vector, model, query.mode, query.k)
    return await rank(cursor, query.places, wanted)
