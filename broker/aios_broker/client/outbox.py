"""What was submitted in this loop tick, and what is on its way to the kernel."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Literal

import msgspec

from aios_broker.client.pending import ON_ITS_WAY, Pending
from aios_broker.client.transport import Attached, Transport
from aios_broker.contract.errors import Cancelled, KernelError
from aios_broker.contract.syscall import Syscall
from aios_broker.retry import now_s, patiently

logger = logging.getLogger(__name__)

# Of one submit: 4 ms of Redis' own thread. More at once cost more each: what a step has written
# no longer fits the processor's cache.
BATCH = 200


class Outbox:
    """What was submitted in this loop tick, and those on their way to the kernel."""

    def __init__(
        self,
        transport: Transport,
        patience_s: float,
        spawn: Callable[[Coroutine[object, object, object]], None],
        end: Callable[[Pending, KernelError, Literal["refuse", "lose"]], None],
        learn: Callable[[Pending, Attached], None],
    ) -> None:
        self._transport = transport
        self._patience_s = patience_s
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
            of_module = [each for each in waiting if each.module == module]
            for first in range(0, len(of_module), BATCH):
                self._spawn(self._publish(of_module[first : first + BATCH]))

    async def _publish(self, batch: Sequence[Pending]) -> None:
        """Submit a batch: each of its calls stands or falls for itself."""
        try:
            await patiently(lambda: self._send(batch), self._patience_s)
        except KernelError as error:
            for pending in batch:
                if pending.is_on_its_way:
                    self._end(pending, error, "lose")

    async def _send(self, batch: Sequence[Pending]) -> None:
        left = [pending for pending in batch if pending.state in ON_ITS_WAY]
        if not left:
            return
        at_s = now_s()
        for pending in left:
            pending.send()
        outcomes = await self._transport.submit([_as_of(pending, at_s) for pending in left])
        at_s = now_s()
        for pending, outcome in zip(left, outcomes, strict=True):
            is_on_its_way = pending.state in ON_ITS_WAY
            if isinstance(outcome, KernelError):
                if is_on_its_way:
                    self._end(pending, outcome, "refuse")
                continue
            pending.submissions += 1
            if is_on_its_way or pending.state == "accepted":
                pending.accept(at_s)
            elif pending.state == "lost":  # given up meanwhile: whoever waited heard that it ended
                self._spawn(self._take_back(pending))
            if outcome is not None and outcome.reply is not None:  # it has ended
                self._learn(pending, outcome)

    async def _take_back(self, pending: Pending) -> None:
        assert pending.module is not None  # it was submitted
        try:
            reason = Cancelled("cancelled before the kernel acknowledged it")
            await self._transport.cancel([pending.id], pending.module, reason, pending.owner)
        except KernelError as error:
            logger.warning("syscall %s may go on: %s", pending.id, error, extra=pending.names)


def _as_of(pending: Pending, now_s: float) -> Syscall:
    """Return the syscall with what is left of its time: a deadline counts from submission."""
    syscall = pending.syscall
    assert syscall is not None  # what is attached to by id is never submitted
    waited_s = now_s - pending.submitted_at_s
    if waited_s < 1.0:
        return syscall
    return msgspec.structs.replace(syscall, deadline_s=max(syscall.deadline_s - waited_s, 0.001))
