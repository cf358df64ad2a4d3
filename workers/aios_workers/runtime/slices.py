"""What a running generation asks of the kernel.

Whether its slice ends here and by which policy, and what was kept of it when it was suspended.
The ends of all slices that fall into the same tick are one call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import hiredis
import msgspec

from aios_broker.contract.errors import KernelError
from aios_broker.contract.names import Module
from aios_broker.queues.contexts import Contexts
from aios_broker.queues.control import Control
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import PolicyRow, SliceUse, SliceVerdict
from aios_broker.retry import patiently
from aios_workers.runtime.executor import BackgroundTasks, Run
from aios_workers.runtime.streams import StreamSender

logger = logging.getLogger(__name__)

FRESH_S = 1.0

LoadSpilled = Callable[[str], Awaitable[bytes | None]]
_Asked = tuple[Run, bytes | None, asyncio.Future[SliceVerdict]]


async def nothing_spilled(job_id: str) -> bytes | None:
    """Stand in where no ledger is: no snapshot was ever spilled."""
    return None


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel, as a handler sees it."""

    queue: ModuleQueue
    policy: Callable[[], PolicyRow]  # the one in force
    slices: SliceEnds
    streams: StreamSender
    contexts: Contexts
    load_spilled: LoadSpilled = nothing_spilled

    async def snapshot(self, job_id: str) -> bytes | None:
        """Return the latest snapshot of a suspended generation; waits while a server is away.

        Redis has it, or what old ones are spilled to.
        """
        data = await patiently(lambda: self.queue.snapshot(job_id))
        if data is None:
            data = await patiently(lambda: self.load_spilled(job_id))
        return data


class PolicyWatch:
    """Keeps the policy of one module at hand. While it cannot be read the last one holds."""

    def __init__(self, control: Control, module: Module) -> None:
        self._control = control
        self._module: Module = module
        self._row = PolicyRow()
        self._fresh_until_s = 0.0
        self._reading: asyncio.Task[None] | None = None

    def current(self) -> PolicyRow:
        """Return the policy, at most about a second old while Redis answers. Costs nothing."""
        loop = asyncio.get_running_loop()
        stale = loop.time() >= self._fresh_until_s
        if stale and (self._reading is None or self._reading.done()):
            self._reading = loop.create_task(self._refresh())
        return self._row

    async def _refresh(self) -> None:
        self._fresh_until_s = asyncio.get_running_loop().time() + FRESH_S
        try:
            self._row = await self._control.policy(self._module)
        except (KernelError, hiredis.ReplyError, msgspec.ValidationError) as error:
            logger.warning(
                "the policy of %s cannot be read, %s goes on: %s",
                self._module,
                self._row.name,
                error,
            )


class SliceEnds:
    """Asks the queue whether somebody more deserving waits. Never stops a generation itself."""

    def __init__(self, queue: ModuleQueue, worker: str, claim_request: ClaimRequest) -> None:
        self._queue = queue
        self._worker = worker
        self._claim_request = claim_request
        self._asked: list[_Asked] = []
        self._calls = BackgroundTasks()

    async def end(self, run: Run, checkpoint: bytes | None) -> SliceVerdict:
        """Charge the slice, keep the checkpoint and return the verdict.

        While Redis is away the verdict is `go`, and the next end charges for both slices.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SliceVerdict] = loop.create_future()
        if not self._asked:
            loop.call_soon(lambda: self._calls.start(self._ask()))
        self._asked.append((run, checkpoint, answer))
        return await answer

    async def _ask(self) -> None:
        asked, self._asked = self._asked, []
        uses = [_used(run, checkpoint) for run, checkpoint, _ in asked]
        try:
            verdicts = await self._queue.slice_end(self._worker, uses, self._claim_request)
        except KernelError as error:
            logger.warning(
                "the slices of %d generations could not be charged: %s", len(asked), error
            )
            verdicts = ["go"] * len(asked)
        for (_, _, answer), verdict in zip(asked, verdicts, strict=True):
            if not answer.done():
                answer.set_result(verdict)


def _used(run: Run, checkpoint: bytes | None) -> SliceUse:
    use = run.use()
    return SliceUse(run.lease, use.ran_s, use.tokens, checkpoint, use.prompt_tokens)
