"""The syscalls of memory, storage and access on the synchronous agent."""

from __future__ import annotations

from aios_sdk.state import AsyncAccess, AsyncMemory, AsyncStorage
from aios_sdk.verbs_sync import Home, Verbs


class Memory:
    """Notes that an agent keeps, finds again, and may share."""

    def __init__(self, tree: AsyncMemory, home: Home) -> None:
        self.alloc = Verbs(tree.alloc, home)
        self.add = Verbs(tree.add, home)
        self.evolve = Verbs(tree.evolve, home)
        self.get = Verbs(tree.get, home)
        self.update = Verbs(tree.update, home)
        self.remove = Verbs(tree.remove, home)
        self.list = Verbs(tree.list, home)
        self.search = Verbs(tree.search, home)
        self.context = Verbs(tree.context, home)
        self.log = Verbs(tree.log, home)
        self.history = Verbs(tree.history, home)
        self.rollback = Verbs(tree.rollback, home)
        self.undo = Verbs(tree.undo, home)
        self.clear = Verbs(tree.clear, home)
        self.ttl = Verbs(tree.ttl, home)
        self.share = Verbs(tree.share, home)
        self.unshare = Verbs(tree.unshare, home)
        self.stat = Verbs(tree.stat, home)


class Storage:
    """Files with versions, in a namespace of the agent's own."""

    def __init__(self, tree: AsyncStorage, home: Home) -> None:
        self.create = Verbs(tree.create, home)
        self.read = Verbs(tree.read, home)
        self.write = Verbs(tree.write, home)
        self.append = Verbs(tree.append, home)
        self.list = Verbs(tree.list, home)
        self.stat = Verbs(tree.stat, home)
        self.move = Verbs(tree.move, home)
        self.copy = Verbs(tree.copy, home)
        self.delete = Verbs(tree.delete, home)
        self.mkdir = Verbs(tree.mkdir, home)
        self.mount = Verbs(tree.mount, home)
        self.unmount = Verbs(tree.unmount, home)
        self.search = Verbs(tree.search, home)
        self.versions = Verbs(tree.versions, home)
        self.diff = Verbs(tree.diff, home)
        self.rollback = Verbs(tree.rollback, home)
        self.share = Verbs(tree.share, home)
        self.link = Verbs(tree.link, home)
        self.unshare = Verbs(tree.unshare, home)
        self.open = Verbs(tree.open, home)
        self.lock = Verbs(tree.lock, home)
        self.unlock = Verbs(tree.unlock, home)
        self.operate = Verbs(tree.operate, home)


class Access:
    """Who an agent is, groups, grants, approvals, and the audit log."""

    def __init__(self, tree: AsyncAccess, home: Home) -> None:
        self.whoami = Verbs(tree.whoami, home)
        self.register = Verbs(tree.register, home)
        self.revoke_token = Verbs(tree.revoke_token, home)
        self.groups = Verbs(tree.groups, home)
        self.group_create = Verbs(tree.group_create, home)
        self.group_delete = Verbs(tree.group_delete, home)
        self.group_add = Verbs(tree.group_add, home)
        self.group_remove = Verbs(tree.group_remove, home)
        self.grant = Verbs(tree.grant, home)
        self.revoke = Verbs(tree.revoke, home)
        self.grants = Verbs(tree.grants, home)
        self.check = Verbs(tree.check, home)
        self.approvals = Verbs(tree.approvals, home)
        self.approve = Verbs(tree.approve, home)
        self.deny = Verbs(tree.deny, home)
        self.set_rule = Verbs(tree.set_rule, home)
        self.rules = Verbs(tree.rules, home)
        self.audit = Verbs(tree.audit, home)
