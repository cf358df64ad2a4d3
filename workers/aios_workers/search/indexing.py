"""Give notes and parts of files their vectors: soon after they were written, or all anew.

A writer leaves `model_id` null; one worker of the fleet at a time (an advisory lock) embeds what
waits and writes the vectors. No row is locked while the model works: a row that was changed
meanwhile keeps waiting, and its new text is embedded. A batch is shared among the tenants that
have something in it, and a tenant's part among its agents; where they are more than its rows, the
lot decides: one agent's long file keeps nobody's note out for longer than a batch or two.

`reindex` embeds everything by another model. It can be stopped and run again: rows that have the
new model's vector are done. Until it ends, search by meaning finds by the old model what is left
of it; search by keywords goes on as ever. Workers of the old model write no vectors once it has
ended: restart them with the new settings.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import psycopg

from aios_broker.contract.errors import InvalidConfig
from aios_broker.postgres.database import (
    TRANSACTION_TIMEOUT_S,
    check_database_url,
    database_errors,
)
from aios_broker.postgres.store import Cursor, Store, only_row
from aios_workers.modules.services import Embedder
from aios_workers.search.corpora import CORPORA, Corpus
from aios_workers.search.embedder import KERNEL
from aios_workers.search.ranking import UNEMBEDDED, Vector, model_number, vector_text

BATCH = 16  # rows of one transaction: a second or two of one CPU, where they are long
ENOUGH_S = 2.0  # after which no more of a batch is begun
PORTION_CHARACTERS = 2_048  # of a batch, that are with the model at a time
PAUSE_S = 0.5  # between looks for rows that wait
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('aios.indexing', 0)) AS ours"


def waiting_rows(corpus: Corpus) -> str:
    """Return the SQL of the next batch of rows that have no vector: of all owners, in turns.

    The owners are found by the index of what waits, one step each, however much each has.
    """
    return f"""
    WITH RECURSIVE owner AS (
        SELECT min(owner_id) AS id FROM {corpus.table} WHERE {UNEMBEDDED}
        UNION ALL
        SELECT (SELECT min(owner_id) FROM {corpus.table} WHERE {UNEMBEDDED} AND owner_id > o.id)
          FROM owner o WHERE o.id IS NOT NULL
    ), lot AS (
        SELECT o.id, a.tenant_id, random() AS lot FROM owner o JOIN agent a ON a.id = o.id
    ), of_owner AS (
        SELECT w.*, lot.tenant_id, lot.lot FROM (
            SELECT *, row_number() OVER (PARTITION BY tenant_id ORDER BY lot) AS nth FROM lot
        ) lot, LATERAL (
            SELECT {corpus.columns}, t.version, {corpus.text} AS text,
                   row_number() OVER (ORDER BY {corpus.order}) AS turn
              FROM {corpus.table} t WHERE t.owner_id = lot.id AND {UNEMBEDDED}
             ORDER BY {corpus.order} LIMIT {BATCH}
        ) w WHERE lot.nth <= {BATCH}
    ), of_tenant AS (
        SELECT *, row_number() OVER (PARTITION BY tenant_id ORDER BY turn, lot) AS place
          FROM of_owner
    )
    SELECT {", ".join(corpus.keys)}, version, text FROM of_tenant ORDER BY place, lot LIMIT {BATCH}
    """


def other_rows(corpus: Corpus, model: int) -> str:
    """Return the SQL of a batch of rows that have no vector of this model."""
    return (
        f"SELECT {', '.join(corpus.keys)}, version, {corpus.text} AS text FROM {corpus.table} t "
        f"WHERE {_is_other(model)} ORDER BY {corpus.order} LIMIT {BATCH}"
    )


def _is_other(model: int) -> str:
    return f"model_id IS DISTINCT FROM {model:d}"


def portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut texts into what is with the model at a time."""
    first, characters = 0, 0
    for place, text in enumerate(texts):
        characters += len(text)
        if characters > PORTION_CHARACTERS and place > first:
            yield texts[first:place]
            first, characters = place, len(text)
    if first < len(texts):
        yield texts[first:]


async def embed_rows(
    cursor: Cursor, embedder: Embedder, corpus: Corpus, model: int, rows_query: str
) -> int:
    """Embed a batch of rows, or what of it can be done soon; return how many that were.

    Where the model has much to do for others, the vectors that are there are written: nothing of a
    transaction that ends too late would be.
    """
    await cursor.execute(rows_query)
    rows = await cursor.fetchall()
    vectors: list[Vector] = []
    until_s = time.monotonic() + ENOUGH_S
    for texts in portions([row.text for row in rows]):
        vectors += list(await embedder.embed(texts, KERNEL))
        if time.monotonic() > until_s:
            break
    if not vectors:
        return 0
    matches = " AND ".join(f"{key} = %s" for key in corpus.keys)
    await cursor.executemany(
        f"UPDATE {corpus.table} SET model_id = %s, vector = %s::halfvec "
        f"WHERE {matches} AND version = %s AND {_is_other(model)}",
        [
            (model, vector_text(vector), *row[: len(corpus.keys)], row.version)
            for row, vector in zip(rows, vectors, strict=False)
        ],
    )
    return len(vectors)


