"""The tree of syscalls: one line per verb, for both agents; and the four verbs that each has.

A line gives `AsyncVerbs` on the tree of an asynchronous agent, and `Verbs` on that of a synchronous
one; which of the two a tree is stands in its type, so that type checkers know it as well.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from aios_broker.contract import access, files, memory, storage
from aios_broker.contract.access import Acknowledged
from aios_broker.contract.errors import InvalidSyscall, KernelError
from aios_broker.contract.llm import ContextClear, ContextGet, ContextSummarise
from aios_broker.contract.reply import (
    ChatResult,
    ContextResult,
    CountResult,
    EchoResult,
    EmbedResult,
    Result,
)
from aios_broker.contract.syscall import Body, Syscall
from aios_sdk.call import Call, Stream, SyncCall, SyncStream, Waiting, waiting_of
from aios_sdk.loop_thread import LoopThread
from aios_sdk.requests import (
    Item,
    Options,
    RawBody,
    append_body,
    build_syscall,
    call_body,
    chat_body,
    context_expand_body,
    context_set_body,
    count_body,
    create_body,
    echo_body,
    embed_body,
    evolving_note_body,
    item_body,
    link_body,
    note_body,
    share_body,
    write_body,
)

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer", bound=Result)

PORTION = 200  # calls that are started in one turn of the loop: what one submit carries


class Submitter(Protocol):
    """The agent in whose name the verbs submit."""

    @property
    def options(self) -> Options:
        """What holds for every call."""
        ...

    def _start(self, syscall: Syscall) -> Call[Any]:
        """Submit."""
        ...


class AsyncVerbs(Generic[Arguments, Answer]):
    """One syscall of the tree. All verbs submit when they are called, not when awaited."""

    def __init__(self, agent: Submitter, build: Callable[Arguments, RawBody | Body]) -> None:
        self._agent = agent
        self._build = build
        functools.update_wrapper(self, build)

    def __repr__(self) -> str:
        config = getattr(self._build, "__struct_config__", None)
        named = self._build.__name__.removesuffix("_body") if config is None else config.tag
        return f"<{named} of {self._agent!r}>"

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Call[Answer]:
        """Submit; `await` what is returned for the result."""
        body = call_body(self._build, *args, **kwargs)
        return self._agent._start(build_syscall(self._agent.options, body))

    def start(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Call[Answer]:
        """Submit, and return the handle."""
        return self(*args, **kwargs)

    def stream(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Stream[Answer]:
        """Submit, and return the text piece by piece; `.result` is there at the end."""
        body = call_body(self._build, *args, **kwargs)
        return Stream(self._agent._start(build_syscall(self._agent.options, body, stream=True)))

    def map(
        self, items: Iterable[Item], *, concurrency: int | None = None, return_errors: bool = False
    ) -> asyncio.Task[list[Answer]]:
        """Submit one call per item, in batches; await the results, in the items' order.

        The first error ends the map and cancels its other calls; with `return_errors` errors
        stand among the results instead. At most `concurrency` are under way; None: all at once.
        """
        options = self._agent.options
        bodies = [item_body(self._build, item) for item in items]
        syscalls = [build_syscall(options, body, index=at) for at, body in enumerate(bodies)]
        if concurrency is not None and concurrency < 1:
            raise InvalidSyscall(
                f"{concurrency} is too few", field="concurrency", remedy="give 1 or more, or None"
            )
        fan = Batch(self._agent._start, syscalls, at_once=concurrency, return_errors=return_errors)
        return asyncio.ensure_future(fan.results())


class Verbs(Generic[Arguments, Answer]):
    """One syscall of the tree."""

    def __repr__(self) -> str:
        return repr(self._verbs)

    def __init__(self, verbs: AsyncVerbs[Arguments, Answer], thread: LoopThread) -> None:
        self._verbs = verbs
        self._thread = thread
        functools.update_wrapper(self, verbs)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        """Submit, and return the result."""
        return self._thread.wait(lambda: self._verbs(*args, **kwargs))

    def start(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> SyncCall[Answer]:
        """Submit, and return the handle."""
        call = self._thread.call(lambda: self._verbs.start(*args, **kwargs))
        return SyncCall(call, self._thread)

    def stream(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> SyncStream[Answer]:
        """Submit, and return the text piece by piece; `.result` is there at the end."""
        stream = self._thread.call(lambda: self._verbs.stream(*args, **kwargs))
        return SyncStream(stream, self._thread)

    def map(
        self, items: Iterable[Item], *, concurrency: int | None = None, return_errors: bool = False
    ) -> list[Answer]:
        """Submit one call per item, in one batch; return the results, in the items' order.

        The first error ends the map and cancels its other calls; with `return_errors` errors
        stand among the results instead. At most `concurrency` are under way; None: all at once.
        """
        return self._thread.wait(
            lambda: self._verbs.map(items, concurrency=concurrency, return_errors=return_errors)
        )


class Batch(Generic[Answer]):
    """Starts calls in order, at most so many at a time, and gathers what comes of them.

    Used once. The first error ends it; with `return_errors` errors stand among the results.
    """

    def __init__(
        self,
        start: Callable[[Syscall], Call[Answer]],
        syscalls: Sequence[Syscall],
        *,
        at_once: int | None,
        return_errors: bool,
    ) -> None:
        self._start = start
        self._syscalls = syscalls
        self._at_once = len(syscalls) if at_once is None else at_once
        self._return_errors = return_errors
        self._calls: list[Call[Answer]] = []
        self._waits: list[Waiting] = []
        self._under_way: set[int] = set()
        self._late: dict[int, KernelError] = {}
        self._oldest = 0  # no call before it is under way; they run out of time in order
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def results(self) -> list[Answer]:
        """Run them all; return the results in order."""
        try:
            for _ in range(0, len(self._syscalls), PORTION):
                if self._begin(PORTION) and not self._over.done():
                    await asyncio.sleep(0)  # these leave while the next ones are made
            self._watch_time()
            if self._calls:
                await self._over
            return [self._result(at) for at in range(len(self._calls))]
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for at in self._under_way:
                self._waits[at].leave(abandon=True)
            self._under_way.clear()

    def _begin(self, most: int) -> bool:
        """Start up to `most` calls; return whether there is room for more of them."""
        for _ in range(most):
            if len(self._under_way) >= self._at_once or len(self._calls) == len(self._syscalls):
                return False
            at = len(self._calls)
            call = self._start(self._syscalls[at])
            self._calls.append(call)
            self._waits.append(waiting_of(call))
            self._under_way.add(at)
            self._waits[at].join(partial(self._on_end, at))
        return True

    def _on_end(self, at: int) -> None:
        if at not in self._under_way:  # it was late, or all is over
            return
        self._under_way.remove(at)
        self._waits[at].leave()
        if self._waits[at].failed and not self._return_errors:
            self._finish(at)
        else:
            self._go_on()

    def _go_on(self) -> None:
        try:
            self._begin(1)  # one has ended
        except KernelError as error:  # the agent was closed meanwhile
            if not self._over.done():
                self._over.set_exception(error)
            return
        if not self._under_way and not self._over.done():
            self._over.set_result(None)

    def _finish(self, at: int) -> None:
        if self._over.done():
            return
        try:
            self._result(at)
        except KernelError as error:
            self._over.set_exception(error)

    def _watch_time(self) -> None:
        """Give up those whose time is over; look again when the next one's is."""
        loop = asyncio.get_running_loop()
        while self._oldest < len(self._calls):
            at = self._oldest
            if at in self._under_way:
                until_s = self._waits[at].until_s
                if until_s > loop.time():
                    self._timer = loop.call_at(until_s, self._watch_time)
                    return
                self._give_up(at)
            self._oldest += 1

    def _give_up(self, at: int) -> None:
        self._under_way.remove(at)
        self._waits[at].leave()
        self._late[at] = self._waits[at].out_of_time()
        if self._return_errors:
            self._go_on()
        else:
            self._finish(at)

    def _result(self, at: int) -> Answer:
        try:
            if at in self._late:
                raise self._late[at]
            return self._calls[at].unwrap()
        except KernelError as error:
            if not self._return_errors:
                raise
            return error  # type: ignore[return-value]  # as the caller asked for


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
        verbs: AsyncVerbs[Arguments, Answer] = AsyncVerbs(tree._agent, self._build)
        made = verbs if tree._thread is None else Verbs(verbs, tree._thread)
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


class Trees(Generic[Side]):
    """The syscalls of all modules."""

    def __init__(self, agent: Submitter, thread: LoopThread | None) -> None:
        self.llm: Llm[Side] = Llm(agent, thread)
        self.context: Context[Side] = Context(agent, thread)
        self.tool: Tool[Side] = Tool(agent, thread)
        self.memory: Memory[Side] = Memory(agent, thread)
        self.storage: Storage[Side] = Storage(agent, thread)
        self.access: Access[Side] = Access(agent, thread)
