"""The operations of the access module, by the body that asks for each."""

from __future__ import annotations

from aios_broker.contract import access as bodies
from aios_workers.approvals.duty import ApprovalDuty
from aios_workers.modules.access import groups
from aios_workers.modules.access.decisions import DecisionDesk
from aios_workers.modules.access.grants import check, grant, grants, revoke
from aios_workers.modules.access.groups_map import GroupsMap
from aios_workers.modules.access.identity import Identities
from aios_workers.modules.operation import Operations, calls, changes, reads, table
from aios_workers.modules.services import Services


def access_operations(services: Services) -> Operations:
    """Return what the module can do."""
    who = Identities(services)
    shown = GroupsMap(services.store, services.functions, services.keys).refresh
    desk = DecisionDesk(ApprovalDuty(services.store, services.functions, services.keys))
    return table(
        reads(bodies.AccessWhoami, who.whoami),
        calls(bodies.AccessRegister, who.register, irreversible="privilege"),
        calls(bodies.AccessRevokeToken, who.revoke_token),
        reads(bodies.AccessGroups, groups.groups),
        changes(bodies.AccessGroupCreate, groups.create, after=shown),
        changes(bodies.AccessGroupDelete, groups.delete, irreversible="privilege", after=shown),
        changes(bodies.AccessGroupAdd, groups.add, irreversible="privilege", after=shown),
        changes(bodies.AccessGroupRemove, groups.remove, irreversible="privilege", after=shown),
        changes(bodies.AccessGrant, grant),
        changes(bodies.AccessRevoke, revoke, irreversible="unshare"),
        reads(bodies.AccessGrants, grants),
        reads(bodies.AccessCheck, check),
        reads(bodies.AccessApprovals, desk.approvals),
        changes(bodies.AccessApprove, desk.approve),
        changes(bodies.AccessDeny, desk.deny),
        changes(bodies.AccessSetRule, desk.set_rule, irreversible="privilege"),
        reads(bodies.AccessRules, desk.rules),
        reads(bodies.AccessAudit, desk.audit),
    )
