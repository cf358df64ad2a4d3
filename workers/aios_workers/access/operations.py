"""The operations of the access module, by the body that asks for each."""

from __future__ import annotations

from aios_broker.contract import access as bodies
from aios_workers.access.decisions import DecisionDesk
from aios_workers.access.grants import GrantDesk
from aios_workers.access.groups import GroupDesk
from aios_workers.access.groups_map import GroupsMap
from aios_workers.access.identity import Identities
from aios_workers.approval_duty import ApprovalDuty
from aios_workers.config import WorkerConfig
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Operations


def access_operations(ground: StateGround, _config: WorkerConfig) -> Operations:
    """Return what the module can do."""
    identities = Identities(ground)
    groups = GroupDesk(ground, GroupsMap(ground.store, ground.functions, ground.keys))
    grants = GrantDesk(ground)
    decisions = DecisionDesk(ground, ApprovalDuty(ground.store, ground.functions, ground.keys))
    return {
        bodies.AccessWhoami: identities.whoami,
        bodies.AccessRegister: identities.register,
        bodies.AccessRevokeToken: identities.revoke_token,
        bodies.AccessGroups: groups.groups,
        bodies.AccessGroupCreate: groups.create,
        bodies.AccessGroupDelete: groups.delete,
        bodies.AccessGroupAdd: groups.add,
        bodies.AccessGroupRemove: groups.remove,
        bodies.AccessGrant: grants.grant,
        bodies.AccessRevoke: grants.revoke,
        bodies.AccessGrants: grants.grants,
        bodies.AccessCheck: grants.check,
        bodies.AccessApprovals: decisions.approvals,
        bodies.AccessApprove: decisions.approve,
        bodies.AccessDeny: decisions.deny,
        bodies.AccessSetRule: decisions.set_rule,
        bodies.AccessRules: decisions.rules,
        bodies.AccessAudit: decisions.audit,
    }
