"""Share a note or all of them, and take that back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aios_broker.contract.access import Acknowledged, ObjectKind
from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.memory import MemoryShare, MemoryUnshare
from aios_broker.contract.reply import Result
from aios_broker.store.audit import AuditLine, append_line
from aios_broker.store.grants import Grantee, drop_grants, group_number, put_grant
from aios_broker.store.session import Cursor
from aios_workers.memory.desk import Change, Desk
from aios_workers.state_handler import Asked


class Sharing:
    """share, unshare."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def share(self, asked: Asked) -> Result:
        """Grant verbs on a note or on all notes."""
        body: MemoryShare = asked.body
        if (body.agent is None) == (body.group is None):
            raise InvalidSyscall("exactly one of agent and group is given", field="body.group",
                                 remedy="share with one at a time")  # fmt: skip
        expires_at = (
            None if body.ttl_s is None else datetime.now(UTC) + timedelta(seconds=body.ttl_s)
        )
        to_agent = await self._agent_number(asked)

        async def work(cursor: Cursor) -> Change:
            kind, object_id = await self._object(cursor, asked, body.note)
            to = await self._grantee(cursor, asked, to_agent)
            await put_grant(cursor, asked.agent, kind, object_id, to, verbs=body.verbs,
                            expires_at=expires_at)  # fmt: skip
            await append_line(cursor, AuditLine(
                asked.agent.tenant, asked.agent.name, asked.syscall.kind, f"{kind} {object_id}",
                "done", asked.syscall.id,
                {"verbs": list(body.verbs), "agent": body.agent, "group": body.group},
            ))  # fmt: skip
            return Change(Acknowledged())

        return await self._desk.changed(asked, work)

    async def unshare(self, asked: Asked) -> Result:
        """Take grants back; neither agent nor group: all of them."""
        body: MemoryUnshare = asked.body
        if body.agent is not None and body.group is not None:
            raise InvalidSyscall("at most one of agent and group is given", field="body.group",
                                 remedy="unshare with one at a time")  # fmt: skip
        to_agent = await self._agent_number(asked)

        async def work(cursor: Cursor) -> Change:
            kind, object_id = await self._object(cursor, asked, body.note)
            to = await self._grantee(cursor, asked, to_agent)
            what = "all notes" if body.note is None else f"note {body.note}"
            whom = body.agent or body.group or "everybody"
            await self._desk.check(cursor, asked, "unshare", f"no longer share {what} with {whom}")
            count = await drop_grants(cursor, asked.agent, kind, object_id, to)
            return Change(Acknowledged(changed=count > 0))

        return await self._desk.changed(asked, work)

    async def _agent_number(self, asked: Asked) -> int | None:
        name: str | None = asked.body.agent
        if name is None:
            return None
        return (await self._desk.ground.store.agent(name, asked.agent.tenant)).id

    async def _grantee(self, cursor: Cursor, asked: Asked, to_agent: int | None) -> Grantee:
        group: str | None = asked.body.group
        if group is None:
            return Grantee(agent_id=to_agent)
        return Grantee(group_id=await group_number(cursor, asked.agent.tenant_id, group))

    async def _object(
        self, cursor: Cursor, asked: Asked, note_id: str | None
    ) -> tuple[ObjectKind, str]:
        if note_id is None:
            return "block", str(asked.agent.id)
        await self._desk.permitted(cursor, asked, asked.agent, note_id, "share")
        return "note", note_id
