"""The syscalls that this client waits for: their states, what was heard of each, the way out.

The states of a submission as its client knows it, and what leads from one to the next:

    built ──send──▶ sent ──acknowledge──▶ accepted ──reply──▶ ended
                     ▲                      │   ▲
                     │                    forget└── acknowledge ── asked (attached to by id)
                     └──send── forgotten ◀──┘

From each state that is not final a submission can also be answered (`reply`: the kernel's own
word, which may overtake its acknowledgement) or given up (`lose`: this client left, or the kernel
stayed away; it may run). `refuse` is the kernel's word that nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from aios_broker.contract.access import TokenIssued
from aios_broker.contract.errors import (
    Cancelled,
    ForkedAgent,
    KernelError,
    UnknownSyscall,
    WaitTimeout,
)
from aios_broker.contract.job import conflict_of, with_token
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import ChatResult, Chunk, Heard, Part, Reply, failure
from aios_broker.contract.syscall import State as SyscallState
from aios_broker.contract.syscall import Syscall
from aios_broker.retry import now_s

logger = logging.getLogger(__name__)

REPLY_GRACE_S = 15.0  # beyond a syscall's deadline: by then the kernel has said that it is over
MOST_AHEAD = 1000  # chunks that wait for what is missing before them
MOST_DOUBLINGS = 16  # of the time between two questions for a silent one

State = Literal["built", "sent", "asked", "accepted", "forgotten", "refused", "lost", "ended"]
Cause = Literal["send", "acknowledge", "forget", "refuse", "lose", "reply"]


class _Transitions(dict[tuple[State, Cause], State]):
    """What leads where; what is missing is a fault of the client's own."""

    def __missing__(self, at: tuple[State, Cause]) -> State:
        raise AssertionError(f"a submission that is {at[0]} cannot {at[1]}")


ARROWS = _Transitions(
    {
        ("built", "send"): "sent",
        ("built", "refuse"): "refused",
        ("built", "lose"): "refused",  # never sent: it cannot run
        ("built", "reply"): "ended",  # another client's, of the same id
        ("sent", "send"): "sent",  # no answer came: once more
        ("sent", "acknowledge"): "accepted",
        ("sent", "refuse"): "refused",
        ("sent", "lose"): "lost",
        ("sent", "reply"): "ended",
        ("asked", "acknowledge"): "accepted",
        ("asked", "refuse"): "refused",  # the kernel knows no such syscall
        ("asked", "lose"): "lost",
        ("asked", "reply"): "ended",
        ("accepted", "acknowledge"): "accepted",  # asked for again: it is still there
        ("accepted", "forget"): "forgotten",
        ("accepted", "lose"): "lost",
        ("accepted", "reply"): "ended",
        ("forgotten", "send"): "sent",
        ("forgotten", "lose"): "lost",
        ("forgotten", "reply"): "ended",
    }
)
FINAL: frozenset[State] = frozenset(("refused", "lost", "ended"))


class _Forks:
    """What tells this process from those that it was forked from.

    What was opened before a `fork()` belongs to the parent: its sockets, its loop, its replies.
    """

    count = 0  # between this process and the one that first imported this

    def add(self) -> None:
        """Count one more: this is the child."""
        self.count += 1


forks = _Forks()
os.register_at_fork(after_in_child=forks.add)


def require_same_process(opened: int) -> None:
    """Do nothing in the process where `forks.count` was `opened`.

    Raises:
        ForkedAgent: this is a child of it.
    """
    if opened != forks.count:
        raise ForkedAgent(
            "it was opened in the process that this one was forked from",
            remedy="open an agent in the child; the parent's goes on undisturbed",
        )


ON_ITS_WAY: frozenset[State] = frozenset(("built", "sent", "asked", "forgotten"))


