"""The duty that gives notes and parts of files their vectors, soon after they were written.

A writer leaves `model_id` null; one worker of the fleet at a time (an advisory lock) embeds what
waits and writes the vectors. No row is locked while the model works: a row that was changed
meanwhile keeps waiting, and its new text is embedded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aios_broker.periodic import periodic_task
from aios_broker.postgres.session import Cursor, Store, only_row
from aios_workers.modules.services import Embedder
from aios_workers.search.models import model_number
from aios_workers.search.ranking import vector_text
from aios_workers.search.words import note_text

BATCH = 32  # rows of one transaction
PAUSE_S = 0.5  # between looks for rows that wait
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('aios.indexing', 0)) AS ours"


@dataclass(frozen=True, slots=True)
class Source:
    """A table whose rows have vectors."""

    table: str
    select: str  # the keys, `version`, and what its text is made of
    keys: tuple[str, ...]
    order: str
    text: str  # the kind of text: see `_text`


NOTES = Source("note", "id, version, content, keywords, tags, context", ("id",), "seq", "note")
CHUNKS = Source(
    "file_chunk",
    "file_id, ordinal, version, text",
    ("file_id", "ordinal"),
    "file_id, ordinal",
    "chunk",
)
MOUNT_CHUNKS = replace(CHUNKS, table="mount_chunk")
SOURCES = (NOTES, CHUNKS, MOUNT_CHUNKS)


def _text(source: Source, row: Any) -> str:  # noqa: ANN401  a row of psycopg's
    if source.text == "chunk":
        return str(row.text)
    return note_text(row.content, row.keywords, row.tags, row.context)


async def embed_rows(
    cursor: Cursor, embedder: Embedder, source: Source, model: int, waiting: str
) -> int:
    """Embed a batch of the rows for which `waiting` holds; return how many there were."""
    await cursor.execute(
        f"SELECT {source.select} FROM {source.table} WHERE {waiting} "
        f"ORDER BY {source.order} LIMIT {BATCH}"
    )
    rows = await cursor.fetchall()
    if not rows:
        return 0
    vectors = await embedder.embed([_text(source, row) for row in rows])
    matches = " AND ".join(f"{key} = %s" for key in source.keys)
    await cursor.executemany(
        f"UPDATE {source.table} SET model_id = %s, vector = %s::halfvec "
        f"WHERE {matches} AND version = %s AND {waiting}",
        [
            (model, vector_text(vector), *_key(source, row), row.version)
            for row, vector in zip(rows, vectors, strict=True)
        ],
    )
    return len(rows)


def _key(source: Source, row: Any) -> Sequence[object]:  # noqa: ANN401  a row of psycopg's
    return [getattr(row, key) for key in source.keys]


async def embed_missing(store: Store, embedder: Embedder) -> int:
    """Embed up to a batch of each table's rows that have no vector; return how many.

    0 also where another worker does it just now.

    Raises:
        InvalidConfig: The stored vectors are of another model.
        CoreError: The model failed; the rows keep waiting.
    """
    done = 0
    for source in SOURCES:
        async with store.as_steward() as cursor:
            await cursor.execute(_LOCK)
            held = await only_row(cursor)
            if not held.ours:
                return done
            model = await model_number(cursor, embedder)
            done += await embed_rows(cursor, embedder, source, model, "model_id IS NULL")
    return done


@asynccontextmanager
async def indexing(
    store: Store, embedder: Embedder, unembedded: asyncio.Event
) -> AsyncIterator[None]:
    """Embed what waits for its vector, for as long as the context is open.

    `unembedded` is set by who has written something; what others write is found by looking.
    """
    if embedder.dimension == 0:  # there is no model: rows wait for the day that there is one
        yield
        return

    async def step() -> float:
        return 0.0 if await embed_missing(store, embedder) else PAUSE_S

    trouble = "notes and files wait for their vectors"
    async with periodic_task("indexing", step, trouble, wake=unembedded):
        yield
