"""The ends of time slices: one call for all that end in the same tick."""

from __future__ import annotations

import asyncio
import logging

from aios_broker.contract.errors import KernelError
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import SliceUse, SliceVerdict
from aios_workers.runtime.run import Run

logger = logging.getLogger(__name__)

_Asked = tuple[Run, bytes | None, asyncio.Future[SliceVerdict]]


class SliceDesk:
    """Asks the queue whether somebody more deserving waits. Never stops a generation itself."""

    def __init__(self, queue: ModuleQueue, worker: str, claim_request: ClaimRequest) -> None:
        self._queue = queue
        self._worker = worker
        self._appetite = claim_request
        self._asked: list[_Asked] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def end(self, run: Run, checkpoint: bytes | None) -> SliceVerdict:
        """Charge the slice, keep the checkpoint and return the verdict.

        While Redis is away the verdict is `go`, and the next end charges for both slices.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SliceVerdict] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._send)
        self._asked.append((run, checkpoint, answer))
        return await answer

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        call = asyncio.get_running_loop().create_task(self._call(asked))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, asked: list[_Asked]) -> None:
        uses = [_used(run, checkpoint) for run, checkpoint, _ in asked]
        try:
            verdicts = await self._queue.slice_end(self._worker, uses, self._appetite)
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
