"""One syscall that this client waits for, and all it has heard of it. For one event loop."""

from __future__ import annotations

import asyncio

from aios_broker.contract.names import Module
from aios_broker.contract.reply import ChatResult, Chunk, EchoResult, Reply
from aios_broker.contract.syscall import Syscall


class Pending:
    """Grows chunk by chunk, and ends with exactly one reply. Errors are replies, too."""

    def __init__(self, syscall_id: str, syscall: Syscall | None, now_s: float) -> None:
        self.id = syscall_id
        self.syscall = syscall  # None: attached to by id, somebody else submitted it
        self.module: Module | None = syscall.module if syscall else None
        self.submitted_at_s = now_s
        self.heard_at_s = now_s  # when the kernel was last known to have it
        self.submissions = 0
        self.was_accepted = False
        self.waiters = 0
        self.chunks: list[Chunk] = []
        self.reply: Reply | None = None
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = loop.create_future()  # or it has ended without
        self.ended: asyncio.Future[None] = loop.create_future()
        self._news: asyncio.Future[None] | None = None
        self._characters: int | None = None if syscall is None else 0  # of the answer, so far

    @property
    def is_known(self) -> bool:
        """Whether the kernel has acknowledged it, and it has not ended for all we know."""
        return self.accepted.done() and self.reply is None

    def accept(self, now_s: float) -> None:
        """The kernel has it."""
        self.heard_at_s = now_s
        self.was_accepted = True
        if not self.accepted.done():
            self.accepted.set_result(None)

    def withdraw(self) -> None:
        """The kernel has forgotten it: it is on its way there once more."""
        self.accepted = asyncio.get_running_loop().create_future()

    def hear(self, chunk: Chunk, now_s: float) -> None:
        """Keep what is new of a chunk.

        After a crash the same characters come again. After a hole (a message lost with a
        connection) nothing is kept: the reply holds it all.
        """
        self.heard_at_s = now_s
        have = chunk.offset if self._characters is None else self._characters
        if chunk.offset <= have < chunk.offset + len(chunk.text):
            self._keep(have, chunk.text[have - chunk.offset :])

    def end(self, reply: Reply) -> None:
        """Take the one reply; whatever of its text was not streamed becomes the last chunk."""
        if self.reply is not None:
            return
        if self._streams and isinstance(reply.result, ChatResult | EchoResult):
            have = self._characters or 0
            if have < len(reply.result.text):
                self._keep(have, reply.result.text[have:])
        self.reply = reply
        for future in (self.accepted, self.ended):
            if not future.done():
                future.set_result(None)
        self._announce()

    def news(self) -> asyncio.Future[None]:
        """Return what is done when the next chunk or the reply has come."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    @property
    def _streams(self) -> bool:
        return bool(self.chunks) or bool(getattr(self.syscall and self.syscall.body, "stream", 0))

    def _keep(self, offset: int, text: str) -> None:
        self.chunks.append(Chunk(self.id, offset, text))
        self._characters = offset + len(text)
        self._announce()

    def _announce(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)
