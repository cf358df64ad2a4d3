"""What a grant is on, found by its name: a block, a note, a file or a directory."""

from __future__ import annotations

from dataclasses import dataclass

from aios_broker.contract.access import ObjectKind, ObjectRef
from aios_broker.contract.errors import InvalidSyscall, NotFound
from aios_broker.contract.paths import normal_path
from aios_broker.postgres.session import AgentRow, Cursor

_NOTE = "SELECT id FROM note WHERE owner_id = %s AND id = %s"
_FILE = """
    SELECT f.id, d.ancestors FROM file f JOIN directory d ON d.id = f.directory_id
     WHERE f.owner_id = %s AND f.path = %s
"""
_DIRECTORY = "SELECT id, ancestors FROM directory WHERE owner_id = %s AND path = %s"
_NAMES = """
    SELECT 'note' AS kind, id AS key, id AS name FROM note WHERE id = ANY(%(note)s)
    UNION ALL SELECT 'file', id::text, path FROM file WHERE id::text = ANY(%(file)s)
    UNION ALL SELECT 'directory', id::text, path FROM directory WHERE id::text = ANY(%(directory)s)
"""


@dataclass(frozen=True, slots=True)
class Target:
    """An object as grants name it."""

    kind: ObjectKind
    id: str
    owner: AgentRow
    ancestors: tuple[int, ...] = ()  # the directories that a file or a directory lies in

    @property
    def wider(self) -> tuple[tuple[str, str], ...]:
        """Return the objects whose grants reach this one as well, as kinds and ids."""
        above = tuple(("directory", str(each)) for each in self.ancestors)
        return (*above, ("block", str(self.owner.id))) if self.kind == "note" else above


async def find_target(cursor: Cursor, owner: AgentRow, named: ObjectRef) -> Target:
    """Return the object of an owner that is named; the cursor has to see it.

    Raises:
        NotFound: there is none.
        InvalidSyscall: a block has no name of its own.
        InvalidPath: the name cannot be a path.
    """
    if named.kind == "block":
        if named.name:
            raise InvalidSyscall(
                "a block has no name: it is all notes of its owner",
                field="object.name",
                remedy="leave it out, and name the owner",
            )
        return Target("block", str(owner.id), owner)
    if named.kind == "note":
        await cursor.execute(_NOTE, (owner.id, named.name))
        row = await cursor.fetchone()
        if row is None:
            raise no_object(owner, named)
        return Target("note", row.id, owner)
    query = _FILE if named.kind == "file" else _DIRECTORY
    await cursor.execute(query, (owner.id, normal_path(named.name, "object.name")))
    row = await cursor.fetchone()
    if row is None:
        raise no_object(owner, named)
    return Target(named.kind, str(row.id), owner, tuple(row.ancestors))


def no_object(owner: AgentRow, named: ObjectRef) -> NotFound:
    """Return the error that says the same of what is not there and of what may not be known."""
    return NotFound(
        f"{owner.name} has no {named.kind} {named.name!r} that you may read",
        field="object",
        remedy="look at what there is: memory.list, storage.list",
    )


async def names_of(
    cursor: Cursor, objects: list[tuple[ObjectKind, str]]
) -> dict[tuple[str, str], str]:
    """Return what people call these objects; those that are gone are not in it."""
    ids = {
        kind: [key for each, key in objects if each == kind]
        for kind in ("note", "file", "directory")
    }
    await cursor.execute(_NAMES, ids)
    return {(row.kind, row.key): row.name for row in await cursor.fetchall()}
