"""The operations of the access module, by the body that asks for each."""

from __future__ import annotations

from aios_broker.contract import access as bodies
from aios_workers.modules.access import decisions, grants, groups, identity
from aios_workers.modules.operation import calls, changes, reads, table

ACCESS_OPERATIONS = table(
    reads(bodies.AccessWhoami, identity.whoami),
    calls(bodies.AccessRegister, identity.register, irreversible="privilege"),
    calls(bodies.AccessRevokeToken, identity.revoke_token),
    reads(bodies.AccessGroups, groups.groups),
    changes(bodies.AccessGroupCreate, groups.create, after=groups.refresh),
    changes(
        bodies.AccessGroupDelete, groups.delete, irreversible="privilege", after=groups.refresh
    ),
    changes(bodies.AccessGroupAdd, groups.add, irreversible="privilege", after=groups.refresh),
    changes(
        bodies.AccessGroupRemove, groups.remove, irreversible="privilege", after=groups.refresh
    ),
    changes(bodies.AccessGrant, grants.grant),
    changes(bodies.AccessRevoke, grants.revoke, irreversible="unshare"),
    reads(bodies.AccessGrants, grants.grants),
    reads(bodies.AccessCheck, grants.check),
    reads(bodies.AccessApprovals, decisions.approvals),
    changes(bodies.AccessApprove, decisions.approve),
    changes(bodies.AccessDeny, decisions.deny),
    changes(bodies.AccessSetRule, decisions.set_rule, irreversible="privilege"),
    reads(bodies.AccessRules, decisions.rules),
    reads(bodies.AccessAudit, decisions.audit),
)
