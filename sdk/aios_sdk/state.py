"""The syscalls of memory, storage and access: bodies, and trees of them on the asynchronous agent.

Where a body of the contract is built from arguments alone, its class is the verb.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, TypedDict, Unpack

from aios_broker.contract import access, files, memory, storage
from aios_broker.contract.access import Acknowledged
from aios_broker.contract.names import GrantVerbs
from aios_sdk.verbs import AsyncVerbs

if TYPE_CHECKING:
    from aios_sdk.aagent import AsyncAgent


class NoteFields(TypedDict, total=False):
    """The fields of `MemoryAdd` beside its content; ranges and defaults stand there."""

    keywords: tuple[str, ...]
    tags: tuple[str, ...]
    category: str
    context: str
    links: tuple[str, ...]
    metadata: dict[str, object]
    ttl_s: float | None


def note_body(content: str, **fields: Unpack[NoteFields]) -> memory.MemoryAdd:
    """Add a note."""
    return memory.MemoryAdd(content, **fields)


def evolving_note_body(
    content: str, *, core: str | None = None, **fields: Unpack[NoteFields]
) -> memory.MemoryAdd:
    """Add a note that a model labels, links, and lets its neighbours change by."""
    return memory.MemoryAdd(content, evolve=True, core=core, **fields)


def create_body(
    path: str, content: str | bytes = "", *, owner: str | None = None
) -> storage.StorageCreate:
    """Make a new file, of text or of bytes."""
    text, encoding = encoded(content)
    return storage.StorageCreate(path, text, encoding, owner)


def write_body(
    path: str, content: str | bytes, *, if_version: int | None = None, owner: str | None = None
) -> storage.StorageWrite:
    """Replace a file's content, or make the file. Over content that is there it may need approval.

    `if_version`: refuse with VersionConflict if it is of another version; 0: only if there is none.
    """
    text, encoding = encoded(content)
    return storage.StorageWrite(path, text, encoding, if_version, owner)


def append_body(
    path: str, content: str | bytes, *, owner: str | None = None
) -> storage.StorageAppend:
    """Add to the end of a file, or make the file."""
    text, encoding = encoded(content)
    return storage.StorageAppend(path, text, encoding, owner)


def share_body(
    path: str, *, group: str | None = None, agent: str | None = None,
    verbs: GrantVerbs = ("read", "search"), ttl_s: float | None = None,
) -> storage.StorageShare:  # fmt: skip
    """Grant verbs on a file or a directory to a group or an agent."""
    return storage.StorageShare(path, group, agent, verbs=verbs, ttl_s=ttl_s)


def link_body(path: str, *, ttl_s: float | None = None) -> storage.StorageShare:
    """Make a link that reads one file until it expires (a day unless set)."""
    return storage.StorageShare(path, link=True, ttl_s=ttl_s)


def encoded(content: str | bytes) -> tuple[str, storage.Encoding]:
    """Return content as it travels: text as it is, bytes in base64."""
    if isinstance(content, bytes):
        return base64.b64encode(content).decode(), "base64"
    return content, "utf-8"


class AsyncMemory:
    """Notes that an agent keeps, finds again, and may share."""

    def __init__(self, agent: AsyncAgent) -> None:
        self.alloc = AsyncVerbs(agent, memory.MemoryAlloc, memory.BlockStat)
        self.add = AsyncVerbs(agent, note_body, memory.Note)
        self.evolve = AsyncVerbs(agent, evolving_note_body, memory.Evolved)
        self.get = AsyncVerbs(agent, memory.MemoryGet, memory.Note)
        self.update = AsyncVerbs(agent, memory.MemoryUpdate, memory.Note)
        self.remove = AsyncVerbs(agent, memory.MemoryRemove, Acknowledged)
        self.list = AsyncVerbs(agent, memory.MemoryList, memory.Notes)
        self.search = AsyncVerbs(agent, memory.MemorySearch, memory.Notes)
        self.context = AsyncVerbs(agent, memory.MemoryContext, memory.Recall)
        self.log = AsyncVerbs(agent, memory.MemoryLog, memory.Note)
        self.history = AsyncVerbs(agent, memory.MemoryHistory, memory.NoteHistory)
        self.rollback = AsyncVerbs(agent, memory.MemoryRollback, memory.Note)
        self.undo = AsyncVerbs(agent, memory.MemoryUndo, memory.Notes)
        self.clear = AsyncVerbs(agent, memory.MemoryClear, Acknowledged)
        self.ttl = AsyncVerbs(agent, memory.MemoryTtl, memory.Note)
        self.share = AsyncVerbs(agent, memory.MemoryShare, Acknowledged)
        self.unshare = AsyncVerbs(agent, memory.MemoryUnshare, Acknowledged)
        self.stat = AsyncVerbs(agent, memory.MemoryStat, memory.BlockStat)


class AsyncStorage:
    """Files with versions, in a namespace of the agent's own."""

    def __init__(self, agent: AsyncAgent) -> None:
        self.create = AsyncVerbs(agent, create_body, files.Entry)
        self.read = AsyncVerbs(agent, storage.StorageRead, files.Content)
        self.write = AsyncVerbs(agent, write_body, files.Entry)
        self.append = AsyncVerbs(agent, append_body, files.Entry)
        self.list = AsyncVerbs(agent, storage.StorageList, files.Entries)
        self.stat = AsyncVerbs(agent, storage.StorageStat, files.Entry)
        self.move = AsyncVerbs(agent, storage.StorageMove, files.Entry)
        self.copy = AsyncVerbs(agent, storage.StorageCopy, files.Entry)
        self.delete = AsyncVerbs(agent, storage.StorageDelete, files.Entry)
        self.mkdir = AsyncVerbs(agent, storage.StorageMkdir, files.Entry)
        self.mount = AsyncVerbs(agent, storage.StorageMount, files.Entry)
        self.unmount = AsyncVerbs(agent, storage.StorageUnmount, Acknowledged)
        self.search = AsyncVerbs(agent, storage.StorageSearch, files.FoundFiles)
        self.versions = AsyncVerbs(agent, storage.StorageVersions, files.FileVersions)
        self.diff = AsyncVerbs(agent, storage.StorageDiff, files.Diff)
        self.rollback = AsyncVerbs(agent, storage.StorageRollback, files.Entry)
        self.share = AsyncVerbs(agent, share_body, files.Entry)
        self.link = AsyncVerbs(agent, link_body, files.ShareLink)
        self.unshare = AsyncVerbs(agent, storage.StorageUnshare, files.Entry)
        self.open = AsyncVerbs(agent, storage.StorageOpen, files.Content)
        self.lock = AsyncVerbs(agent, storage.StorageLock, files.Entry)
        self.unlock = AsyncVerbs(agent, storage.StorageUnlock, files.Entry)
        self.operate = AsyncVerbs(agent, storage.StorageOperate, files.Plan)


