"""Conversations that the kernel keeps for agents, by name: the context of a program.

They live in Redis beside the queues, with the same durability, until nobody touched them for
CONTEXT_TTL_S. Each change is one atomic step that counts once, however often its syscall runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from aios_broker.contract.errors import Cancelled, ContextChanged, InvalidSyscall
from aios_broker.contract.llm import Message
from aios_broker.contract.syscall import MAX_DEADLINE_S, name_digest
from aios_broker.queues.functions import Steps
from aios_broker.queues.quota import Subject, contexts_refused
from aios_broker.queues.rows import ContextChangeRow, ContextRow
from aios_broker.redis.connection import Answer, Argument

CONTEXT_TTL_S = 7 * 86_400
OP_TTL_S = round(MAX_DEADLINE_S) + 3_600  # longer than any syscall may run
MAX_MESSAGES = 10_000
MAX_BYTES = 4 * 1024 * 1024

Change = Literal["set", "append", "clear"]

_decoder = msgspec.json.Decoder(Message)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class ContextOwner:
    """Whose context it is, and which."""

    tenant: str
    agent: str
    name: str

    @property
    def key(self) -> str:
        """Its part of the Redis key: a digest, since names may hold any separator."""
        return name_digest(self.tenant, self.agent, self.name)


@dataclass(frozen=True, slots=True)
class OpenContext:
    """A context as a syscall first found it."""

    messages: tuple[Message, ...]
    version: int
    rewrites: int  # changes that were not at its end: what `replace_first` compares
    applied: bool  # the syscall has made its change already, before its worker died


@dataclass(frozen=True, slots=True)
class Written:
    """A context after a change."""

    version: int
    message_count: int


class Contexts(Steps):
    """Reads and changes contexts. May be called again after RedisUnavailable."""

    async def open(self, owner: ContextOwner, syscall_id: str) -> OpenContext:
        """Return the messages that were there when this syscall first looked."""
        answer = await self._step("context_open", owner, syscall_id, [])
        version, rewrites, applied, *messages = answer
        return OpenContext(
            tuple(_decoder.decode(message) for message in messages),
            version,
            rewrites,
            bool(applied),
        )

    async def peek(self, owner: ContextOwner) -> tuple[Message, ...]:
        """Return the messages as they are now."""
        key = self.keys.own(f"context:{owner.key}:messages")
        messages = await self._execute("LRANGE", key, 0, -1)
        return tuple(_decoder.decode(message) for message in messages)

    async def change(
        self,
        owner: ContextOwner,
        syscall_id: str,
        how: Change,
        messages: Sequence[Message] = (),
        *,
        attempt: int | None = None,
    ) -> Written:
        """Set, add to or clear a context; with `attempt`, only while its lease stands.

        Raises:
            Cancelled: that attempt does not count any more; nothing changed.
            InvalidSyscall: it would hold more than MAX_MESSAGES or MAX_BYTES; nothing changed.
            QuotaExceeded: its agent has no room for it; nothing changed.
        """
        change = _change_row(owner, how, attempt)
        return await self._write(owner, syscall_id, change, messages)

    async def replace_first(
        self,
        owner: ContextOwner,
        syscall_id: str,
        *,
        drop: int,
        seen: OpenContext,
        messages: Sequence[Message],
        attempt: int | None = None,
    ) -> Written:
        """Put `messages` in the place of the first `drop` ones of what was seen.

        Raises:
            Cancelled: `attempt` does not count any more; nothing changed.
            ContextChanged: somebody has rewritten it since; nothing changed.
        """
        change = _change_row(owner, "replace", attempt, drop=drop, rewrites=seen.rewrites)
        return await self._write(owner, syscall_id, change, messages)

    async def _write(
        self,
        owner: ContextOwner,
        syscall_id: str,
        change: ContextChangeRow,
        messages: Sequence[Message],
    ) -> Written:
        encoded = [_encoder.encode(message) for message in messages]
        arguments: list[Argument] = [*change, len(encoded), *encoded]
        match await self._step("context_write", owner, syscall_id, arguments):
            case [b"ok", int(version), int(count)]:
                return Written(version, count)
            case [b"full", count, size]:
                raise InvalidSyscall(
                    f"the context {owner.name!r} would hold {count} messages of {size} bytes; "
                    f"its limits are {MAX_MESSAGES} and {MAX_BYTES}",
                    field="body.messages",
                    remedy="summarise or clear it first (context.summarise, context.clear)",
                )
            case [b"limit", limit, subject, used, most]:
                who = Subject.parse(subject.decode())
                raise contexts_refused(who, limit.decode(), used, most)
            case [b"lost"]:
                raise Cancelled("this attempt does not count any more: its lease is gone")
            case _:
                raise ContextChanged(
                    f"the context {owner.name!r} was rewritten by another syscall meanwhile",
                    field="body.context",
                    remedy="read it and try again",
                )

    async def _step(
        self, step: str, owner: ContextOwner, syscall_id: str, arguments: Sequence[Argument]
    ) -> Answer:
        row = ContextRow(owner.key, syscall_id, OP_TTL_S, CONTEXT_TTL_S)
        return await self._call(step, "llm", [*row, *arguments])


def _change_row(
    owner: ContextOwner, how: str, attempt: int | None, *, drop: int = 0, rewrites: int = 0
) -> ContextChangeRow:
    return ContextChangeRow(
        how=how,
        drop=drop,
        rewrites=rewrites,
        attempt="" if attempt is None else str(attempt),
        max_messages=MAX_MESSAGES,
        max_bytes=MAX_BYTES,
        tenant=owner.tenant,
        agent=owner.agent,
        name=owner.name,
    )
