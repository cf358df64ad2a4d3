"""Notes for a measurement, many at once, on a Postgres of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
from numpy.typing import NDArray

from aios_broker.postgres import migrate
from aios_broker.process.child import StandaloneServer
from aios_local.embedded.postgres import PostgresServer
from aios_local.embedded.state import StateDir

DIMENSION = 384
CLUSTERS = 2_000  # of synthetic vectors: as texts have topics
SPREAD = 0.6
VOCABULARY = 20_000
MOST_FREQUENT = 50  # rank of the first word that counts: those before it are stop words
WORDS = 12  # of a synthetic note
INDEX = (
    "CREATE INDEX ix_note_vector_1 ON note USING hnsw "
    "((vector::halfvec(384)) halfvec_cosine_ops) WHERE model_id = 1"
)

Vectors = NDArray[np.float32]


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """Yield the address of a migrated database."""
    state = StateDir.open(folder)
    server = PostgresServer.of(state, durable=False)
    with StandaloneServer(server.service(), state.log_dir / "postgres.log"):
        url = server.database_url("aios")
        migrate.upgrade(url)
        try:
            yield url
        finally:
            server.remove()


class Synthetic:
    """Vectors that lie in clusters, and texts of words as frequent as in language."""

    def __init__(self, seed: int = 11) -> None:
        self._numbers = np.random.default_rng(seed)
        self._dice = random.Random(seed)
        self._centres = _unit(self._numbers.standard_normal((CLUSTERS, DIMENSION)))

    def vectors(self, count: int) -> Vectors:
        """Return unit vectors, each near one of the centres."""
        centres = self._centres[self._numbers.integers(0, CLUSTERS, count)]
        noise = self._numbers.standard_normal((count, DIMENSION)) * SPREAD / np.sqrt(DIMENSION)
        return _unit(centres + noise)

    def text(self) -> str:
        """Return a text."""
        return " ".join(self.word() for _ in range(WORDS))

    def word(self) -> str:
        """Return a word by Zipf's law; the most frequent one is in 4 % of the texts."""
        rank = MOST_FREQUENT * (VOCABULARY / MOST_FREQUENT) ** self._dice.random()
        return f"w{int(rank)}"


def _unit(rows: NDArray[np.float64]) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Vectors = (rows / lengths).astype(np.float32)
    return unit


def insert(url: str, owners: Sequence[int], texts: Sequence[str], vectors: Vectors) -> list[str]:
    """Insert notes with their vectors, and build the index; return their ids."""
    ids = [f"{number:032x}" for number in range(len(texts))]
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP INDEX IF EXISTS ix_note_vector_1")
        connection.execute("CREATE TEMP TABLE coming (id text, owner bigint, text text, v halfvec)")
        with connection.cursor().copy("COPY coming FROM STDIN") as copy:
            for row in zip(ids, owners, texts, map(_shown, vectors), strict=True):
                copy.write_row(row)
        # Row-level security holds for the tables' owner, too: the kernel's own role sees all.
        connection.execute("GRANT SELECT ON coming TO aios_steward")
        connection.execute("SET ROLE aios_steward")
        connection.execute(
            "INSERT INTO note (id, tenant_id, owner_id, content, words, model_id, vector) "
            "SELECT c.id, a.tenant_id, c.owner, c.text, to_tsvector('english', c.text), 1, c.v "
            "FROM coming c JOIN agent a ON a.id = c.owner"
        )
        connection.execute("RESET ROLE")
        connection.execute("SET maintenance_work_mem = '1GB'")
        connection.execute(INDEX)
        connection.execute("VACUUM ANALYZE note")
    return ids


def _shown(vector: Vectors) -> str:
    return "[" + ",".join(f"{number:.4f}" for number in vector) + "]"
