"""The kernel, as a running generation sees it.

Whether its slice ends here, what was kept of it when it was suspended, and its text on the way to
clients. The ends of all slices that fall into the same tick are one call; so are the chunks of all
generations within an interval.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aios_broker.contract.errors import KernelError
from aios_broker.contract.reply import Chunk, Part
from aios_broker.queues.contexts import Contexts
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import Lease, PolicyRow, SliceTerms, SliceUse, SliceVerdict
from aios_broker.retry import patiently
from aios_workers.runtime.executor import BackgroundTasks
from aios_workers.runtime.runs import Run

logger = logging.getLogger(__name__)

INTERVAL_S = 0.05  # at most 20 chunks a second per syscall: faster than anybody reads
RETRY_S = 0.5

LoadSpilled = Callable[[str], Awaitable[bytes | None]]
_Asked = tuple[Run, bytes | None, SliceTerms, asyncio.Future[SliceVerdict]]


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
    may_leave: bool = True  # False: a stock RQ worker runs the job, it cannot go on elsewhere

    async def snapshot(self, job_id: str) -> bytes | None:
        """Return the latest snapshot of a suspended generation; waits while a server is away.

        Redis has it, or what old ones are spilled to.
        """
        data = await patiently(lambda: self.queue.snapshot(job_id))
        if data is None:
            data = await patiently(lambda: self.load_spilled(job_id))
        return data


class SliceEnds:
    """Asks the queue whether somebody more deserving waits. Never stops a generation itself."""

    def __init__(self, queue: ModuleQueue, worker: str, claim_request: ClaimRequest) -> None:
        self._queue = queue
        self._worker = worker
        self._claim_request = claim_request
        self._asked: list[_Asked] = []
        self._calls = BackgroundTasks()

    async def end(self, run: Run, checkpoint: bytes | None, terms: SliceTerms) -> SliceVerdict:
        """Charge the slice, keep the checkpoint and return the verdict, by the terms of the core.

        While Redis is away the verdict is `go`, and the next end charges for both slices.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SliceVerdict] = loop.create_future()
        if not self._asked:
            loop.call_soon(lambda: self._calls.start(self._ask()))
        self._asked.append((run, checkpoint, terms, answer))
        return await answer

    async def _ask(self) -> None:
        asked, self._asked = self._asked, []
        uses = [_used(run, checkpoint, terms) for run, checkpoint, terms, _ in asked]
        try:
            verdicts = await self._queue.slice_end(self._worker, uses, self._claim_request)
        except KernelError as error:
            logger.warning(
                "the slices of %d generations could not be charged: %s", len(asked), error
            )
            verdicts = ["go"] * len(asked)
        for (*_, answer), verdict in zip(asked, verdicts, strict=True):
            if not answer.done():
                answer.set_result(verdict)


def _used(run: Run, checkpoint: bytes | None, terms: SliceTerms) -> SliceUse:
    use = run.use()
    return SliceUse(
        run.lease,
        use.ran_s,
        use.tokens,
        checkpoint,
        use.prompt_tokens,
        charge=use.charge,
        terms=terms,
    )


class TextStream:
    """The stream of one syscall: its answer, or the reasoning before it."""

    def __init__(
        self,
        sender: StreamSender,
        lease: Lease,
        syscall_id: str,
        offset: int,
        part: Part = "answer",
    ) -> None:
        self.lease = lease
        self.delivered = offset  # characters of the answer that reached the client's list
        self.waiting = ""  # what comes behind them
        self.written = 0  # characters that came here; those sent by earlier slices come again
        self._sent_before = offset
        self._sender = sender
        self._syscall_id = syscall_id
        self._part: Part = part

    def write(self, text: str) -> None:
        """Append text; what was not sent before leaves with the next batch."""
        new = text[max(0, self._sent_before - self.written) :]
        self.written += len(text)
        if new:
            self.waiting += new
            self._sender.note(self)

    async def flush(self) -> None:
        """Return when all text has left, or failed once: the reply has the whole text anyway."""
        if self.waiting:
            await self._sender.flush()

    def chunk(self, text: str) -> Chunk:
        """Return the next text as it is sent."""
        return Chunk(self._syscall_id, self.delivered, text, self._part)

    def delivered_more(self, size: int) -> None:
        """Note that the next characters have reached the client's list."""
        self.delivered += size
        self.waiting = self.waiting[size:]


class StreamSender:
    """Sends the chunks of all generations of this worker in one call per interval."""

    def __init__(self, queue: ModuleQueue) -> None:
        self._queue = queue
        self._dirty: dict[TextStream, None] = {}  # in order
        self._sending = asyncio.Lock()
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._flushes = BackgroundTasks()

    def open(
        self, lease: Lease, syscall_id: str, offset: int = 0, part: Part = "answer"
    ) -> TextStream:
        """Return the stream of one syscall, of which `offset` characters were sent before."""
        return TextStream(self, lease, syscall_id, offset, part)

    def note(self, stream: TextStream) -> None:
        """Remember that a stream has text to send."""
        self._dirty[stream] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(
                max(self._next_s, loop.time()), lambda: self._flushes.start(self._flush())
            )

    async def flush(self) -> None:
        """Send all that is pending, in order. Text that fails is tried again a little later."""
        await asyncio.shield(self._flushes.start(self._flush()))  # the text of others, too

    async def _flush(self) -> None:
        async with self._sending:  # one call at a time, or chunks could overtake each other
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._next_s = asyncio.get_running_loop().time() + INTERVAL_S
            batch = [(stream, stream.waiting) for stream in self._dirty if stream.waiting]
            self._dirty.clear()
            if batch:
                await self._send(batch)

    async def _send(self, batch: list[tuple[TextStream, str]]) -> None:
        try:
            await self._queue.emit([(stream.lease, stream.chunk(text)) for stream, text in batch])
        except KernelError as error:
            logger.warning("chunks of %d streams are delayed: %s", len(batch), error)
            self._next_s += RETRY_S
            for stream, _ in batch:
                self.note(stream)
        else:
            for stream, text in batch:
                stream.delivered_more(len(text))
