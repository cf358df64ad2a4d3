"""What is searched: notes and parts of files, and which of their rows a query may find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aios_broker.contract.memory import NoteFilter
from aios_broker.contract.names import SearchMode
from aios_workers.search.numbers import as_jsonb
from aios_workers.search.query import Rules

Key = tuple[Any, ...]
Ranked = list[tuple[Key, float]]  # best first


@dataclass(frozen=True, slots=True)
class Corpus:
    """A table that is searched: its rows have words, and vectors of what `text` says."""

    table: str
    keys: tuple[str, ...]
    kinds: tuple[str, ...]  # of the keys
    order: str  # in which its rows get their vectors
    text: str  # SQL
    turn: str = "NULL::bigint AS owner_id, NULL AS program, NULL::int AS turn"  # where it stands
    neighbours: str = ""  # SQL: of the keys in `wanted`, those of the turns beside them

    @property
    def columns(self) -> str:
        """Return the keys as they are selected."""
        return ", ".join(f"t.{key}" for key in self.keys)

    @property
    def with_neighbours(self) -> str:
        """Return the SQL of the keys that are given, and of the turns beside them."""
        return self.given if not self.neighbours else f"{self.given} UNION {self.neighbours}"

    @property
    def given(self) -> str:
        """Return the SQL of the keys that are given."""
        named = zip(self.keys, self.kinds, strict=True)
        lists = ", ".join(f"%(keys_{key})s::{kind}[]" for key, kind in named)
        return f"SELECT * FROM unnest({lists}) AS given ({', '.join(self.keys)})"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows may be found: a condition on `t`, written by the module, and its parameters."""

    condition: str = "true"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    countable: bool = False  # by an index: a small scope is then searched exactly
    owners: tuple[int, ...] | None = None  # whose rows alone it has; None: anybody's
    singles: tuple[str, ...] = ()  # rows of others beside them
    is_narrowed: bool = False  # to some of the owners' rows
    by_meaning: str = "true"  # of these rows, those whose vectors tell of nothing else


# Of the text alone, so that a query in a person's own words lies near it: labels first, since the
# end of a long content does not reach the vector.
_NOTE_TEXT = (
    "concat_ws(E'\\n', nullif(btrim(array_to_string("
    "array_append(t.keywords || t.tags, t.context), ' ')), ''), "
    "CASE WHEN t.turn IS NOT NULL THEN (SELECT right(p.content, 500) FROM note p "
    "WHERE p.owner_id = t.owner_id AND p.program = t.program AND p.turn = t.turn - 1) END, "
    "t.content)"
)
_BESIDE = """
    SELECT n.id FROM note f JOIN note n ON n.owner_id = f.owner_id AND n.program = f.program
       AND n.turn IN (f.turn - 1, f.turn + 1) AND (n.expires_at IS NULL OR n.expires_at > now())
     WHERE f.id = ANY (%(keys_id)s::text[])"""
_ALONE = "(t.turn IS NULL OR t.turn = 1 OR t.owner_id = ANY(%(owners)s))"
NOTES = Corpus(
    "note", ("id",), ("text",), "seq", _NOTE_TEXT, "t.owner_id, t.program, t.turn", _BESIDE
)
CHUNKS = Corpus(
    "file_chunk", ("file_id", "ordinal"), ("bigint", "int"), "file_id, ordinal", "t.text"
)
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


def filters_of(body: NoteFilter, alias: str = "t") -> tuple[list[str], dict[str, object]]:
    """Return the conditions on a note that a body names, and their parameters."""
    given: dict[str, tuple[object, str]] = {
        "tags": (list(body.tags), f"{alias}.tags @> %(tags)s::text[]"),
        "any_tags": (list(body.any_tags), f"{alias}.tags && %(any_tags)s::text[]"),
        "category": (body.category, f"{alias}.category = %(category)s"),
        "metadata": (
            as_jsonb(body.metadata) if body.metadata else None,
            f"{alias}.metadata @> %(metadata)s",
        ),
        "program": (body.in_program, f"{alias}.program = %(program)s"),
        "since": (body.since, f"{alias}.created_at >= to_timestamp(%(since)s::float8)"),
        "until": (body.until, f"{alias}.created_at < to_timestamp(%(until)s::float8)"),
    }
    wanted = {name: pair for name, pair in given.items() if pair[0] is not None and pair[0] != []}
    conditions = [condition for _, condition in wanted.values()]
    return conditions, {name: value for name, (value, _) in wanted.items()}


@dataclass(frozen=True, slots=True)
class NoteQuery:
    """A search among notes; without owners and ids, among all that the agent may see."""

    text: str
    k: int = 10
    mode: SearchMode = "hybrid"
    owners: tuple[int, ...] | None = None  # whose notes; None with no ids: anybody's
    ids: tuple[str, ...] = ()  # single notes beside theirs
    only: NoteFilter = field(default_factory=NoteFilter)
    min_score: float = 0.0
    rules: Rules = ()  # of a person's query; without them the text is taken as it is

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
        narrowing, values = filters_of(self.only)
        parameters = {"owners": list(self.owners or ()), "ids": list(self.ids), **values}
        return Scope(
            " AND ".join((*conditions, *narrowing)),
            parameters,
            countable=not everybody,
            owners=None if everybody or self.ids else self.owners,
            singles=self.ids,
            # A turn's vector is of the turn before it, too, which was not shared with it.
            by_meaning=_ALONE if self.ids else "true",
            is_narrowed=bool(narrowing or self.ids),
        )


@dataclass(frozen=True, slots=True)
class ChunkQuery:
    """A search among the parts of files; without an owner, of all that the agent may see."""

    text: str
    k: int = 10  # parts: ask for more where they are grouped by file
    mode: SearchMode = "hybrid"
    owner: int | None = None
    min_score: float = 0.0
    path: str = "/"  # a file, or a directory with all below
    mounts_of: int | None = None  # whose mounted directories are searched as well; None: nobody's
    rules: Rules = ()

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
        return Scope(
            " AND ".join(conditions) or "true",
            parameters,
            countable=owner is not None,
            owners=owners,
            is_narrowed=self.path != "/",
        )
