"""Approvals, rules and the audit log, as agents see and decide them."""

from __future__ import annotations

from aios_broker.contract.access import (
    AccessApprovals,
    AccessApprove,
    AccessAudit,
    AccessDeny,
    AccessRules,
    AccessSetRule,
    Acknowledged,
    Approval,
    Approvals,
    Audit,
    Rules,
)
from aios_broker.contract.reply import Result
from aios_broker.store.approvals import (
    Decider,
    Decision,
    decide,
    list_approvals,
    one_approval,
    rules_of,
    set_rule,
)
from aios_broker.store.audit import newest_lines
from aios_broker.store.session import AgentRow, Cursor
from aios_workers.access.identity import denied, is_administrator
from aios_workers.approval_duty import ApprovalDuty
from aios_workers.gate import Irreversible
from aios_workers.once import once
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked


class DecisionDesk:
    """approvals, approve, deny, set_rule, rules, audit."""

    def __init__(self, ground: StateGround, duty: ApprovalDuty) -> None:
        self._ground = ground
        self._duty = duty

    async def approvals(self, asked: Asked) -> Result:
        """List approvals: one's own, for an administrator all of the tenant."""
        body: AccessApprovals = asked.body
        async with self._ground.store.as_agent(asked.agent) as cursor:
            if body.approval is None:
                return Approvals(await list_approvals(cursor, body.state, body.limit))
            return Approvals((await one_approval(cursor, body.approval),))

    async def approve(self, asked: Asked) -> Result:
        """Let a parked syscall run once."""
        body: AccessApprove = asked.body
        return await self._decide(
            asked, body.approval, Decision("approved", arguments=body.arguments)
        )

    async def deny(self, asked: Asked) -> Result:
        """End a parked syscall."""
        body: AccessDeny = asked.body
        return await self._decide(asked, body.approval, Decision("denied", body.reason))

    async def set_rule(self, asked: Asked) -> Result:
        """Say which operations of a class need a person."""
        body: AccessSetRule = asked.body
        named = await self._named(asked, body.agent)

        async def work(cursor: Cursor) -> Result:
            if not await is_administrator(cursor, asked.agent):
                raise denied("setting rules")
            whose = body.agent or "all agents"
            await self._ground.gate.check(
                cursor, asked.agent, asked.syscall, body,
                Irreversible("privilege", f"rule for {body.operation} of {whose}: {body.rule}"),
            )  # fmt: skip
            changed = await set_rule(cursor, asked.agent.tenant, named, body.operation, body.rule)
            return Acknowledged(changed=changed)

        return await once(self._ground.store, asked, work)

    async def rules(self, asked: Asked) -> Result:
        """Return the rules that hold for an agent."""
        body: AccessRules = asked.body
        named = await self._named(asked, body.agent) or asked.agent
        async with self._ground.store.as_agent(asked.agent) as cursor:
            rules = await rules_of(cursor, named)
        return Rules({operation: one.rule for operation, one in rules.items()})

    async def audit(self, asked: Asked) -> Result:
        """Return the newest lines: one's own, for an administrator those of all."""
        body: AccessAudit = asked.body
        async with self._ground.store.as_agent(asked.agent) as cursor:
            return Audit(await newest_lines(
                cursor, tenant=asked.agent.tenant, actor=body.agent, limit=body.limit
            ))  # fmt: skip

    async def _named(self, asked: Asked, name: str | None) -> AgentRow | None:
        return None if name is None else await self._ground.store.agent(name, asked.agent.tenant)

    async def _decide(self, asked: Asked, approval_id: str, decision: Decision) -> Result:
        agent = asked.agent
        decided: list[Approval] = []

        async def work(cursor: Cursor) -> Result:
            if not await is_administrator(cursor, agent):
                raise denied("deciding")
            decider = Decider(agent.name, agent.tenant_id, agent.id)
            decided.append(await decide(cursor, approval_id, decider, decision))
            return Acknowledged()

        result = await once(self._ground.store, asked, work)
        for approval in decided:
            await self._duty.resume(approval)
        return result
