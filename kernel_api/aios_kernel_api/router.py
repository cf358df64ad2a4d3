"""What comes for the clients of this process, passed on as it is to whom it is for.

A client with a session has a mailbox here. Its syscalls are submitted in the name of this process,
on whose reply list their replies and chunks come; the router looks at their ids and nothing else.
A mailbox that is not emptied, or that may have missed something, is closed: its client begins a new
session and asks for what it waits for. Those of one tenant are bounded, too: the fullest goes.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from weakref import WeakSet

import msgspec
from hiredis import ReplyError
from msgspec import Struct

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.contract.errors import Unavailable
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import decode_reply, encode
from aios_broker.retry import Backoff
from aios_kernel_api.problems import is_hidden, told_reply
from aios_kernel_api.room import Room

logger = logging.getLogger(__name__)

MOST_WAITING_BYTES = 32 * 1024 * 1024  # of messages for a client that does not read them
MOST_TOGETHER_BYTES = 256 * 1024 * 1024  # of all clients of this process; see `Room`


class _Failure(Struct):
    code: str


class _Head(Struct):
    """What a message is of."""

    kind: str
    id: str
    error: _Failure | None = None


_read_head = msgspec.json.Decoder(_Head).decode


def told_message(message: bytes, head: _Head | None = None) -> bytes:
    """Return a reply or a chunk as a client may hear it: it names no server of the kernel's."""
    head = head or _read_head(message)
    if head.error is None or not is_hidden(head.error.code):
        return message
    return encode(told_reply(decode_reply(message)))


class Mailbox:
    """What has come for one client and was not sent yet."""

    def __init__(self, owner: Owner, room: Room) -> None:
        self.id = uuid.uuid4().hex
        self.owner = owner
        self.is_closed = False
        self.ids: set[str] = set()  # of syscalls whose messages come here
        self.size_bytes = 0  # of what waits
        self._room = room
        self._waiting: deque[bytes] = deque()
        self._news: asyncio.Future[None] | None = None

    def put(self, message: bytes) -> None:
        """Add a message to a box that is open."""
        self._waiting.append(message)
        self._weigh(len(message))
        self._wake()

    def take(self) -> Sequence[bytes]:
        """Return what is there."""
        taken, self._waiting = self._waiting, deque()
        self._weigh(-self.size_bytes)
        return taken

    def news(self) -> asyncio.Future[None]:
        """Return what is done when something has come, or the box is closed."""
        if self._waiting or self.is_closed:
            return _done()
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    def close(self) -> None:
        """Take nothing more; what waits is for nobody: all of it is asked for anew."""
        self.is_closed = True
        self._waiting.clear()
        self._weigh(-self.size_bytes)
        self._wake()

    def _weigh(self, more_bytes: int) -> None:
        self.size_bytes += more_bytes
        self._room.add(self.owner.tenant, more_bytes)

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            _set(news)


class Router:
    """All mailboxes of this process, and which syscalls are whose."""

    def __init__(self, transport: RedisTransport, stopping: asyncio.Event) -> None:
        self.transport = transport
        self._stopping = stopping
        self._awaited: WeakSet[asyncio.Future[None]] = WeakSet()  # by streams: woken at a stop
        self._room = Room(MOST_TOGETHER_BYTES)
        self._boxes: dict[str, Mailbox] = {}
        self._readers: dict[str, list[Mailbox]] = {}  # by id of a syscall

    @property
    def sessions(self) -> int:
        """How many clients have a mailbox."""
        return len(self._boxes)

    @property
    def waiting_bytes(self) -> int:
        """What lies in all mailboxes; may be asked from another thread."""
        return self._room.taken_bytes

    @property
    def is_stopping(self) -> bool:
        """Whether the process is told to stop: what can go on elsewhere ends."""
        return self._stopping.is_set()

    async def hears(self, news: asyncio.Future[None], idle_s: float) -> bool:
        """Wait for news or the stop of this process; return False where neither came in time."""
        if self.is_stopping:
            return True
        self._awaited.add(news)
        done, _ = await asyncio.wait((news,), timeout=idle_s)
        return bool(done)

    def begin(self, owner: Owner) -> Mailbox:
        """Return a new mailbox."""
        box = Mailbox(owner, self._room)
        self._boxes[box.id] = box
        return box

    def end(self, box: Mailbox) -> None:
        """Take a mailbox away."""
        box.close()
        self._boxes.pop(box.id, None)
        for syscall_id in tuple(box.ids):
            self.leave(box, syscall_id)

    def find(self, session: str, owner: Owner) -> Mailbox | None:
        """Return an agent's mailbox; None: it has ended, or is another process's."""
        box = self._boxes.get(session)
        return box if box is not None and box.owner == owner and not box.is_closed else None

    def join(self, box: Mailbox | None, ids: Iterable[str]) -> None:
        """Let what comes of syscalls come to a mailbox."""
        if box is None or box.is_closed:
            return
        for syscall_id in ids:
            if syscall_id not in box.ids:
                box.ids.add(syscall_id)
                self._readers.setdefault(syscall_id, []).append(box)

    def leave(self, box: Mailbox | None, syscall_id: str) -> None:
        """Let nothing more of a syscall come to a mailbox."""
        if box is None or syscall_id not in box.ids:
            return
        box.ids.discard(syscall_id)
        readers = self._readers[syscall_id]
        readers.remove(box)
        if not readers:
            del self._readers[syscall_id]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Router]:
        """Pass on what comes, for the length of a block."""
        tasks = [asyncio.create_task(each) for each in (self._hear(), self._wake_at_stop())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._close_all()
            await self.transport.aclose()

    async def _wake_at_stop(self) -> None:
        await self._stopping.wait()
        for news in tuple(self._awaited):
            _set(news)

    async def _hear(self) -> None:
        backoff = Backoff()
        while True:
            try:
                for message in await self.transport.messages():
                    self._pass_on(message)
            except (Unavailable, ReplyError) as error:
                if backoff.calm:
                    logger.warning("sessions end, for messages may get lost: %s", error)
                self._close_all()
                await backoff.wait()
            else:
                backoff.reset()

    def _pass_on(self, message: bytes) -> None:
        try:
            head = _read_head(message)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("sessions end, for a message cannot be read: %s", error)
            self._close_all()
            return
        readers = tuple(self._readers.get(head.id, ()))
        if readers:
            message = told_message(message, head)
        for box in readers:
            if box.is_closed:
                continue
            box.put(message)
            if head.kind == "reply":
                self.leave(box, head.id)
            if box.size_bytes > MOST_WAITING_BYTES:
                self._overflow(box)
            elif not self._room.has(box.owner.tenant, 0):
                self._overflow(self._fullest_of(box.owner.tenant))

    def _fullest_of(self, tenant: str) -> Mailbox:
        boxes = (each for each in self._boxes.values() if each.owner.tenant == tenant)
        return max(boxes, key=lambda each: each.size_bytes)

    def _overflow(self, box: Mailbox) -> None:
        logger.warning("a client of %s does not read what comes for it", box.owner.agent)
        self.end(box)

    def _close_all(self) -> None:
        for box in tuple(self._boxes.values()):
            self.end(box)


def _done() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _set(future)
    return future


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
