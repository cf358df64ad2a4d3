"""The tree of syscalls: one line per verb, for both agents.

A line gives `AsyncVerbs` on the tree of an asynchronous agent, and `Verbs` on that of a synchronous
one; which of the two a tree is stands in its type, so that type checkers know it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, Self, TypeVar, overload

from aios_broker.contract import access, files, memory, storage
from aios_broker.contract.access import Acknowledged
from aios_broker.contract.reply import (
    ChatResult,
    ContextResult,
    CountResult,
    EchoResult,
    EmbedResult,
    Result,
)
from aios_broker.contract.syscall import Body
from aios_sdk.loop_thread import Home
from aios_sdk.requests import (
    RawBody,
    append_body,
    chat_body,
    context_clear_body,
    context_expand_body,
    context_get_body,
    context_set_body,
    context_summarise_body,
    count_body,
    create_body,
    echo_body,
    embed_body,
    evolving_note_body,
    link_body,
    note_body,
    share_body,
    write_body,
)
from aios_sdk.verbs import AsyncVerbs, Submitter, Verbs

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)


class Asynchronous:
    """Marks the tree of an agent whose calls are awaited."""


class Synchronous:
    """Marks the tree of an agent whose calls return when they have ended."""


Side = TypeVar("Side", Asynchronous, Synchronous)


class Tree(Generic[Side]):
    """The syscalls of one module, as attributes of an agent."""

    def __init__(self, agent: Submitter, home: Home | None) -> None:
        self._agent = agent
        self._home = home  # where a synchronous agent's calls run; None: it is asynchronous


class Kind(Generic[Arguments, Answer]):
    """One kind of syscall: what builds its body, and what answers it."""

    def __init__(self, build: Callable[Arguments, RawBody | Body], answer: type[Answer]) -> None:
        self._build = build
        self._answer = answer

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, tree: None, owner: type) -> Self: ...
    @overload
    def __get__(self, tree: Tree[Asynchronous], owner: type) -> AsyncVerbs[Arguments, Answer]: ...
    @overload
    def __get__(self, tree: Tree[Synchronous], owner: type) -> Verbs[Arguments, Answer]: ...
    def __get__(
        self, tree: Tree[Asynchronous] | Tree[Synchronous] | None, owner: type
    ) -> Self | AsyncVerbs[Arguments, Answer] | Verbs[Arguments, Answer]:
        """Return the verbs of this kind, made when they are first asked for."""
        if tree is None:
            return self
        verbs = AsyncVerbs(tree._agent, self._build, self._answer)
        made = verbs if tree._home is None else Verbs(verbs, tree._home)
        tree.__dict__[self._name] = made
        return made


class Llm(Tree[Side]):
    """Generation, embeddings, counts of tokens."""

    chat = Kind(chat_body, ChatResult)
    embed = Kind(embed_body, EmbedResult)
    count = Kind(count_body, CountResult)


class Context(Tree[Side]):
    """Conversations that the kernel keeps."""

    get = Kind(context_get_body, ContextResult)
    set = Kind(context_set_body, ContextResult)
    clear = Kind(context_clear_body, ContextResult)
    expand = Kind(context_expand_body, ContextResult)
    summarise = Kind(context_summarise_body, ContextResult)


class Tool(Tree[Side]):
    """Tools."""

    echo = Kind(echo_body, EchoResult)


class Memory(Tree[Side]):
    """Notes that an agent keeps, finds again, and may share."""

    alloc = Kind(memory.MemoryAlloc, memory.BlockStat)
    add = Kind(note_body, memory.Note)
    evolve = Kind(evolving_note_body, memory.Evolved)
    get = Kind(memory.MemoryGet, memory.Note)
    update = Kind(memory.MemoryUpdate, memory.Note)
    remove = Kind(memory.MemoryRemove, Acknowledged)
    list = Kind(memory.MemoryList, memory.Notes)
    search = Kind(memory.MemorySearch, memory.Notes)
    context = Kind(memory.MemoryContext, memory.Recall)
    log = Kind(memory.MemoryLog, memory.Note)
    history = Kind(memory.MemoryHistory, memory.NoteHistory)
    rollback = Kind(memory.MemoryRollback, memory.Note)
    undo = Kind(memory.MemoryUndo, memory.Notes)
    clear = Kind(memory.MemoryClear, Acknowledged)
    ttl = Kind(memory.MemoryTtl, memory.Note)
    share = Kind(memory.MemoryShare, Acknowledged)
    unshare = Kind(memory.MemoryUnshare, Acknowledged)
    stat = Kind(memory.MemoryStat, memory.BlockStat)


class Storage(Tree[Side]):
    """Files with versions, in a namespace of the agent's own."""

    create = Kind(create_body, files.Entry)
    read = Kind(storage.StorageRead, files.Content)
    write = Kind(write_body, files.Entry)
    append = Kind(append_body, files.Entry)
    list = Kind(storage.StorageList, files.Entries)
    stat = Kind(storage.StorageStat, files.Entry)
    move = Kind(storage.StorageMove, files.Entry)
    copy = Kind(storage.StorageCopy, files.Entry)
    delete = Kind(storage.StorageDelete, files.Entry)
    mkdir = Kind(storage.StorageMkdir, files.Entry)
    mount = Kind(storage.StorageMount, files.Entry)
    unmount = Kind(storage.StorageUnmount, Acknowledged)
    search = Kind(storage.StorageSearch, files.FoundFiles)
    versions = Kind(storage.StorageVersions, files.FileVersions)
    diff = Kind(storage.StorageDiff, files.Diff)
    rollback = Kind(storage.StorageRollback, files.Entry)
    share = Kind(share_body, files.Entry)
    link = Kind(link_body, files.ShareLink)
    unshare = Kind(storage.StorageUnshare, files.Entry)
    open = Kind(storage.StorageOpen, files.Content)
    lock = Kind(storage.StorageLock, files.Entry)
    unlock = Kind(storage.StorageUnlock, files.Entry)
    operate = Kind(storage.StorageOperate, files.Plan)


class Access(Tree[Side]):
    """Who an agent is, groups, grants, approvals, and the audit log."""

    whoami = Kind(access.AccessWhoami, access.Whoami)
    register = Kind(access.AccessRegister, access.TokenIssued)
    revoke_token = Kind(access.AccessRevokeToken, Acknowledged)
    groups = Kind(access.AccessGroups, access.Groups)
    group_create = Kind(access.AccessGroupCreate, Acknowledged)
    group_delete = Kind(access.AccessGroupDelete, Acknowledged)
    group_add = Kind(access.AccessGroupAdd, Acknowledged)
    group_remove = Kind(access.AccessGroupRemove, Acknowledged)
    grant = Kind(access.AccessGrant, Acknowledged)
    revoke = Kind(access.AccessRevoke, Acknowledged)
    grants = Kind(access.AccessGrants, access.Grants)
    check = Kind(access.AccessCheck, access.Verdict)
    approvals = Kind(access.AccessApprovals, access.Approvals)
    approve = Kind(access.AccessApprove, Acknowledged)
    deny = Kind(access.AccessDeny, Acknowledged)
    set_rule = Kind(access.AccessSetRule, Acknowledged)
    rules = Kind(access.AccessRules, access.Rules)
    audit = Kind(access.AccessAudit, access.Audit)
