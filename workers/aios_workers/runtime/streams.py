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
        self._leaving = ""  # under way: neither pending nor delivered

    def write(self, text: str) -> None:
        """Append text; it leaves with the next batch."""
        if text:
            self._pending.append(text)
            self._desk.note(self)

    async def flush(self) -> None:
        """Return when all text has left, or failed once: the reply has the whole text anyway."""
        if self._pending or self._leaving:
            await self._desk.flush()

    def depart(self) -> bytes | None:
        """Return the pending text as one chunk, or None where there is none."""
        self._leaving = "".join(self._pending)
        self._pending.clear()
        if not self._leaving:
            return None
        return encode(Chunk(self._syscall_id, self.delivered, self._leaving))

    def arrive(self) -> None:
        """Note that the chunk has reached the client's list."""
        self.delivered += len(self._leaving)
        self._leaving = ""

    def come_back(self) -> None:
        """Note that the chunk could not be sent: it leaves again, with what comes behind it."""
        self._pending.insert(0, self._leaving)
        self._leaving = ""
        self._desk.note(self)


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
            self._timer = loop.call_at(max(self._next_s, loop.time()), self._start)

    async def flush(self) -> None:
        """Send all that is pending, in order. Text that fails is tried again a little later."""
        await asyncio.shield(self._start())  # it carries the text of others, too

    def _start(self) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._flush())
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)
        return task

    async def _flush(self) -> None:
        async with self._sending:  # one call at a time, or chunks could overtake each other
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._next_s = asyncio.get_running_loop().time() + INTERVAL_S
            strands, self._dirty = self._dirty, {}
            batch = [(strand, chunk) for strand in strands if (chunk := strand.depart())]
            if batch:
                await self._send(batch)

    async def _send(self, batch: list[tuple[Strand, bytes]]) -> None:
        try:
            await self._queue.emit([(strand.lease, chunk) for strand, chunk in batch])
        except KernelError as error:
            logger.warning("chunks of %d streams are delayed: %s", len(batch), error)
            self._next_s += RETRY_S
            for strand, _ in batch:
                strand.come_back()
        else:
            for strand, _ in batch:
                strand.arrive()
