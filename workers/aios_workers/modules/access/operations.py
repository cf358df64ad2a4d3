"""The operations of the access module, by the body that asks for each; approvals and rules here."""

from aios_broker.access import requests
from aios_broker.access.audit import newest_lines
from aios_broker.access.deciders import Decider
from aios_broker.access.requests import Decision
from aios_broker.contract import access as bodies
from aios_broker.contract.access import Acknowledged, Approvals, Audit, Rules
from aios_broker.queues.control import Control
from aios_workers.approvals.irreversible import Irreversible, Seen
from aios_workers.approvals.service import ApprovalSweep
from aios_workers.modules.access import grants, groups, identity
from aios_workers.modules.operation import Work, calls, changes, reads, table


async def approvals(work: Work[bodies.AccessApprovals]) -> Approvals:
    """List approvals: one's own; for administrators and who decides all of the tenant."""
    body, cursor = work.body, work.cursor
    if body.approval is None:
        return await requests.list_approvals(cursor, body.state, body.limit, body.after)
    return Approvals((await requests.one_approval(cursor, body.approval),))


async def approve(work: Work[bodies.AccessApprove]) -> Acknowledged:
    """Let a parked syscall run once."""
    return await _decide(work, Decision("approved", arguments=work.body.arguments))


async def deny(work: Work[bodies.AccessDeny]) -> Acknowledged:
    """End a parked syscall."""
    return await _decide(work, Decision("denied", work.body.reason))


async def _decide(
    work: Work[bodies.AccessApprove | bodies.AccessDeny], decision: Decision
) -> Acknowledged:
    agent, services = work.agent, work.services
    decider = Decider(agent.name, agent.tenant_id, agent.id)
    approval = await requests.decide(work.cursor, work.body.approval, decider, decision)
    await requests.check_alive(Control(services.functions, services.keys), approval)
    sweep = ApprovalSweep(services.store, services.functions, services.keys)
    work.then(lambda: sweep.resume(approval))
    return Acknowledged()


async def set_rule(work: Work[bodies.AccessSetRule]) -> Acknowledged:
    """Say which operations of a class need a person."""
    body, cursor = work.body, work.cursor
    whose = None if body.agent is None else await work.agent_named(body.agent)
    if not await identity.is_administrator(work):
        raise identity.denied("setting rules")
    what = f"rule for {body.operation} of {body.agent or 'all agents'}: {body.rule}"
    before = (await requests.own_rule(cursor, work.agent, whose, body.operation)) or "none"
    whose_rule = f"{body.operation} of {body.agent or 'all agents'}"
    called = f"the rule for {whose_rule}, so far {before}"
    seen = Seen("rule", f"{whose_rule}: {before}", name=called)
    await work.take(Irreversible("privilege", what, (seen,)))
    await work.ask()  # under the rules of before
    changed = await requests.set_rule(cursor, work.agent.tenant, whose, body.operation, body.rule)
    return Acknowledged(changed=changed)


async def rules(work: Work[bodies.AccessRules]) -> Rules:
    """Return the rules that hold for an agent."""
    rules = await requests.rules_of(work.cursor, await work.agent_named(work.body.agent))
    return Rules({operation: one.rule for operation, one in rules.items()})


async def audit(work: Work[bodies.AccessAudit]) -> Audit:
    """Return the newest lines: one's own, for an administrator those of all."""
    agent, body = work.agent, work.body
    lines = newest_lines(work.cursor, tenant=agent.tenant, actor=body.agent, limit=body.limit)
    return Audit(await lines)


ACCESS_OPERATIONS = table(
    reads(bodies.AccessWhoami, identity.whoami),
    calls(bodies.AccessRegister, identity.register, irreversible="privilege"),
    calls(bodies.AccessRevokeToken, identity.revoke_token, irreversible="privilege"),
    reads(bodies.AccessGroups, groups.groups),
    changes(bodies.AccessGroupCreate, groups.create, after=groups.refresh),
    changes(
        bodies.AccessGroupDelete, groups.delete, irreversible="privilege", after=groups.refresh
    ),
    changes(bodies.AccessGroupAdd, groups.add, irreversible="privilege", after=groups.refresh),
    changes(
        bodies.AccessGroupRemove, groups.remove, irreversible="privilege", after=groups.refresh
    ),
    changes(bodies.AccessGrant, grants.grant, irreversible="unshare"),
    changes(bodies.AccessRevoke, grants.revoke, irreversible="unshare"),
    reads(bodies.AccessGrants, grants.grants),
    reads(bodies.AccessCheck, grants.check),
    reads(bodies.AccessApprovals, approvals),
    changes(bodies.AccessApprove, approve),
    changes(bodies.AccessDeny, deny),
    changes(bodies.AccessSetRule, set_rule, irreversible="privilege"),
    reads(bodies.AccessRules, rules),
    reads(bodies.AccessAudit, audit),
)
