"""Submitting: all syscalls of one loop tick leave as one batch per module."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Literal

import msgspec

from aios_broker.client.pending import Pending
from aios_broker.client.retry import Limits, now_s, patiently
from aios_broker.client.transport import Attached, Transport
from aios_broker.contract.errors import Cancelled, KernelError
from aios_broker.contract.llm import ContextExpand, ContextSet, LlmChat, LlmCount, LlmEmbed, Message
from aios_broker.contract.memory import MemoryAdd, MemoryLog
from aios_broker.contract.storage import StorageAppend, StorageCreate, StorageWrite
from aios_broker.contract.syscall import Syscall, ToolEcho

logger = logging.getLogger(__name__)

# Of one submit: 4 ms of Redis' own thread. More at once cost more each: what a step has written
# no longer fits the processor's cache.
BATCH = 200
BATCH_CHARACTERS = 8 * 1024 * 1024  # of their prompts


class Outbox:
    """What was submitted in this loop tick, and those on their way to the kernel."""

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        spawn: Callable[[Coroutine[object, object, object]], None],
        end: Callable[[Pending, KernelError, Literal["refuse", "lose"]], None],
        learn: Callable[[Pending, Attached], None],
    ) -> None:
        self._transport = transport
        self._limits = limits
        self._spawn = spawn
        self._end = end
        self._learn = learn
        self._waiting: list[Pending] = []

    def add(self, pending: Pending) -> None:
        """Send a syscall with all others of this tick."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(pending)

    def clear(self) -> list[Pending]:
        """Return those of this tick, and do not send them."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _flush(self) -> None:
        waiting = [pending for pending in self.clear() if pending.reply is None]
        for module in {pending.module: None for pending in waiting}:
            for batch in _batches([each for each in waiting if each.module == module]):
                self._spawn(self._publish(batch))

    async def _publish(self, batch: Sequence[Pending]) -> None:
        """Submit a batch: each of its calls stands or falls for itself."""
        try:
            await patiently(lambda: self._send(batch), self._limits.patience_s)
        except KernelError as error:
            for pending in batch:
                if pending.is_on_its_way:
                    self._end(pending, error, "lose")

    async def _send(self, batch: Sequence[Pending]) -> None:
        left = [pending for pending in batch if pending.is_on_its_way]
        if not left:
            return
        at_s = now_s()
        for pending in left:
            pending.send()
        outcomes = await self._transport.submit([_as_of(pending, at_s) for pending in left])
        at_s = now_s()
        for pending, outcome in zip(left, outcomes, strict=True):
            if not isinstance(outcome, KernelError):
                pending.submissions += 1
                self._take(pending, at_s)
                if outcome is not None and outcome.reply is not None:  # it has ended
                    self._learn(pending, outcome)
            elif pending.is_on_its_way:
                self._end(pending, outcome, "refuse")

    def _take(self, pending: Pending, at_s: float) -> None:
        if pending.is_on_its_way or pending.is_known:
            pending.accept(at_s)
        elif pending.state == "lost":  # given up meanwhile: whoever waited heard that it ended
            self._spawn(self._take_back(pending))

    async def _take_back(self, pending: Pending) -> None:
        assert pending.module is not None  # it was submitted
        try:
            reason = Cancelled("cancelled before the kernel acknowledged it")
            await self._transport.cancel([pending.id], pending.module, reason)
        except KernelError as error:
            logger.warning("syscall %s may go on: %s", pending.id, error)


def _batches(pending: Sequence[Pending]) -> Iterator[list[Pending]]:
    batch: list[Pending] = []
    characters = 0
    for each in pending:
        characters += _characters(each)
        if batch and (len(batch) == BATCH or characters > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], _characters(each)
        batch.append(each)
    if batch:
        yield batch


def _characters(pending: Pending) -> int:
    match _syscall(pending).body:
        case LlmChat(messages) | ContextSet(messages) | ContextExpand(messages):
            return sum(_message_characters(message) for message in messages)
        case LlmEmbed(texts) | LlmCount(texts):
            return sum(map(len, texts))
        case ToolEcho(text):
            return len(text)
        case StorageCreate() | StorageWrite() | StorageAppend() | MemoryAdd() | MemoryLog() as body:
            return len(body.content)
        case _:
            return 0


def _message_characters(message: Message) -> int:
    return len(message.content) + sum(len(image.data) for image in message.images)


def _as_of(pending: Pending, now_s: float) -> Syscall:
    """Return the syscall with what is left of its time: a deadline counts from submission."""
    syscall = _syscall(pending)
    waited_s = now_s - pending.submitted_at_s
    if waited_s < 1.0:
        return syscall
    return msgspec.structs.replace(syscall, deadline_s=max(syscall.deadline_s - waited_s, 0.001))


def _syscall(pending: Pending) -> Syscall:
    assert pending.syscall is not None  # what is attached to by id is never submitted
    return pending.syscall