class Pending:
    """Grows chunk by chunk, and ends with exactly one reply. Errors are replies, too."""

    __slots__ = (
        "_accepted",
        "_ahead",
        "_asker",
        "_ended",
        "_followers",
        "_fork",
        "_listeners",
        "_news",
        "asks",
        "chunks",
        "early",
        "heard",
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

    def __init__(
        self,
        syscall_id: str,
        syscall: Syscall | None,
        now_s: float,
        owner: Owner | None = None,
    ) -> None:
        self.id = syscall_id
        self.syscall = syscall  # None: attached to by id, somebody else submitted it
        self._asker = owner
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
        self._fork = forks.count
        # Most syscalls have one who waits for their end, and nobody who waits for anything else:
        # futures are made when somebody asks for them.
        self._accepted: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()  # one, as a rule
        self._news: asyncio.Future[None] | None = None
        self._followers: tuple[Pending, ...] = ()
        self.heard = Heard()  # of its text, so far: what `chunks` add up to
        self.early: Reply | None = None  # came before the kernel had answered where it stands
        self._ahead: list[Chunk] | None = []  # came behind a hole; None: it stays one

    @property
    def names(self) -> dict[str, str]:
        """What a line of the log about it has as fields."""
        program = {} if self.syscall is None else {"program": self.syscall.program}
        return {"syscall": self.id, **program}

    @property
    def owner(self) -> Owner | None:
        """Whose it is, for all that this client knows; None: an operator asks for it."""
        return self._asker if self.syscall is None else self.syscall.owner

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
        return self.state in ON_ITS_WAY

    @property
    def is_known(self) -> bool:
        """Whether the kernel has acknowledged it, and it has not ended for all we know."""
        return self.state == "accepted"

    def send(self) -> None:
        """It leaves for the kernel, or leaves again."""
        self.state = ARROWS[self.state, "send"]

    def accept(self, now_s: float) -> None:
        """The kernel has it."""
        self.state = ARROWS[self.state, "acknowledge"]
        self.heard_at_s = now_s
        self.was_accepted = True
        if self._accepted is not None:
            _wake(self._accepted)

    def withdraw(self) -> None:
        """The kernel has forgotten it: it is on its way there once more."""
        self.state = ARROWS[self.state, "forget"]
        self._accepted = None
        self.asks = 0

    def when_ended(self, listener: Callable[[], None]) -> None:
        """Call `listener` as soon as the reply is here, within the step that brings it."""
        if self.reply is None:
            if self._fork != forks.count:
                require_same_process(self._fork)
            self._listeners += (listener,)
        else:
            listener()

    def unhook(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        self._listeners = tuple(each for each in self._listeners if each is not listener)

    def lead(self, follower: Pending) -> None:
        """Let another of the same id hear what this one hears.

        It counts as one who waits, for good: whoever attached to a syscall may ask for it later.
        """
        for chunk in follower.chunks:
            self.hear(chunk, follower.heard_at_s)
        self._followers += (follower,)
        self.waiters += 1

    def hear(self, chunk: Chunk, now_s: float) -> None:
        """Keep what is new of a chunk.

        After a crash the same characters come again. What comes behind a hole (a message lost with
        a connection, or from before this client came) waits for what is between.
        """
        self.heard_at_s = now_s
        self.asks = 0
        have: int = getattr(self.heard, chunk.part)
        if chunk.offset > have:
            if self._ahead is not None and len(self._ahead) < MOST_AHEAD:
                self._ahead.append(chunk)
        elif have < chunk.offset + len(chunk.text):
            self._keep(have, chunk.text[have - chunk.offset :], chunk.part)
        for follower in self._followers:
            follower.hear(chunk, now_s)

    @property
    def has_hole(self) -> bool:
        """Whether text came that cannot be kept before what is missing has come."""
        return bool(self._ahead)

    def fill(self, missing: Sequence[Chunk], now_s: float) -> None:
        """Take the text that the kernel has kept, and then what came ahead of it.

        Where that leaves a hole nobody has what is missing any more: the reply holds it all.
        """
        ahead, self._ahead = self._ahead or (), []
        for chunk in (*missing, *ahead):
            self.hear(chunk, now_s)
        self._ahead = None if self._ahead else []

    def end(self, reply: Reply, cause: Literal["reply", "refuse", "lose"] = "reply") -> None:
        """Take the one reply; whatever of its text was not streamed becomes the last chunk.

        `cause`: the kernel's own reply, its refusal, or the client's giving up.
        """
        self.state = ARROWS[self.state, cause]
        self.was_accepted = self.was_accepted or cause == "reply"
        result = reply.result
        if isinstance(result, ChatResult) and self._streams:
            self._complete(self.heard.reasoning, result.reasoning, "reasoning")
            self._complete(self.heard.answer, result.text, "answer")
        self._ahead = None
        self.reply = self._with_token(reply)
        if self._accepted is not None:
            _wake(self._accepted)
        if self._ended is not None:
            _wake(self._ended)
        listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            listener()
        if self._news is not None:
            _wake(self._news)
            self._news = None
        for follower in self._followers:
            if follower.reply is None:
                follower.end(reply, "reply" if cause == "reply" else "lose")

    def news(self) -> asyncio.Future[None]:
        """Return what is done when the next chunk or the reply has come."""
        if self._news is None:
            self._require_home()
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    async def taken(self) -> None:
        """Return when the kernel has taken it: from then on it gets its answer.

        Raises:
            KernelError: the kernel did not take it: refused, or away for longer than a session
                waits.
        """
        await asyncio.shield(self.accepted)
        if not self.was_accepted and self.reply is not None:
            self.reply.unwrap()

    async def reply_within(self, timeout_s: float) -> Reply:
        """Return the reply, once the kernel has taken it. Errors of it are replies, too.

        Raises:
            KernelError: the kernel did not take it: refused, unknown, or away for too long.
            WaitTimeout: no reply in time; the syscall goes on.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self.ended)
        except TimeoutError as error:
            raise WaitTimeout(
                f"no reply within {timeout_s:g} s",
                remedy=f"`aios why {self.id}` says what it waits for; "
                f"`aios submit --attach {self.id}` waits again",
                syscall_id=self.id,
            ) from error
        assert self.reply is not None
        if not self.was_accepted:
            self.reply.unwrap()
        return self.reply

    def _with_token(self, reply: Reply) -> Reply:
        """Return the reply with the token that was made here, where it is of one."""
        if self.syscall is None or not isinstance(reply.result, TokenIssued):
            return reply
        return msgspec.structs.replace(reply, result=with_token(self.syscall, reply.result))

    def _require_home(self) -> None:
        if self.reply is None:
            require_same_process(self._fork)

    @property
    def may_stream(self) -> bool:
        """Whether text may come before its reply."""
        return self.module in (None, "llm") if self.syscall is None else self._streams

    @property
    def _streams(self) -> bool:
        if self.chunks:
            return True
        body = None if self.syscall is None else self.syscall.body
        return isinstance(body, LlmChat) and body.stream

    def _complete(self, have: int, text: str, part: Part) -> None:
        if have < len(text):
            self._keep(have, text[have:], part)

    def _keep(self, offset: int, text: str, part: Part) -> None:
        if isinstance(self.chunks, tuple):
            self.chunks = []
        self.chunks.append(Chunk(self.id, offset, text, part))
        have = offset + len(text)
        self.heard = (
            Heard(have, self.heard.reasoning)
            if part == "answer"
            else Heard(self.heard.answer, have)
        )
        if self._news is not None:
            _wake(self._news)
            self._news = None


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _future(*, done: bool) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if done:
        future.set_result(None)
    return future


def to_ask_for(
    known: Iterable[Pending], at_s: float, *, recheck_s: float, longest_s: float
) -> list[Pending]:
    """Return those whose time has come: each twice as long after the last time as before.

    So what thousands of waiting syscalls cost is little. Where none is due, the one that was
    silent longest stands for all: if the kernel has forgotten it, it may have forgotten the rest.
    """
    silent = [pending for pending in known if at_s - pending.heard_at_s >= recheck_s]
    due = [
        pending
        for pending in silent
        if at_s - pending.heard_at_s
        >= min(recheck_s * 2 ** min(pending.asks, MOST_DOUBLINGS), longest_s)
    ]
    if silent and not due:
        due = [min(silent, key=lambda pending: pending.heard_at_s)]
    for pending in due:
        pending.asks += 1
    return due


def joined(pending: Pending, first: Syscall, again: Syscall) -> Pending:
    """Return the one under way, or one that has ended: the key stands for another syscall."""
    try:
        refusal: KernelError | None = conflict_of(first, again)
    except KernelError as error:
        refusal = error
    return pending if refusal is None else refused(Pending(again.id, again, now_s()), refusal)


def refused(pending: Pending, refusal: KernelError) -> Pending:
    """Return one that was never sent."""
    pending.end(failure(pending.id, refusal), "refuse")
    return pending


def final_state(pending: Pending, reply: Reply) -> SyscallState:
    """Return the state that a reply tells of; raise its error where there is no such syscall."""
    if reply.error is None:
        return "finished"
    if reply.error.code == Cancelled.code:
        return "cancelled"
    if not pending.was_accepted or reply.error.code == UnknownSyscall.code:
        reply.unwrap()
    return "failed"
