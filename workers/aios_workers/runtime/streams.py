"""Streamed text on its way to clients: batched over time and over all generations."""

from __future__ import annotations

import asyncio
import logging

from aios_broker.contract.errors import KernelError
from aios_broker.contract.reply import Chunk, encode
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import Lease
from aios_workers.runtime.executor import BackgroundTasks

logger = logging.getLogger(__name__)

INTERVAL_S = 0.05  # at most 20 chunks a second per syscall: faster than anybody reads
RETRY_S = 0.5


class TextStream:
    """The stream of one syscall."""

    def __init__(self, sender: StreamSender, lease: Lease, syscall_id: str, offset: int) -> None:
        self.lease = lease
        self.delivered = offset  # characters of the answer that reached the client's list
        self.waiting = ""  # what comes behind them
        self.written = 0  # characters that came here; those sent by earlier slices come again
        self._sent_before = offset
        self._sender = sender
        self._syscall_id = syscall_id

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

    def chunk(self, text: str) -> bytes:
        """Return the next text as it is sent."""
        return encode(Chunk(self._syscall_id, self.delivered, text))

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

    def open(self, lease: Lease, syscall_id: str, offset: int = 0) -> TextStream:
        """Return the stream of one syscall, of which `offset` characters were sent before."""
        return TextStream(self, lease, syscall_id, offset)

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
