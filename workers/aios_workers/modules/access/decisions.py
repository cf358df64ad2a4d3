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
from aios_workers.approvals import requests
from aios_workers.approvals.requests import Decider, Decision
from aios_workers.approvals.service import Irreversible
from aios_workers.approvals.sweep import ApprovalSweep
from aios_workers.modules.access.audit import newest_lines
from aios_workers.modules.access.identity import denied, is_administrator
from aios_workers.modules.operation import Work


async def approvals(work: Work[AccessApprovals]) -> Approvals:
    """List approvals: one's own, for an administrator all of the tenant."""
    body, cursor = work.body, work.cursor
    if body.approval is None:
        return Approvals(await requests.list_approvals(cursor, body.state, body.limit))
    return Approvals((await requests.one_approval(cursor, body.approval),))


async def approve(work: Work[AccessApprove]) -> Acknowledged:
    """Let a parked syscall run once."""
    return await _decide(work, Decision("approved", arguments=work.body.arguments))


async def deny(work: Work[AccessDeny]) -> Acknowledged:
    """End a parked syscall."""
    return await _decide(work, Decision("denied", work.body.reason))


async def _decide(work: Work[AccessApprove | AccessDeny], decision: Decision) -> Acknowledged:
    agent, services = work.agent, work.services
    if not await is_administrator(work):
        raise denied("deciding")
    decider = Decider(agent.name, agent.tenant_id, agent.id)
    approval = await requests.decide(work.cursor, work.body.approval, decider, decision)
    sweep = ApprovalSweep(services.store, services.functions, services.keys)
    work.then(lambda: sweep.resume(approval))
    return Acknowledged()


async def set_rule(work: Work[AccessSetRule]) -> Acknowledged:
    """Say which operations of a class need a person."""
    body, cursor = work.body, work.cursor
    whose = None if body.agent is None else await work.agent_named(body.agent)
    if not await is_administrator(work):
        raise denied("setting rules")
    what = f"rule for {body.operation} of {body.agent or 'all agents'}: {body.rule}"
    await work.confirm(Irreversible("privilege", what))
    changed = await requests.set_rule(cursor, work.agent.tenant, whose, body.operation, body.rule)
    return Acknowledged(changed=changed)


async def rules(work: Work[AccessRules]) -> Rules:
    """Return the rules that hold for an agent."""
    rules = await requests.rules_of(work.cursor, await work.agent_named(work.body.agent))
    return Rules({operation: one.rule for operation, one in rules.items()})


async def audit(work: Work[AccessAudit]) -> Audit:
    """Return the newest lines: one's own, for an administrator those of all."""
    agent, body = work.agent, work.body
    lines = newest_lines(work.cursor, tenant=agent.tenant, actor=body.agent, limit=body.limit)
    return Audit(await lines)
