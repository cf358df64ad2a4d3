"""Find notes."""

from __future__ import annotations

from dataclasses import dataclass

from aios_broker.contract.names import SearchMode
from aios_broker.postgres.session import Cursor
from aios_workers.modules.services import Embedder
from aios_workers.search.models import model_number
from aios_workers.search.ranking import Corpus, Scope, Vector, Wanted, rank

NOTES = Corpus("note", ("id",))


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
class FoundNote:
    """A note that was found."""

    id: str
    score: float


async def find_notes(
    cursor: Cursor, embedder: Embedder, query: NoteQuery, vector: Vector | None
) -> list[FoundNote]:
    """Return the k best notes, best first, that the cursor's agent may see.

    `vector` is that of the query's text (`query_vector`, before the transaction); None: hybrid
    search is by keywords then.

    Raises:
        InvalidConfig: The stored vectors are of another model than the query's.
    """
    model = 0 if vector is None else await model_number(cursor, embedder)
    wanted = Wanted(query.text, vector, model, query.mode, query.k)
    return [
        FoundNote(key[0], score) for key, score in await rank(cursor, NOTES, wanted, query.scope)
    ]
