"""The tree of syscalls: one line per verb, for both agents.

A line gives `AsyncVerbs` on the tree of an asynchronous agent, and `Verbs` on that of a synchronous
one; which of the two a tree is stands in its type, so that type checkers know it as well.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, Self, TypeVar, Unpack, overload

from aios_broker.client.notes_file import ExportFields, NotesFile, export_notes, import_notes
from aios_broker.contract import access, exec, memory, storage, tools, workspace
from aios_broker.contract.access import Acknowledged
from aios_broker.contract.llm import ContextClear, ContextGet, ContextSummarise
from aios_broker.contract.reply import (
    ChatResult,
    ContextResult,
    CountResult,
    EchoResult,
    EmbedResult,
    Result,
)
from aios_broker.contract.syscall import Body
from aios_sdk.loop_thread import LoopThread
from aios_sdk.requests import (
    RawBody,
    append_body,
    build_syscall,
    chat_body,
    context_expand_body,
    context_set_body,
    count_body,
    create_body,
    echo_body,
    embed_body,
    evolving_note_body,
    link_body,
    note_body,
    register_body,
    share_body,
    tool_call_body,
    write_body,
)
from aios_sdk.verbs import Answer, Arguments, AsyncOpen, AsyncVerbs, Open, Submitter, Verbs


class Asynchronous:
    """Marks the tree of an agent whose calls are awaited."""


class Synchronous:
    """Marks the tree of an agent whose calls return when they have ended."""


Side = TypeVar("Side", Asynchronous, Synchronous)


class Tree(Generic[Side]):
    """The syscalls of one module, as attributes of an agent."""

    def __init__(self, agent: Submitter, thread: LoopThread | None) -> None:
        self._agent = agent
        self._thread = thread  # where a synchronous agent's calls run; None: it is asynchronous


class Kind(Generic[Arguments, Answer]):
    """One kind of syscall: what builds its body, and what answers it."""

    def __init__(self, build: Callable[Arguments, RawBody | Body], answer: type[Answer]) -> None:
        self._build = build  # `answer` is for type checkers alone

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self._path = f"{owner.__name__.lower()}.{name}"

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
        verbs: AsyncVerbs[Arguments, Answer] = AsyncVerbs(tree._agent, self._path, self._build)
        made = verbs if tree._thread is None else Verbs(verbs, tree._thread)
        tree.__dict__[self._name] = made
        return made


class OpenKind(Kind[Arguments, exec.ExecSession]):
    """The kind `exec.open`, whose answer is also a block that closes what was opened."""

    @overload
    def __get__(self, tree: None, owner: type) -> Self: ...
    @overload
    def __get__(self, tree: Tree[Asynchronous], owner: type) -> AsyncOpen[Arguments]: ...
    @overload
    def __get__(self, tree: Tree[Synchronous], owner: type) -> Open[Arguments]: ...
    def __get__(
        self, tree: Tree[Asynchronous] | Tree[Synchronous] | None, owner: type
    ) -> Self | AsyncOpen[Arguments] | Open[Arguments]:
        """Return the verbs of this kind, made when they are first asked for."""
        if tree is None:
            return self
        verbs: AsyncOpen[Arguments] = AsyncOpen(tree._agent, self._path, self._build)
        made = verbs if tree._thread is None else Open(verbs, tree._thread)
        tree.__dict__[self._name] = made
        return made


class Llm(Tree[Side]):
    """Generation, embeddings, counts of tokens."""

    chat = Kind(chat_body, ChatResult)
    embed = Kind(embed_body, EmbedResult)
    count = Kind(count_body, CountResult)


class Context(Tree[Side]):
    """Conversations that the kernel keeps."""

    get = Kind(ContextGet, ContextResult)
    set = Kind(context_set_body, ContextResult)
    clear = Kind(ContextClear, ContextResult)
    expand = Kind(context_expand_body, ContextResult)
    summarise = Kind(ContextSummarise, ContextResult)


class Tool(Tree[Side]):
    """Tools."""

    call = Kind(tool_call_body, tools.ToolResult)
    list = Kind(tools.ToolList, tools.ToolCards)
    show = Kind(tools.ToolShow, tools.ToolCard)
    echo = Kind(echo_body, EchoResult)


class Exec(Tree[Side]):
    """Sessions of an interpreter that keeps what was run in it."""

    open = OpenKind(exec.ExecOpen, exec.ExecSession)
    run = Kind(exec.ExecRun, exec.ExecOutcome)
    interrupt = Kind(exec.ExecInterrupt, exec.ExecSession)
    reset = Kind(exec.ExecReset, exec.ExecSession)
    close = Kind(exec.ExecClose, exec.ExecSession)
    list = Kind(exec.ExecList, exec.ExecSessions)
    changes = Kind(exec.ExecChanges, workspace.WorkspaceChanges)
    commit = Kind(exec.ExecCommit, workspace.WorkspaceChanges)
    discard = Kind(exec.ExecDiscard, workspace.WorkspaceChanges)


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
    dump = Kind(memory.MemoryDump, memory.NoteRecords)
    restore = Kind(memory.MemoryRestore, memory.Restored)

    @overload
    def export(
        self: "Memory[Asynchronous]", file: NotesFile, **only: Unpack[ExportFields]
    ) -> Awaitable[int]: ...
    @overload
    def export(
        self: "Memory[Synchronous]", file: NotesFile, **only: Unpack[ExportFields]
    ) -> int: ...
    def export(self, file: NotesFile, **only: Unpack[ExportFields]) -> Awaitable[int] | int:
        """Write the notes that are meant into a file, as JSON Lines; return how many.

        `file`: its path, or one that is open for bytes. Newest versions alone; grants stay behind.
        """
        work = export_notes(self._send, file, only)
        return work if self._thread is None else self._thread.run(work)

    @overload
    def import_(self: "Memory[Asynchronous]", file: NotesFile) -> Awaitable[memory.Restored]: ...
    @overload
    def import_(self: "Memory[Synchronous]", file: NotesFile) -> memory.Restored: ...
    def import_(self, file: NotesFile) -> Awaitable[memory.Restored] | memory.Restored:
        """Add the notes of such a file, those that are not there; safe to be run again."""
        work = import_notes(self._send, file)
        return work if self._thread is None else self._thread.run(work)

    async def _send(self, body: Body, at: int) -> Result:
        agent = self._agent
        answer: Result = await agent._start(
            build_syscall(agent.options, body, agent._ids, index=at)
        )
        return answer


class Storage(Tree[Side]):
    """Files with versions, in a namespace of the agent's own."""

    create = Kind(create_body, storage.Entry)
    read = Kind(storage.StorageRead, storage.Content)
    write = Kind(write_body, storage.Entry)
    append = Kind(append_body, storage.Entry)
    apply = Kind(storage.StorageApply, storage.Entries)
    list = Kind(storage.StorageList, storage.Entries)
    stat = Kind(storage.StorageStat, storage.Entry)
    move = Kind(storage.StorageMove, storage.Entry)
    copy = Kind(storage.StorageCopy, storage.Entry)
    delete = Kind(storage.StorageDelete, storage.Entry)
    mkdir = Kind(storage.StorageMkdir, storage.Entry)
    mount = Kind(storage.StorageMount, storage.Entry)
    unmount = Kind(storage.StorageUnmount, Acknowledged)
    search = Kind(storage.StorageSearch, storage.FoundFiles)
    versions = Kind(storage.StorageVersions, storage.FileVersions)
    diff = Kind(storage.StorageDiff, storage.Diff)
    rollback = Kind(storage.StorageRollback, storage.Entry)
    share = Kind(share_body, storage.Entry)
    link = Kind(link_body, storage.ShareLink)
    unshare = Kind(storage.StorageUnshare, storage.Entry)
    open = Kind(storage.StorageOpen, storage.Content)
    lock = Kind(storage.StorageLock, storage.Entry)
    unlock = Kind(storage.StorageUnlock, storage.Entry)
    operate = Kind(storage.StorageOperate, storage.Plan)


class Access(Tree[Side]):
    """Who an agent is, groups, grants, approvals, and the audit log."""

    whoami = Kind(access.AccessWhoami, access.Whoami)
    register = Kind(register_body, access.TokenIssued)
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


class Trees(Generic[Side]):
    """The syscalls of all modules."""

    def __init__(self, agent: Submitter, thread: LoopThread | None) -> None:
        self.llm: Llm[Side] = Llm(agent, thread)
        self.context: Context[Side] = Context(agent, thread)
        self.tool: Tool[Side] = Tool(agent, thread)
        self.exec: Exec[Side] = Exec(agent, thread)
        self.memory: Memory[Side] = Memory(agent, thread)
        self.storage: Storage[Side] = Storage(agent, thread)
        self.access: Access[Side] = Access(agent, thread)
