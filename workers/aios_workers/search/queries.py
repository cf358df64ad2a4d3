"""Find notes, and parts of files: of the agents' own, and of mounted directories of the host."""

from dataclasses import dataclass, replace

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import SearchMode
from aios_broker.postgres.session import Cursor
from aios_workers.modules.services import Embedder
from aios_workers.search.ranking import Corpus, Ranked, Scope, Vector, Wanted, rank

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
