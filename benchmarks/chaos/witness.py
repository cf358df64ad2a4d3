"""A client's way to the kernel that writes down all that passes, and disturbs some of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from aios_broker.client.transport import Attached, CallStatus, Outcome, Transport
from aios_broker.contract.errors import KernelError
from aios_broker.contract.ids import Ids
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import Heard as HeardText
from aios_broker.contract.reply import Reply, decode_wire
from aios_broker.contract.syscall import Syscall
from benchmarks.chaos.history import Heard, Log, Sent, wall_s


@dataclass(frozen=True, slots=True)
class Mischief:
    """Shares of messages that are disturbed."""

    sent_twice: float = 0.0
    lost: float = 0.0  # replies that are popped, and never reach the client


class Witness:
    """A transport around another one."""

    def __init__(self, inner: Transport, log: Log, mischief: Mischief, dice: random.Random) -> None:
        self._inner = inner
        self._log = log
        self._mischief = mischief
        self._dice = dice

    @property
    def result_ttl_s(self) -> float:
        """Of the transport."""
        return self._inner.result_ttl_s

    async def open(self) -> None:
        """Open the transport."""
        await self._inner.open()

    async def submit(self, syscalls: Sequence[Syscall]) -> list[Outcome]:
        """Publish syscalls; some of them twice: of those the second answer counts."""
        ids = tuple(syscall.id for syscall in syscalls)
        self._log.write(Sent(wall_s(), ids))
        refusals = await self._inner.submit(syscalls)
        if self._dice.random() < self._mischief.sent_twice:
            self._log.write(Sent(wall_s(), ids))
            refusals = await self._inner.submit(syscalls)
        return refusals

    def ids(self, owner: Owner) -> Ids:
        """Return what makes the ids of an agent's syscalls."""
        return self._inner.ids(owner)

    async def cancel(
        self, ids: Sequence[str], module: Module, error: KernelError, owner: Owner | None
    ) -> list[bool]:
        """End syscalls."""
        return await self._inner.cancel(ids, module, error, owner)

    async def attach(
        self,
        syscall_id: str,
        module: Module | None,
        owner: Owner | None,
        heard: HeardText | None = None,
    ) -> Attached:
        """Join a syscall; a reply that is found so was heard."""
        attached = await self._inner.attach(syscall_id, module, owner, heard)
        if attached.reply is not None:
            text = attached.reply.decode()
            self._log.write(Heard(wall_s(), syscall_id, text, found=True))
        return attached

    async def status(self, syscall_id: str, owner: Owner | None) -> CallStatus | None:
        """Return where a syscall stands."""
        return await self._inner.status(syscall_id, owner)

    async def messages(self) -> list[bytes]:
        """Return what came, but for the replies that get lost."""
        return [data for data in await self._inner.messages() if self._passes(data)]

    async def aclose(self) -> None:
        """Close the transport."""
        await self._inner.aclose()

    def _passes(self, data: bytes) -> bool:
        try:
            message = decode_wire(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return True  # what cannot be read is the client's to drop
        if not isinstance(message, Reply):
            return True
        dropped = self._dice.random() < self._mischief.lost
        self._log.write(Heard(wall_s(), message.id, data.decode(), dropped=dropped))
        return not dropped
