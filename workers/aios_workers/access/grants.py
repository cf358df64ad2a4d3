"""Grants: grant, revoke, list, and tell what they allow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aios_broker.contract.access import (
    AccessCheck,
    AccessGrant,
    AccessGrants,
    AccessRevoke,
    Acknowledged,
    Grants,
    ObjectRef,
    Verdict,
)
from aios_broker.contract.errors import AccessDenied, InvalidSyscall, NotFound
from aios_broker.contract.reply import Result
from aios_broker.store.audit import AuditLine, append_line
from aios_broker.store.grants import (
    ALL_VERBS,
    Grantee,
    drop_grants,
    group_number,
    list_grants,
    put_grant,
    verbs_on,
)
from aios_broker.store.objects import Target, find_target, no_object
from aios_broker.store.session import AgentRow, Cursor
from aios_workers.gate import Irreversible
from aios_workers.once import once
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked


def shown(named: ObjectRef, owner: AgentRow) -> str:
    """Return an object as people read it."""
    return f"{named.kind} {owner.name}:{named.name}" if named.name else f"{named.kind} {owner.name}"


class GrantDesk:
    """grant, revoke, grants, check."""

    def __init__(self, ground: StateGround) -> None:
        self._ground = ground

    async def grants(self, asked: Asked) -> Result:
        """List grants."""
        body: AccessGrants = asked.body
        async with self._ground.store.as_agent(asked.agent) as cursor:
            return Grants(await list_grants(cursor, asked.agent, held=body.held))

    async def grant(self, asked: Asked) -> Result:
        """Let an agent or a group do something with an object."""
        body: AccessGrant = asked.body
        if (body.agent is None) == (body.group is None):
            raise InvalidSyscall("exactly one of agent and group is given", field="agent",
                                 remedy="grant to one at a time")  # fmt: skip
        expires_at = (
            None if body.ttl_s is None else datetime.now(UTC) + timedelta(seconds=body.ttl_s)
        )
        owner = await self._owner(asked, body.object)
        named = await self._named_agent(asked, body.agent)

        async def work(cursor: Cursor) -> Result:
            target, verbs = await self._target(cursor, asked, owner, body.object)
            self._require(verbs, "share", body.verbs, owner)
            to = await self._grantee(cursor, asked, named, body.group)
            await put_grant(cursor, asked.agent, target.kind, target.id, to, verbs=body.verbs,
                            expires_at=expires_at, owner=owner)  # fmt: skip
            await append_line(cursor, AuditLine(
                asked.agent.tenant, asked.agent.name, "access.grant", shown(body.object, owner),
                "done", asked.syscall.id,
                {"verbs": list(body.verbs), "agent": body.agent, "group": body.group},
            ))  # fmt: skip
            return Acknowledged()

        return await once(self._ground.store, asked, work)

    async def revoke(self, asked: Asked) -> Result:
        """Take grants on an object back."""
        body: AccessRevoke = asked.body
        if body.agent is not None and body.group is not None:
            raise InvalidSyscall("at most one of agent and group is given", field="agent",
                                 remedy="revoke one at a time")  # fmt: skip
        owner = await self._owner(asked, body.object)
        named = await self._named_agent(asked, body.agent)

        async def work(cursor: Cursor) -> Result:
            target, verbs = await self._target(cursor, asked, owner, body.object)
            self._require(verbs, "administer", (), owner)
            to = await self._grantee(cursor, asked, named, body.group)
            whom = body.agent or body.group or "everybody"
            what = f"take back what {whom} may do with {shown(body.object, owner)}"
            await self._ground.gate.check(
                cursor, asked.agent, asked.syscall, body, Irreversible("unshare", what)
            )
            count = await drop_grants(cursor, owner, target.kind, target.id, to)
            return Acknowledged(changed=count > 0)

        return await once(self._ground.store, asked, work)

    async def check(self, asked: Asked) -> Result:
        """Tell whether an access would be let through, and why."""
        body: AccessCheck = asked.body
        owner = await self._owner(asked, body.object)
        async with self._ground.store.as_agent(asked.agent) as cursor:
            try:
                _, verbs = await self._target(cursor, asked, owner, body.object)
            except NotFound:
                return Verdict(allowed=False, why="there is no such object, or no grant to read it")
        if owner.id == asked.agent.id:
            return Verdict(allowed=True, why="it is its own")
        if body.verb in verbs:
            return Verdict(allowed=True, why=f"granted: {', '.join(sorted(verbs))}")
        return Verdict(allowed=False, why=f"granted are only {', '.join(sorted(verbs))}")

    async def _owner(self, asked: Asked, named: ObjectRef) -> AgentRow:
        if named.owner is None or named.owner == asked.agent.name:
            return asked.agent
        return await self._ground.store.agent(named.owner, asked.agent.tenant)

    async def _named_agent(self, asked: Asked, name: str | None) -> AgentRow | None:
        return None if name is None else await self._ground.store.agent(name, asked.agent.tenant)

    async def _grantee(
        self, cursor: Cursor, asked: Asked, named: AgentRow | None, group: str | None
    ) -> Grantee:
        if group is None:
            return Grantee(agent_id=None if named is None else named.id)
        return Grantee(group_id=await group_number(cursor, asked.agent.tenant_id, group))

    async def _target(
        self, cursor: Cursor, asked: Asked, owner: AgentRow, named: ObjectRef
    ) -> tuple[Target, frozenset[str]]:
        """Return an object and what the agent may do with it.

        Raises:
            NotFound: There is none, or the agent may do nothing with it.
        """
        if owner.id == asked.agent.id:
            return await find_target(cursor, owner, named), ALL_VERBS
        await cursor.execute("SET LOCAL ROLE aios_steward")  # only to find it: the grants decide
        target = await find_target(cursor, owner, named)
        await cursor.execute("SET LOCAL ROLE aios_agent")
        verbs = await verbs_on(cursor, asked.agent, [(target.kind, target.id), *target.wider])
        if not verbs:
            raise no_object(owner, named)
        return target, verbs

    def _require(
        self, verbs: frozenset[str], verb: str, given: tuple[str, ...], owner: AgentRow
    ) -> None:
        lacking = sorted({verb, *given} - verbs)
        if lacking:
            raise AccessDenied(
                f"no grant of agent {owner.name!r} allows {', '.join(lacking)} on it",
                field="object", remedy=f"ask {owner.name!r} for it",
            )  # fmt: skip
