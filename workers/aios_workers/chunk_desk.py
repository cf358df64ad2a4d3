"""Streamed text on its way to clients: batched over time and over all generations."""

from __future__ import annotations

import asyncio
import logging

from aios_broker.contract.errors import KernelError
from aios_broker.contract.reply import Chunk, encode
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import Lease

logger = logging.getLogger(__name__)

INTERVAL_S = 0.05  # at most 20 chunks a second per syscall: faster than anybody reads
RETRY_S = 0.5


class Strand:
    """The stream of one syscall."""

    def __init__(self, desk: ChunkDesk, lease: Lease, syscall_id: str, offset: int) -> None:
        self.lease = lease
        self.delivered = offset  # characters of the answer that reached the client's list
        self._desk = desk
        self._syscall_id = syscall_id
        self._pending: list[str] = []

    def write(self, text: str) -> None:
        """Append text; it leaves with the next batch."""
        if text:
            self._pending.append(text)
            self._desk.note(self)

    async def flush(self) -> None:
        """Send what is pending now. What fails is left out: the reply has the whole text."""
        if self._pending:
            await self._desk.flush()

    def take(self) -> str:
        """Return the pending text, in one piece, and forget it."""
        text = "".join(self._pending)
        self._pending.clear()
        return text

    def put_back(self, text: str) -> None:
        """Take text back that could not be sent."""
        self._pending.insert(0, text)

    def chunk(self, text: str) -> bytes:
        """Return the wire form of the next piece."""
        return encode(Chunk(self._syscall_id, self.delivered, text))


class ChunkDesk:
    """Sends the chunks of all generations of this worker in one call per interval."""

    def __init__(self, queue: ModuleQueue) -> None:
        self._queue = queue
        self._dirty: dict[Strand, None] = {}  # in order
        self._sending = asyncio.Lock()
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._flushes: set[asyncio.Task[None]] = set()

    def open(self, lease: Lease, syscall_id: str, offset: int = 0) -> Strand:
        """Return the stream of one syscall, of which `offset` characters were sent before."""
        return Strand(self, lease, syscall_id, offset)

    def note(self, strand: Strand) -> None:
        """Remember that a strand has text to send."""
        self._dirty[strand] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self._next_s, loop.time()), self._on_time)

    def _on_time(self) -> None:
        task = asyncio.get_running_loop().create_task(self.flush())
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)

    async def flush(self) -> None:
        """Send all that is pending, in order. Text that fails is tried again a little later."""
        async with self._sending:  # one call at a time, or chunks could overtake each other
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._next_s = asyncio.get_running_loop().time() + INTERVAL_S
            batch = [(strand, strand.take()) for strand in self._dirty]
            self._dirty.clear()
            batch = [(strand, text) for strand, text in batch if text]
            if batch:
                await self._send(batch)

    async def _send(self, batch: list[tuple[Strand, str]]) -> None:
        try:
            await self._queue.emit([(strand.lease, strand.chunk(text)) for strand, text in batch])
        except KernelError as error:
            logger.warning("chunks of %d streams are delayed: %s", len(batch), error)
            self._next_s += RETRY_S
            for strand, text in batch:
                strand.put_back(text)
                self.note(strand)
        else:
            for strand, text in batch:
                strand.delivered += len(text)