async def embed_missing(store: Store, embedder: Embedder) -> int:
    """Embed up to a batch of each table's rows that have no vector; return how many.

    0 also where another worker does it just now.

    Raises:
        InvalidConfig: The stored vectors are of another model.
        CoreError: The model failed; the rows keep waiting.
    """
    done = 0
    for corpus in CORPORA:
        async with store.as_steward(limit_s=TRANSACTION_TIMEOUT_S) as cursor:
            await cursor.execute(_LOCK)
            held = await only_row(cursor)
            if not held.ours:
                return done
            model = await model_number(cursor, embedder)
            done += await embed_rows(cursor, embedder, corpus, model, waiting_rows(corpus))
    return done


async def index_step(store: Store, embedder: Embedder) -> float:
    """Embed what waits for its vector; return how long to wait before the next look, in s."""
    return 0.0 if await embed_missing(store, embedder) else PAUSE_S


Say = Callable[[str], None]

_MODEL = """
    INSERT INTO embedding_model (name, dimension) VALUES (%s, %s)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id, dimension, active
"""


async def reindex(store: Store, embedder: Embedder, say: Say) -> int:
    """Give all rows the embedder's vectors and make its model the one that counts.

    Returns:
        How many rows were embedded.

    Raises:
        InvalidConfig: There is no embedding model, or one of that name has another dimension.
    """
    if embedder.dimension == 0:
        raise InvalidConfig(
            "there is no embedding model to index with",
            field="AIOS_EMBEDDING_MODEL",
            remedy="set it to `minilm`, or name a core in AIOS_EMBEDDING_CORE",
        )
    model = await _register(store, embedder)
    done = await _embed_all(store, embedder, model, say)
    async with store.as_steward() as cursor:
        await cursor.execute("UPDATE embedding_model SET active = (id = %s)", (model,))
    done += await _embed_all(store, embedder, model, say)  # written by the old model meanwhile
    say("building the indexes")
    await _rebuild_indexes(store.url, model, embedder.dimension)
    return done


async def _register(store: Store, embedder: Embedder) -> int:
    async with store.as_steward() as cursor:
        await cursor.execute(_MODEL, (embedder.model, embedder.dimension))
        row = await only_row(cursor)
    if row.dimension != embedder.dimension:
        raise InvalidConfig(
            f"the model {embedder.model!r} is known with {row.dimension} numbers, not "
            f"{embedder.dimension}",
            field="AIOS_EMBEDDING_DIMENSION",
            remedy=f"set it to {row.dimension}, or serve the other model under another name",
        )
    return int(row.id)


async def _embed_all(store: Store, embedder: Embedder, model: int, say: Say) -> int:
    done = 0
    for corpus in CORPORA:
        total = await _count(store, corpus, _is_other(model))
        embedded = 0
        while True:
            async with store.as_steward(limit_s=TRANSACTION_TIMEOUT_S) as cursor:
                rows = await embed_rows(cursor, embedder, corpus, model, other_rows(corpus, model))
            if not rows:
                break
            embedded += rows
            say(f"{corpus.table}: {embedded} of {max(total, embedded)} rows")
        done += embedded
    return done


async def _count(store: Store, corpus: Corpus, waiting: str) -> int:
    async with store.as_steward() as cursor:
        await cursor.execute(f"SELECT count(*) AS rows FROM {corpus.table} WHERE {waiting}")
        row = await only_row(cursor)
    return int(row.rows)


async def _rebuild_indexes(url: str, model: int, dimension: int) -> None:
    """Build the model's indexes beside the traffic, then drop those of other models."""
    with database_errors(url):
        connection = await psycopg.AsyncConnection.connect(check_database_url(url), autocommit=True)
        async with connection:
            for corpus in CORPORA:
                name = f"ix_{corpus.table}_vector_{model:d}"
                await _drop_invalid(connection, name)
                await connection.execute(
                    f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {corpus.table} USING hnsw "
                    f"((vector::halfvec({dimension:d})) halfvec_cosine_ops) "
                    f"WHERE model_id = {model:d}"
                )
                for other in await _indexes(connection, corpus.table):
                    if other != name:
                        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {other}")


async def _drop_invalid(connection: psycopg.AsyncConnection[tuple[object, ...]], name: str) -> None:
    """Drop what is left of a build that was cut short."""
    found = await connection.execute(
        "SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE c.relname = %s AND NOT i.indisvalid",
        (name,),
    )
    if await found.fetchone() is not None:
        await connection.execute(f"DROP INDEX CONCURRENTLY {name}")


async def _indexes(
    connection: psycopg.AsyncConnection[tuple[object, ...]], table: str
) -> list[str]:
    found = await connection.execute(
        "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema() AND indexname ~ %s",
        (rf"^ix_{table}_vector_\d+$",),
    )
    return [str(name) for (name,) in await found.fetchall()]
