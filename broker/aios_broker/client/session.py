"""The asynchronous core of every agent: submits in batches, hears replies, loses no waiter.

Every syscall that enters ends in exactly one reply here: the kernel's, or an error of our own
when the kernel refuses it, forgets it, or stays away longer than `Limits.patience_s`.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Coroutine, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Literal, Self

import msgspec

from aios_broker.client.outbox import Outbox
from aios_broker.client.pending import (
    Pending,
    final_state,
    forks,
    joined,
    refused,
    require_same_process,
    to_ask_for,
)
from aios_broker.client.transport import Attached, CallStatus, Transport
from aios_broker.contract.errors import (
    Cancelled,
    ClientFailed,
    KernelError,
    Rejected,
    Unavailable,
    UnknownSyscall,
    UnsupportedVersion,
)
from aios_broker.contract.ids import Ids, id_refused
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import Chunk, Reply, decode_reply, decode_wire, failure
from aios_broker.contract.syscall import Syscall
from aios_broker.retry import Backoff, now_s, patiently

logger = logging.getLogger(__name__)

UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)  # bytes that are no message
_ID = re.compile(rb"[0-9a-f]{32}")
CHECK_BATCH = 500  # syscalls asked for in one write
LONGEST_RECHECK_S = 60.0  # or half as long as the kernel keeps a reply


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a client is."""

    recheck_s: float = 5.0  # without news of a syscall, ask for it by id; then ever less often
    patience_s: float = 60.0  # a kernel that is away longer fails what waits for it
    cancel_s: float = 2.0  # for cancelling, and for leaving the context


