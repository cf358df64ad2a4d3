"""Find parts of files, and of files of the host that are mounted to be searched."""

from __future__ import annotations

from dataclasses import dataclass

from aios_broker.contract.names import SearchMode
from aios_broker.postgres.session import Cursor
from aios_workers.modules.services import Embedder
from aios_workers.search.models import model_number
from aios_workers.search.ranking import Corpus, Scope, Vector, Wanted, rank_many

CHUNKS = Corpus("file_chunk", ("file_id", "ordinal"))
MOUNTED = Corpus("mount_chunk", ("file_id", "ordinal"))
_BELOW = (
    "EXISTS (SELECT FROM file f WHERE f.id = t.file_id "
    "AND (f.path = %(path)s OR starts_with(f.path, %(below)s)))"
)
_BELOW_MOUNT = (
    "EXISTS (SELECT FROM mount_file f JOIN mount m ON m.id = f.mount_id WHERE f.id = t.file_id "
    "AND (m.path || '/' || f.inner_path = %(path)s "
    "OR starts_with(m.path || '/' || f.inner_path, %(below)s)))"
)


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


@dataclass(frozen=True, slots=True)
class FoundChunk:
    """A part of a file that was found."""

    table: str  # CHUNKS' or MOUNTED's
    file_id: int
    ordinal: int
    score: float


async def find_chunks(
    cursor: Cursor, embedder: Embedder, query: ChunkQuery, vector: Vector | None
) -> list[FoundChunk]:
    """Return the k best parts, best first, that the cursor's agent may see.

    `vector` is that of the query's text (`query_vector`, before the transaction); None: hybrid
    search is by keywords then.

    Raises:
        InvalidConfig: The stored vectors are of another model than the query's.
    """
    model = 0 if vector is None else await model_number(cursor, embedder)
    wanted = Wanted(query.text, vector, model, query.mode, query.k)
    ranked = await rank_many(cursor, query.places, wanted)
    return [
        FoundChunk(table, file_id, ordinal, score) for (table, file_id, ordinal), score in ranked
    ]
