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
    Approvals,
    Audit,
    Rules,
)
from aios_workers.approvals.duty import ApprovalDuty
from aios_workers.approvals.gate import Irreversible
from aios_workers.approvals.rows import (
    Decider,
    Decision,
    decide,
    list_approvals,
    one_approval,
    rules_of,
    set_rule,
)
from aios_workers.modules.access.audit import newest_lines
from aios_workers.modules.access.identity import denied, is_administrator
from aios_workers.modules.operation import Work


class DecisionDesk:
    """approvals, approve, deny, set_rule, rules, audit."""

    def __init__(self, duty: ApprovalDuty) -> None:
        self._duty = duty

    async def approvals(self, work: Work[AccessApprovals]) -> Approvals:
        """List approvals: one's own, for an administrator all of the tenant."""
        body, cursor = work.body, work.cursor
        if body.approval is None:
            return Approvals(await list_approvals(cursor, body.state, body.limit))
        return Approvals((await one_approval(cursor, body.approval),))

    async def approve(self, work: Work[AccessApprove]) -> Acknowledged:
        """Let a parked syscall run once."""
        body = work.body
        return await self._decide(work, Decision("approved", arguments=body.arguments))

    async def deny(self, work: Work[AccessDeny]) -> Acknowledged:
        """End a parked syscall."""
        return await self._decide(work, Decision("denied", work.body.reason))

    async def set_rule(self, work: Work[AccessSetRule]) -> Acknowledged:
        """Say which operations of a class need a person."""
        body, cursor = work.body, work.cursor
        whose = None if body.agent is None else await work.agent_named(body.agent)
        if not await is_administrator(cursor, work.agent):
            raise denied("setting rules")
        of = body.agent or "all agents"
        what = f"rule for {body.operation} of {of}: {body.rule}"
        await work.confirm(Irreversible("privilege", what))
        changed = await set_rule(cursor, work.agent.tenant, whose, body.operation, body.rule)
        return Acknowledged(changed=changed)

    async def rules(self, work: Work[AccessRules]) -> Rules:
        """Return the rules that hold for an agent."""
        rules = await rules_of(work.cursor, await work.agent_named(work.body.agent))
        return Rules({operation: one.rule for operation, one in rules.items()})

    async def audit(self, work: Work[AccessAudit]) -> Audit:
        """Return the newest lines: one's own, for an administrator those of all."""
        body = work.body
        return Audit(
            await newest_lines(
                work.cursor, tenant=work.agent.tenant, actor=body.agent, limit=body.limit
            )
        )

    async def _decide(
        self, work: Work[AccessApprove] | Work[AccessDeny], decision: Decision
    ) -> Acknowledged:
        agent = work.agent
        if not await is_administrator(work.cursor, agent):
            raise denied("deciding")
        decider = Decider(agent.name, agent.tenant_id, agent.id)
        approval = await decide(work.cursor, work.body.approval, decider, decision)
        work.then(lambda: self._duty.resume(approval))
        return Acknowledged()
