"""Find parts of files."""

from __future__ import annotations

from dataclasses import dataclass

from aios_broker.contract.names import SearchMode
from aios_broker.store.session import Cursor
from aios_workers.search.models import model_number
from aios_workers.search.ranking import Corpus, Scope, Vector, Wanted, rank
from aios_workers.state_ground import Embedder

CHUNKS = Corpus("file_chunk", ("file_id", "ordinal"))
_BELOW = (
    "EXISTS (SELECT FROM file f WHERE f.id = t.file_id "
    "AND (f.path = %(path)s OR starts_with(f.path, %(below)s)))"
)


@dataclass(frozen=True, slots=True)
class ChunkQuery:
    """A search among the parts of files; without an owner, of all that the agent may see."""

    text: str
    k: int = 10  # parts: ask for more where they are grouped by file
    mode: SearchMode = "hybrid"
    owner: int | None = None
    path: str = "/"  # a file, or a directory with all below

    @property
    def scope(self) -> Scope:
        """Return which parts may be found."""
        conditions = [] if self.owner is None else ["t.owner_id = %(owner)s"]
        if self.path != "/":
            conditions.append(_BELOW)
        below = self.path.rstrip("/") + "/"
        parameters = {"owner": self.owner, "path": self.path, "below": below}
        countable = self.owner is not None
        owners = None if self.owner is None else (self.owner,)
        return Scope(" AND ".join(conditions) or "true", parameters, countable, owners)


@dataclass(frozen=True, slots=True)
class FoundChunk:
    """A part of a file that was found."""

    file_id: int
    ordinal: int
    score: float


async def find_chunks(
    cursor: Cursor, embedder: Embedder, query: ChunkQuery, vector: Vector | None
) -> list[FoundChunk]:  # fmt: skip
    """Return the k best parts, best first, that the cursor's agent may see.

    `vector` is that of the query's text (`query_vector`, before the transaction); None: hybrid
    search is by keywords then.

    Raises:
        InvalidConfig: The stored vectors are of another model than the query's.
    """
    model = 0 if vector is None else await model_number(cursor, embedder)
    wanted = Wanted(query.text, vector, model, query.mode, query.k)
    ranked = await rank(cursor, CHUNKS, wanted, query.scope)
    return [FoundChunk(file_id, ordinal, score) for (file_id, ordinal), score in ranked]