class AsyncAccess:
    """Who an agent is, groups, grants, approvals, and the audit log."""

    def __init__(self, agent: AsyncAgent) -> None:
        self.whoami = AsyncVerbs(agent, access.AccessWhoami, access.Whoami)
        self.register = AsyncVerbs(agent, access.AccessRegister, access.TokenIssued)
        self.revoke_token = AsyncVerbs(agent, access.AccessRevokeToken, Acknowledged)
        self.groups = AsyncVerbs(agent, access.AccessGroups, access.Groups)
        self.group_create = AsyncVerbs(agent, access.AccessGroupCreate, Acknowledged)
        self.group_delete = AsyncVerbs(agent, access.AccessGroupDelete, Acknowledged)
        self.group_add = AsyncVerbs(agent, access.AccessGroupAdd, Acknowledged)
        self.group_remove = AsyncVerbs(agent, access.AccessGroupRemove, Acknowledged)
        self.grant = AsyncVerbs(agent, access.AccessGrant, Acknowledged)
        self.revoke = AsyncVerbs(agent, access.AccessRevoke, Acknowledged)
        self.grants = AsyncVerbs(agent, access.AccessGrants, access.Grants)
        self.check = AsyncVerbs(agent, access.AccessCheck, access.Verdict)
        self.approvals = AsyncVerbs(agent, access.AccessApprovals, access.Approvals)
        self.approve = AsyncVerbs(agent, access.AccessApprove, Acknowledged)
        self.deny = AsyncVerbs(agent, access.AccessDeny, Acknowledged)
        self.set_rule = AsyncVerbs(agent, access.AccessSetRule, Acknowledged)
        self.rules = AsyncVerbs(agent, access.AccessRules, access.Rules)
        self.audit = AsyncVerbs(agent, access.AccessAudit, access.Audit)
