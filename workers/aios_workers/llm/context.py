"""The stored contexts of programs: `context.*` syscalls, and chats that stand in a context."""

from collections.abc import Sequence
from functools import partial
from typing import assert_never

from aios_broker.contract.errors import ContextTooLong, InvalidSyscall
from aios_broker.contract.llm import (
    ContextBody,
    ContextClear,
    ContextExpand,
    ContextGet,
    ContextSet,
    ContextSummarise,
    LlmChat,
    Message,
)
from aios_broker.contract.reply import ChatResult, ContextResult
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.contexts import (
    MAX_BYTES,
    MAX_MESSAGES,
    Change,
    ContextOwner,
    Contexts,
    Written,
)
from aios_broker.retry import patiently
from aios_workers.llm.conversation import (
    Render,
    Summariser,
    as_message,
    counter,
    split,
)
from aios_workers.llm.core import Core, Reader, characters_of
from aios_workers.runtime.executor import Done
from aios_workers.runtime.runs import Run


class ContextService:
    """Keeps the contexts of agents; counts their tokens with this worker's core."""

    def __init__(self, core: Core, contexts: Contexts, reader: Reader) -> None:
        self._core = core
        self._contexts = contexts
        self._reader = reader
        self._summariser = Summariser(core, reader)
        self._count = counter(core)

    async def run(self, run: Run, syscall: Syscall, body: ContextBody) -> Done:
        """Answer a `context.*` syscall.

        Raises:
            InvalidSyscall: The context would hold too much; it is as it was.
            ContextChanged: Somebody rewrote it while it was summarised; it is as they left it.
            ContextTooLong: It cannot be summarised on this core.
            CoreError: The core failed while it wrote a summary.
        """
        owner = _owner(syscall, body.context)
        match body:
            case ContextGet():
                return await self._read(owner, run.lease.job_id)
            case ContextSet(messages=messages):
                return await self._change(run, owner, "set", messages)
            case ContextExpand(messages=messages):
                return await self._change(run, owner, "append", messages)
            case ContextClear():
                return await self._change(run, owner, "clear", ())
            case ContextSummarise():
                return await self._summarise(run, owner, body)
            case _:
                assert_never(body)

    async def conversation(
        self, run: Run, syscall: Syscall, body: LlmChat, render: Render
    ) -> tuple[Message, ...]:
        """Return the whole conversation of a chat: its context first, compacted where it may be.

        `render` is what will make the prompt of it. The context is read as it was when this chat
        first looked, however often it runs again.

        Raises:
            InvalidSyscall: Together it is more than a context may hold.
            ContextTooLong: It is to be compacted, and cannot be.
            CoreError: The core failed while it wrote a summary.
        """
        messages = await self._recall(run, syscall, body)
        if body.overflow != "compact":
            return messages
        count = counter(self._core, render, bounded=True)
        return await self._summariser.compact(run, messages, body.max_tokens, count)

    async def _recall(self, run: Run, syscall: Syscall, body: LlmChat) -> tuple[Message, ...]:
        if body.context is None:
            return tuple(body.messages)
        owner = _owner(syscall, body.context)
        job_id = run.lease.job_id
        stored = (await patiently(lambda: self._contexts.open(owner, job_id))).messages
        if len(stored) + len(body.messages) >= MAX_MESSAGES:
            raise InvalidSyscall(
                f"the context {owner.name!r} holds {len(stored)} messages and the chat brings "
                f"{len(body.messages)}; a context holds {MAX_MESSAGES} messages and "
                f"{MAX_BYTES} bytes",
                field="body.messages",
                remedy="summarise or clear it first (context.summarise, context.clear)",
            )
        return (*stored, *body.messages)

    async def compacted_messages(
        self, run: Run, syscall: Syscall, body: LlmChat, render: Render
    ) -> int:
        """Return how many messages of a chat's conversation were summarised away."""
        if body.overflow != "compact":
            return 0
        messages = await self._recall(run, syscall, body)
        count = counter(self._core, render, bounded=True)
        return len((await self._summariser.split_for(messages, body.max_tokens, count)).old)

    async def keep(self, run: Run, syscall: Syscall, body: LlmChat, result: ChatResult) -> None:
        """Add what a chat brought, and its answer, to its context.

        Raises:
            Cancelled: This run has lost its lease: another one answers, or nobody waits.
            InvalidSyscall: It would hold too much; the answer is lost with the chat.
        """
        if body.context is None:
            return
        owner = _owner(syscall, body.context)
        answer = Message("assistant", result.text, tool_calls=result.tool_calls)
        await self._write(run, owner, "append", (*body.messages, answer))

    async def _read(self, owner: ContextOwner, syscall_id: str) -> Done:
        opened = await patiently(lambda: self._contexts.open(owner, syscall_id))
        written = Written(opened.version, len(opened.messages))
        return await self._done(owner, written, opened.messages, show=True)

    async def _change(
        self, run: Run, owner: ContextOwner, how: Change, messages: Sequence[Message]
    ) -> Done:
        written = await self._write(run, owner, how, messages)
        now = await patiently(lambda: self._contexts.peek(owner))
        return await self._done(owner, written, now, show=False)

    async def _write(
        self, run: Run, owner: ContextOwner, how: Change, messages: Sequence[Message]
    ) -> Written:
        lease = run.lease
        return await patiently(
            lambda: self._contexts.change(owner, lease.job_id, how, messages, attempt=lease.attempt)
        )

    async def _summarise(self, run: Run, owner: ContextOwner, body: ContextSummarise) -> Done:
        syscall_id = run.lease.job_id
        seen = await patiently(lambda: self._contexts.open(owner, syscall_id))
        parts = split(seen.messages, body.keep_last)
        if seen.applied or not parts.old:
            now = await patiently(lambda: self._contexts.peek(owner))
            return await self._done(owner, Written(seen.version, len(now)), now, show=True)
        summary = await self._summariser.summarise(run, parts.old, body.max_tokens)
        first = (*parts.head, as_message(summary))
        written = await patiently(
            lambda: self._contexts.replace_first(
                owner,
                syscall_id,
                drop=len(parts.head) + len(parts.old),
                seen=seen,
                messages=first,
                attempt=run.lease.attempt,
            )
        )
        return await self._done(owner, written, (*first, *parts.tail), show=True)

    async def _done(
        self, owner: ContextOwner, written: Written, messages: Sequence[Message], *, show: bool
    ) -> Done:
        info = self._core.info
        tokens = await self._tokens(messages)
        return Done(
            ContextResult(
                context=owner.name,
                messages=tuple(messages) if show else (),
                message_count=written.message_count,
                tokens=tokens,
                limit_tokens=info.context_tokens,
                model=info.model,
                core=info.name,
                version=written.version,
            )
        )

    async def _tokens(self, messages: Sequence[Message]) -> int:
        """Count a conversation; one that does not fit message by message: others read meanwhile."""
        if not messages:
            return 0
        try:
            return await self._reader.read(
                characters_of(messages),
                lambda: self._core.info.tokens_of(self._core.render(messages)),
            )
        except ContextTooLong:
            tokens = 0
            for message in messages:
                one = (message,)
                tokens += await self._reader.read(characters_of(one), partial(self._count, one))
            return max(self._core.info.context_tokens + 1, tokens)


def _owner(syscall: Syscall, name: str) -> ContextOwner:
    return ContextOwner(syscall.tenant, syscall.agent, name)
