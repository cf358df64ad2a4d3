"""What an agent makes of another's request it must be let do itself: the rights of both count."""

from collections.abc import Sequence

from aios_broker.contract.access import (
    AccessCheck,
    AccessGroupAdd,
    AccessRevoke,
    Approval,
    ObjectRef,
)
from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.memory import MemoryUnshare
from aios_broker.contract.names import Verb
from aios_broker.contract.storage import StorageDelete, StorageUnshare
from aios_broker.contract.syscall import Body
from aios_workers.approvals.requests import body_from
from aios_workers.modules.access import grants, groups
from aios_workers.modules.operation import Asked, Work


async def check_editor(work: Work[Body], edited: Approval) -> None:
    """Return when the agent that edited a request may do itself what it made of it.

    Raises:
        AccessDenied: It may not.
    """
    asked, body = work.asked, body_from(edited.kind, edited.arguments)
    if isinstance(body, AccessGroupAdd):
        adding = Asked(asked.services, asked.agent, asked.syscall, body)
        await groups.administered(Work(adding, work.cursor))
        return
    verb: Verb = "write" if isinstance(body, StorageDelete) else "administer"
    for named in _objects(body, edited.agent):
        checking = Asked(asked.services, asked.agent, asked.syscall, AccessCheck(named, verb))
        if (await grants.check(Work(checking, work.cursor))).allowed:
            return
    raise AccessDenied(
        f"no grant allows {work.agent.name} to do itself what it made of the request",
        field="arguments",
        remedy="approve it as it was asked, deny it, or have the operator edit it",
    )


def _objects(body: Body, asker: str) -> Sequence[ObjectRef]:
    """Return the object that a body is about, as each kind that it can be."""
    if isinstance(body, AccessRevoke):
        named = body.object
        return (ObjectRef(named.kind, named.name, named.owner or asker),)
    if isinstance(body, MemoryUnshare):
        if body.note is None:
            return (ObjectRef("block", owner=asker),)
        return (ObjectRef("note", body.note, asker),)
    if isinstance(body, StorageDelete):
        return _at_path(body.path, body.owner or asker)
    return _at_path(body.path, asker) if isinstance(body, StorageUnshare) else ()


def _at_path(path: str, owner: str) -> Sequence[ObjectRef]:
    return ObjectRef("file", path, owner), ObjectRef("directory", path, owner)