class Session:
    """One client of the kernel. Open it in the loop that uses it.

    Leaving cancels, within `Limits.cancel_s`, what was submitted in it and has not ended, but for
    what was let go.
    """

    def __init__(self, transport: Transport, limits: Limits | None = None) -> None:
        self._transport = transport
        self._limits = limits or Limits()
        self._pending: dict[str, Pending] = {}
        self._joining: set[Pending] = set()  # submissions of ids that another here is attached to
        self._outbox = Outbox(
            transport, self._limits.patience_s, self._spawn, self._end, self._learn
        )
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.now_s = now_s  # its loop's time
        self._is_serving = False
        self._fork = forks.count
        self._is_alarmed = False  # the kernel has forgotten a syscall: perhaps all of them

    async def open(self) -> None:
        """Reach the kernel, or raise at once, with the transport closed."""
        try:
            await self._transport.open()
        except BaseException:
            await self._transport.aclose()
            raise
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self.now_s = self._loop.time
        self._serve()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def waiting(self) -> int:
        """How many syscalls it waits for."""
        return len(self._pending) + len(self._joining)

    def ids(self, owner: Owner) -> Ids:
        """Return what makes the ids of an agent's syscalls."""
        return self._transport.ids(owner)

    def identified(self, syscall: Syscall, key: str | None = None) -> Syscall:
        """Return it with an id that its agent may use: a fresh one, or the one of a key."""
        ids = self.ids(syscall.owner)
        syscall_id = ids.fresh() if key is None else ids.from_key(key)
        return msgspec.structs.replace(syscall, id=syscall_id)

    def submit(self, syscall: Syscall) -> Pending:
        """Publish a syscall, with all others of this loop tick; join one that is under way."""
        if not self._is_serving or self._fork != forks.count:
            self._serve()
        owner = syscall.owner
        if not self._transport.ids(owner).owns(syscall.id):
            return refused(Pending(syscall.id, syscall, now_s()), id_refused(owner))
        first = self._pending.get(syscall.id)
        if first is not None and first.owner not in (None, owner):  # another's, who cannot own it
            self._end(first, self._unknown(), "refuse" if first.state == "asked" else "lose")
            first = None
        if first is not None and first.syscall is not None:
            return first if first.syscall is syscall else joined(first, first.syscall, syscall)
        pending = Pending(syscall.id, syscall, self.now_s())
        if first is None:
            self._pending[syscall.id] = pending
        else:
            self._joining.add(pending)
            self._spawn(self._join(pending, first))
        self._outbox.add(pending)
        return pending

    async def _join(self, pending: Pending, attached: Pending) -> None:
        """Let a submission take the place of one attached to: the kernel called them the same."""
        await asyncio.shield(pending.accepted)
        self._joining.discard(pending)
        first = self._pending.get(pending.id, attached)
        if pending.reply is not None:
            return
        if first.reply is not None and first.state == "ended":
            pending.end(first.reply)
            return
        self._pending[pending.id] = pending
        if first.reply is None:
            pending.lead(first)

    def attach(self, syscall_id: str, owner: Owner | None) -> Pending:
        """Hear of a syscall that this agent submitted, perhaps in an earlier life.

        `owner` None is an operator, who may hear of everybody's.
        """
        self._serve()
        pending = self._pending.get(syscall_id)
        if pending is None:
            pending = self._pending[syscall_id] = Pending(syscall_id, None, now_s(), owner)
            self._spawn(self._find(pending))
        elif owner not in (None, pending.owner):
            return refused(Pending(syscall_id, None, now_s(), owner), self._unknown())
        return pending

    async def cancel(self, pending: Pending) -> bool:
        """End a syscall; False if it has ended already."""
        require_same_process(self._fork)
        await asyncio.wait([pending.accepted], timeout=self._limits.cancel_s)
        if pending.reply is not None:
            return False
        if pending.is_on_its_way:
            if pending.syscall is not None:
                self._end(pending, Cancelled("cancelled before the kernel acknowledged it"))
            return pending.syscall is not None
        assert pending.module is not None  # the kernel said it when it acknowledged
        reason = Cancelled("its agent cancelled it")
        [done] = await self._transport.cancel([pending.id], pending.module, reason, pending.owner)
        return done

    def abandon(self, pending: Pending) -> None:
        """Cancel, without waiting for it, what nobody waits for any more."""
        require_same_process(self._fork)
        if pending.syscall is not None and pending.reply is None and self._is_open:
            self._spawn(self._cancel_quietly(pending))

    def leave(self, pending: Pending, *, abandon: bool) -> None:
        """Count one who waits less; `abandon`: it is cancelled where that was the last one."""
        pending.waiters -= 1
        if abandon and not pending.waiters:
            self.abandon(pending)

    def leave_soon(self, pending: Pending, *, abandon: bool) -> None:
        """Leave from any thread.

        Nothing happens where the loop is closed, for leaving cancels what is left, or where this is
        a forked child.
        """
        if pending.reply is None and self._fork == forks.count and self._loop is not None:
            leave = partial(self.leave, pending, abandon=abandon)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(leave)

    def let_go(self, pending: Pending) -> None:
        """Wait for a syscall no more: it goes on, leaving does not cancel it."""
        self._forget(pending)

    async def status(self, pending: Pending) -> CallStatus:
        """Return where a syscall stands; raise the error of one that never came to stand."""
        require_same_process(self._fork)
        await asyncio.wait([pending.accepted], timeout=self._limits.patience_s)
        if pending.reply is None:
            found = await self._transport.status(pending.id, pending.owner)
            if found is not None:
                return found
            attached = await self._transport.attach(pending.id, pending.module, pending.owner)
            self._learn(pending, attached)
        if pending.reply is None:
            return CallStatus(pending.id, "queued", pending.module)
        return CallStatus(pending.id, final_state(pending, pending.reply))

    async def aclose(self) -> None:
        """Cancel what is left, within a limit, and close. Safe to call twice.

        In a child of the process that opened it this lets go of it, and leaves the parent's
        sockets, replies and syscalls alone.
        """
        if self._fork != forks.count:
            self._is_open = False
        if not self._is_open:
            return
        self._is_open = self._is_serving = False
        reason = Cancelled("its agent left before it ended")
        self._end_all(self._outbox.clear(), reason)
        try:
            async with asyncio.timeout(self._limits.cancel_s):
                await self._cancel_all(self._all(), reason)
        except (TimeoutError, KernelError) as error:
            logger.warning("%d syscalls may go on: %r", len(self._pending), error)
        finally:
            self._end_all(self._all(), reason)
            for task in self._tasks:
                task.cancel()
            try:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            finally:  # whoever leaves may be cancelled again
                await self._transport.aclose()

    # Hearing.

    async def _listen(self) -> None:
        while True:
            try:
                unclear: dict[str, Pending] = {}
                for data in await self._transport.messages():
                    unclear.update((each.id, each) for each in self._hear(data))
                await self._check([each for each in unclear.values() if each.is_known])
            except Unavailable as error:
                logger.warning("replies do not come: %s; trying again", error)
                await self._find_again()

    async def _find_again(self) -> None:
        """Wait until the kernel is back, and ask for all that we wait for."""
        patient_until_s = now_s() + self._limits.patience_s
        backoff = Backoff()
        while True:
            await backoff.wait()
            try:
                await self._transport.open()
                await self._check(self._known())
            except Unavailable as error:
                if now_s() > patient_until_s:
                    self._end_all(self._known(), error)
            else:
                return

    def _hear(self, data: bytes) -> Sequence[Pending]:
        """Take a message; return those of which it leaves something to ask for."""
        try:
            message = decode_wire(data)
        except UNREADABLE as error:
            logger.warning("a message that cannot be read is asked for by id: %s", error)
            return self._whose(data)
        pending = self._pending.get(message.id)
        if pending is None:
            return ()
        if isinstance(message, Chunk):
            pending.hear(message, now_s())
            return (pending,) if pending.has_hole else ()
        if pending.state == "asked":  # the answer that is under way has what was said before
            pending.early = message
            return ()
        del self._pending[message.id]
        pending.end(message)
        return ()

    def _whose(self, data: bytes) -> list[Pending]:
        """Return what an unreadable message may be of: those it names, or else all."""
        named = [self._pending.get(found.decode()) for found in _ID.findall(data)]
        return [each for each in named if each is not None] or list(self._pending.values())

    async def _watch(self) -> None:
        """Find what got lost on its way: a reply taken and not read, a wake-up that never came."""
        while True:
            await asyncio.sleep(self._limits.recheck_s / 5)
            try:
                await self._check(self._silent())
            except Unavailable as error:
                logger.info("cannot look for silent syscalls: %s", error)  # `_listen` sees to it

    def _silent(self) -> list[Pending]:
        known = self._known()
        if self._is_alarmed:
            self._is_alarmed = False
            for pending in known:
                pending.asks = 0
        recheck_s = self._limits.recheck_s
        longest_s = max(recheck_s, min(LONGEST_RECHECK_S, self._transport.result_ttl_s / 2))
        return to_ask_for(known, now_s(), recheck_s=recheck_s, longest_s=longest_s)

    async def _find(self, pending: Pending) -> None:
        try:
            await patiently(lambda: self._check([pending]), self._limits.patience_s)
        except KernelError as error:
            if pending.early is None:
                self._end(pending, error)
            elif pending.reply is None:
                self._take_early(pending, pending.early)

    def _take_early(self, pending: Pending, reply: Reply) -> None:
        self._forget(pending)
        pending.end(reply)

    async def _check(self, batch: Sequence[Pending]) -> None:
        for first in range(0, len(batch), CHECK_BATCH):
            part = batch[first : first + CHECK_BATCH]
            steps = (
                self._transport.attach(
                    pending.id,
                    pending.module,
                    pending.owner,
                    pending.heard if pending.may_stream else None,
                )
                for pending in part
            )
            for pending, attached in zip(part, await asyncio.gather(*steps), strict=True):
                self._learn(pending, attached)

    def _learn(self, pending: Pending, attached: Attached) -> None:
        if pending.reply is not None:
            return
        if attached.missing or pending.has_hole:
            pending.fill(attached.missing, now_s())
        if pending.early is not None:
            self._take_early(pending, pending.early)
            return
        if attached.reply is not None:
            self._read_stored(pending, attached.reply)
        elif attached.state is not None:
            pending.module = attached.module
            if pending.state in ("sent", "asked", "accepted"):
                pending.accept(now_s())
        elif pending.syscall is not None and pending.is_on_its_way:
            return  # it is on its way already
        elif self._may_submit_again(pending):
            text = "the kernel forgot syscall %s; submitting it again"
            logger.warning(text, pending.id, extra=pending.names)
            self._is_alarmed = True
            pending.withdraw()
            self._outbox.add(pending)
        elif self._pending.get(pending.id, pending) is pending:  # else a submission stands for it
            self._end(pending, self._unknown(), "refuse" if pending.state == "asked" else "lose")

    def _unknown(self) -> UnknownSyscall:
        return UnknownSyscall(
            "the kernel knows no such syscall of this agent's, or its reply has expired",
            field="id",
            remedy=f"replies are kept for {self._transport.result_ttl_s:g} s; submit it anew",
        )

    def _read_stored(self, pending: Pending, data: bytes) -> None:
        try:
            reply = decode_reply(data)
        except UNREADABLE as error:
            self._end(
                pending,
                UnsupportedVersion(
                    f"the reply cannot be read: {error}",
                    remedy="use an SDK and a kernel of the same release",
                ),
            )
            return
        first = self._pending.pop(pending.id, None)  # another, where one of them was attached to
        for each in (first, pending):
            if each is not None and each.reply is None:
                each.end(reply)

    def _may_submit_again(self, pending: Pending) -> bool:
        """Whether it cannot have ended: known so lately that its reply would still be there."""
        if pending.syscall is None:
            return False
        at_s = now_s()
        return (
            at_s - pending.heard_at_s < self._transport.result_ttl_s
            and at_s - pending.submitted_at_s < pending.syscall.deadline_s
        )

    # Ending.

    async def _cancel_all(self, batch: Iterable[Pending], reason: Cancelled) -> None:
        ours = [p for p in batch if p.syscall is not None and p.reply is None]
        if ours:
            await asyncio.wait([p.accepted for p in ours])
        parts: dict[tuple[Module, Owner | None], list[str]] = {}
        for pending in ours:
            if pending.reply is None and pending.module is not None:
                parts.setdefault((pending.module, pending.owner), []).append(pending.id)
        for (module, owner), ids in parts.items():
            await self._transport.cancel(ids, module, reason, owner)

    async def _cancel_quietly(self, pending: Pending) -> None:
        try:
            await self.cancel(pending)
        except (TimeoutError, KernelError) as error:
            logger.warning("syscall %s may go on: %s", pending.id, error, extra=pending.names)

    def _end(
        self, pending: Pending, error: KernelError, cause: Literal["refuse", "lose"] = "lose"
    ) -> None:
        self._joining.discard(pending)
        self._forget(pending)
        if pending.reply is None:
            pending.end(failure(pending.id, error), cause)

    def _end_all(self, batch: Iterable[Pending], error: KernelError) -> None:
        for pending in batch:
            self._end(pending, error)

    # The rest.

    def _forget(self, pending: Pending) -> None:
        if self._pending.get(pending.id) is pending:
            del self._pending[pending.id]

    def _all(self) -> list[Pending]:
        return [*self._pending.values(), *self._joining]

    def _known(self) -> list[Pending]:
        return [pending for pending in self._pending.values() if pending.is_known]

    def _spawn(
        self, work: Coroutine[object, object, object], context: Context | None = None
    ) -> None:
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._retire)

    def _retire(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._is_serving = False
        for other in self._tasks:
            other.cancel()
        self._end_all([*self._outbox.clear(), *self._all()], _why_it_failed(error))

    def _serve(self) -> None:
        """Hear replies and watch for what gets lost; begun anew after a fault of the client."""
        require_same_process(self._fork)
        if not self._is_open:
            raise KernelError(
                "the agent is not open", remedy="open one, and use it inside its `with` block"
            )
        if not self._is_serving:
            self._is_serving = True
            # What they log is not about what the task that opens it is about.
            self._spawn(self._listen(), Context())
            self._spawn(self._watch(), Context())


def _why_it_failed(error: BaseException) -> KernelError:
    """Return what those hear who wait: nobody may wait for ever."""
    if isinstance(error, Rejected):  # the kernel's word: its token has been revoked
        logger.warning("the kernel serves this client no more: %s", error)
        return error
    # A fault of ours, or a Redis that refuses our commands.
    logger.error("the client failed", exc_info=error)
    return ClientFailed(
        f"the client failed: {type(error).__name__}: {error}",
        remedy="the next call begins anew; this one may go on: attach to it by its id",
    )
