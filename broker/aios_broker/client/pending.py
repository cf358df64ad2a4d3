"""One syscall that this client waits for, and all it has heard of it. For one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from aios_broker.client import forks
from aios_broker.client.states import State, after
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.names import Module
from aios_broker.contract.reply import ChatResult, Chunk, EchoResult, Reply
from aios_broker.contract.syscall import Syscall

_ON_ITS_WAY: frozenset[State] = frozenset(("built", "sent", "asked", "forgotten"))


class Pending:
    """Grows chunk by chunk, and ends with exactly one reply. Errors are replies, too."""

    __slots__ = (
        "_accepted",
        "_characters",
        "_ended",
        "_followers",
        "_fork",
        "_listeners",
        "_news",
        "asks",
        "chunks",
        "heard_at_s",
        "id",
        "module",
        "reply",
        "state",
        "submissions",
        "submitted_at_s",
        "syscall",
        "waiters",
        "was_accepted",
    )

    def __init__(self, syscall_id: str, syscall: Syscall | None, now_s: float) -> None:
        self.id = syscall_id
        self.syscall = syscall  # None: attached to by id, somebody else submitted it
        self.module: Module | None = syscall.module if syscall else None
        self.submitted_at_s = now_s
        self.heard_at_s = now_s  # when the kernel was last known to have it
        self.submissions = 0
        self.asks = 0  # how often in a row the kernel was asked for it, and had no news
        self.was_accepted = False
        self.waiters = 0
        self.chunks: tuple[Chunk, ...] | list[Chunk] = ()  # a list from the first one on
        self.reply: Reply | None = None
        self.state: State = "built" if syscall else "asked"
        self._fork = forks.count()
        # Most syscalls have one who waits for their end, and nobody who waits for anything else:
        # futures are made when somebody asks for them.
        self._accepted: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()  # one, as a rule
        self._news: asyncio.Future[None] | None = None
        self._followers: tuple[Pending, ...] = ()
        self._characters: int | None = None if syscall is None else 0  # of the answer, so far

    @property
    def accepted(self) -> asyncio.Future[None]:
        """Done when the kernel has it, or it has ended without."""
        if self._accepted is None:
            self._require_home()
            self._accepted = _future(done=not self.is_on_its_way)
        return self._accepted

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when the reply is here."""
        if self._ended is None:
            self._require_home()
            self._ended = _future(done=self.reply is not None)
        return self._ended

    @property
    def is_on_its_way(self) -> bool:
        """Whether the kernel has not acknowledged it yet, and it has not ended."""
        return self.state in _ON_ITS_WAY

    @property
    def is_known(self) -> bool:
        """Whether the kernel has acknowledged it, and it has not ended for all we know."""
        return self.state == "accepted"

    def send(self) -> None:
        """It leaves for the kernel, or leaves again."""
        self.state = after(self.state, "send")

    def accept(self, now_s: float) -> None:
        """The kernel has it."""
        self.state = after(self.state, "acknowledge")
        self.heard_at_s = now_s
        self.was_accepted = True
        self._be_accepted()

    def withdraw(self) -> None:
        """The kernel has forgotten it: it is on its way there once more."""
        self.state = after(self.state, "forget")
        self._accepted = None
        self.asks = 0

    def when_ended(self, listener: Callable[[], None]) -> None:
        """Call `listener` as soon as the reply is here, within the step that brings it."""
        if self.reply is None:
            self._require_home()
            self._listeners += (listener,)
        else:
            listener()

    def unhook(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        self._listeners = tuple(each for each in self._listeners if each is not listener)

    def lead(self, follower: Pending) -> None:
        """Let another of the same id hear what this one hears; it counts as one who waits."""
        for chunk in follower.chunks:
            self.hear(chunk, follower.heard_at_s)
        self._followers += (follower,)
        self.waiters += 1

    def hear(self, chunk: Chunk, now_s: float) -> None:
        """Keep what is new of a chunk.

        After a crash the same characters come again. After a hole (a message lost with a
        connection) nothing is kept: the reply holds it all.
        """
        self.heard_at_s = now_s
        self.asks = 0
        have = chunk.offset if self._characters is None else self._characters
        if chunk.offset <= have < chunk.offset + len(chunk.text):
            self._keep(have, chunk.text[have - chunk.offset :])
        for follower in self._followers:
            follower.hear(chunk, now_s)

    def end(self, reply: Reply, cause: Literal["reply", "refuse", "lose"] = "reply") -> None:
        """Take the one reply; whatever of its text was not streamed becomes the last chunk.

        `cause`: the kernel's own reply, its refusal, or the client's giving up.
        """
        self.state = after(self.state, cause)
        self.was_accepted = self.was_accepted or cause == "reply"
        if self._streams and isinstance(reply.result, ChatResult | EchoResult):
            have = self._characters or 0
            if have < len(reply.result.text):
                self._keep(have, reply.result.text[have:])
        self.reply = reply
        self._be_accepted()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            listener()
        self._announce()
        for follower in self._followers:
            follower.end(reply, "reply" if cause == "reply" else "lose")

    def news(self) -> asyncio.Future[None]:
        """Return what is done when the next chunk or the reply has come."""
        if self._news is None:
            self._require_home()
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    def _require_home(self) -> None:
        if self.reply is None:
            forks.require_same(self._fork)

    @property
    def _streams(self) -> bool:
        if self.chunks:
            return True
        body = None if self.syscall is None else self.syscall.body
        return isinstance(body, LlmChat) and body.stream

    def _be_accepted(self) -> None:
        if self._accepted is not None and not self._accepted.done():
            self._accepted.set_result(None)

    def _keep(self, offset: int, text: str) -> None:
        if isinstance(self.chunks, tuple):
            self.chunks = []
        self.chunks.append(Chunk(self.id, offset, text))
        self._characters = offset + len(text)
        self._announce()

    def _announce(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)


def _future(*, done: bool) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if done:
        future.set_result(None)
    return future
