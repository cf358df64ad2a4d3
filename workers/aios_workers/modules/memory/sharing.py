"""Share a note or all of them, and take that back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aios_broker.contract.access import Acknowledged, ObjectKind
from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.memory import MemoryShare, MemoryUnshare
from aios_workers.approvals.gate import Irreversible
from aios_workers.modules.access.grant_rows import Grantee, drop_grants, group_number, put_grant
from aios_workers.modules.memory.desk import Desk
from aios_workers.modules.operation import Work

Sharings = Work[MemoryShare] | Work[MemoryUnshare]


class Sharing:
    """share, unshare."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def share(self, work: Work[MemoryShare]) -> Acknowledged:
        """Grant verbs on a note or on all notes."""
        body = work.body
        if (body.agent is None) == (body.group is None):
            raise InvalidSyscall(
                "exactly one of agent and group is given",
                field="body.group",
                remedy="share with one at a time",
            )
        expires_at = (
            None if body.ttl_s is None else datetime.now(UTC) + timedelta(seconds=body.ttl_s)
        )
        kind, object_id = await self._object(work)
        to = await _grantee(work)
        await put_grant(
            work.cursor, work.agent, kind, object_id, to, verbs=body.verbs, expires_at=expires_at
        )
        await work.enter(
            f"{kind} {object_id}",
            {"verbs": list(body.verbs), "agent": body.agent, "group": body.group},
        )
        return Acknowledged()

    async def unshare(self, work: Work[MemoryUnshare]) -> Acknowledged:
        """Take grants back; neither agent nor group: all of them."""
        body = work.body
        if body.agent is not None and body.group is not None:
            raise InvalidSyscall(
                "at most one of agent and group is given",
                field="body.group",
                remedy="unshare with one at a time",
            )
        kind, object_id = await self._object(work)
        to = await _grantee(work)
        what = "all notes" if body.note is None else f"note {body.note}"
        whom = body.agent or body.group or "everybody"
        await work.confirm(Irreversible("unshare", f"no longer share {what} with {whom}"))
        count = await drop_grants(work.cursor, work.agent, kind, object_id, to)
        return Acknowledged(changed=count > 0)

    async def _object(self, work: Sharings) -> tuple[ObjectKind, str]:
        note_id = work.body.note
        if note_id is None:
            return "block", str(work.agent.id)
        await self._desk.permitted(work, work.agent, note_id, "share")
        return "note", note_id


async def _grantee(work: Sharings) -> Grantee:
    body = work.body
    if body.group is not None:
        return Grantee(group_id=await group_number(work.cursor, work.agent.tenant_id, body.group))
    return Grantee() if body.agent is None else Grantee((await work.agent_named(body.agent)).id)
