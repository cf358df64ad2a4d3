"""What an agent that decides may make of a request: less of the same, never anything else.

A directory that was to be deleted with all below: something below it, or it alone if it is empty.
Grants that were to be taken back from everybody: from one. An administrator of a group: a member.
"""

from msgspec import structs

from aios_broker.contract.access import AccessGroupAdd, AccessRevoke
from aios_broker.contract.errors import AccessDenied, InvalidPath
from aios_broker.contract.memory import MemoryUnshare
from aios_broker.contract.paths import is_within, normal_path
from aios_broker.contract.storage import StorageDelete, StorageUnshare
from aios_broker.contract.syscall import Body

Unsharing = AccessRevoke | MemoryUnshare | StorageUnshare


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


def _is_narrower(asked: Body, edited: Body) -> bool:
    if isinstance(asked, StorageDelete) and isinstance(edited, StorageDelete):
        return asked.owner == edited.owner and _is_less_of_tree(asked, edited)
    if isinstance(asked, Unsharing) and isinstance(edited, Unsharing):
        everybody = structs.replace(edited, agent=None, group=None)
        return asked == everybody
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
