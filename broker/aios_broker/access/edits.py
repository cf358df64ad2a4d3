"""What an agent that decides may make of a request: less of the same, with the rights of both.

Less is: of a directory that was to be deleted with all below, something below it, or it alone where
it is empty; of grants that were to be taken back from everybody, one; of an administrator of a
group, a member. And the agent has to hold itself what that takes: when it decides and when it runs.
"""

from collections.abc import Mapping
from typing import LiteralString

from msgspec import structs

from aios_broker.contract.access import AccessGroupAdd, AccessRevoke
from aios_broker.contract.errors import AccessDenied, InvalidPath
from aios_broker.contract.memory import MemoryUnshare
from aios_broker.contract.paths import is_within, normal_path
from aios_broker.contract.storage import StorageDelete, StorageUnshare
from aios_broker.contract.syscall import Body
from aios_broker.postgres.store import Cursor, only_row

Unsharing = AccessRevoke | MemoryUnshare | StorageUnshare
# Each sees what the editor may see, and asks what it holds on that.
_MAY_ADD = """
    SELECT coalesce(bool_or(aios_is_group_administrator(p.id)), false) AS may
      FROM privilege_group p WHERE p.tenant_id = aios_tenant_id() AND p.name = %(group)s
"""
_MAY_TAKE = """
    WITH owner AS (
        SELECT id FROM agent WHERE tenant_id = aios_tenant_id() AND name = %(owner)s
    ), object (kind, id) AS (
        SELECT 'block', id::text FROM owner WHERE %(block)s
        UNION ALL SELECT 'note', id FROM note
         WHERE owner_id = (SELECT id FROM owner) AND id = %(note)s
        UNION ALL SELECT 'file', id::text FROM file
         WHERE owner_id = (SELECT id FROM owner) AND path = %(path)s
        UNION ALL SELECT 'directory', id::text FROM directory
         WHERE owner_id = (SELECT id FROM owner) AND path = %(path)s
    )
    SELECT coalesce(bool_or(aios_holds(kind, id, %(verb)s)), false) AS may FROM object
"""


def check_narrower(asked: Body, edited: Body) -> None:
    """Return when an edit takes away nothing that was not asked to be taken away.

    Raises:
        AccessDenied: It does, or cannot be seen not to.
    """
    if edited != asked and not _is_narrower(asked, edited):
        raise AccessDenied(
            "an agent that decides may only narrow what was asked for",
            field="arguments",
            remedy="name less of the same, deny it, or have the operator edit it: `aios approve`",
        )


async def check_editor(cursor: Cursor, editor: str, asker: str, edited: Body) -> None:
    """Return when the agent that edited a request may do itself what it made of it.

    Args:
        cursor: Of the editor: it sees what that may see.
        editor: Its name.
        asker: Whose request it is.
        edited: What will run.

    Raises:
        AccessDenied: It may not.
    """
    query, values = _asked_rights(edited, asker)
    await cursor.execute(query, values)
    if not (await only_row(cursor)).may:
        raise AccessDenied(
            f"no grant allows {editor} to do itself what it made of the request of {asker}",
            field="arguments",
            remedy="approve it as it was asked, deny it, or have the operator edit it",
        )


def _asked_rights(edited: Body, asker: str) -> tuple[LiteralString, Mapping[str, object]]:
    """Return the query that tells whether the editor may do it, and its values."""
    if isinstance(edited, AccessGroupAdd):
        return _MAY_ADD, {"group": edited.group}
    one: dict[str, object] = {"owner": asker, "block": False, "note": None, "path": None}
    one["verb"] = "administer"
    if isinstance(edited, StorageDelete):
        one |= {"owner": edited.owner or asker, "path": normal_path(edited.path), "verb": "write"}
    elif isinstance(edited, StorageUnshare):
        one["path"] = normal_path(edited.path)
    elif isinstance(edited, MemoryUnshare):
        one |= {"note": edited.note, "block": edited.note is None}
    elif isinstance(edited, AccessRevoke):
        one |= _object_of(edited, asker)
    return _MAY_TAKE, one


def _object_of(edited: AccessRevoke, asker: str) -> Mapping[str, object]:
    named = edited.object
    whose = {"owner": named.owner or asker, "block": named.kind == "block"}
    if named.kind == "note":
        return {**whose, "note": named.name}
    return whose if named.kind == "block" else {**whose, "path": normal_path(named.name)}


def _is_narrower(asked: Body, edited: Body) -> bool:
    if isinstance(asked, StorageDelete) and isinstance(edited, StorageDelete):
        return asked.owner == edited.owner and _is_less_of_tree(asked, edited)
    if isinstance(asked, Unsharing) and isinstance(edited, Unsharing):
        return asked == structs.replace(edited, agent=None, group=None)
    if isinstance(asked, AccessGroupAdd) and isinstance(edited, AccessGroupAdd):
        return edited == structs.replace(asked, role="member")
    return False


def _is_less_of_tree(asked: StorageDelete, edited: StorageDelete) -> bool:
    if not asked.recursive:
        return False
    try:
        return is_within(normal_path(edited.path), normal_path(asked.path))
    except InvalidPath:
        return False
