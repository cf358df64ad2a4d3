"""Submit syscalls and hear their replies: what `aios submit` and the demo do, without the SDK.

One reply list and one blocking reader per client. When the connection breaks, the reader opens
it again and asks for everything it still waits for by id: no reply is lost with a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

import hiredis
import msgspec

from aios_broker.contract.errors import KernelError, RedisUnavailable, UnknownSyscall, WaitTimeout
from aios_broker.contract.job import encode_job
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Chunk, Reply, decode_reply, decode_wire
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.connection import Connection
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import Facts, Submission
from aios_broker.queues.replies import ReplyBox

logger = logging.getLogger(__name__)

RECONNECT_PAUSE_S = 0.3
PATIENCE_S = 60.0  # a Redis that is away longer fails what waits for it
ASK_AGAIN_S = 15.0  # a reply whose wake-up was lost is found again by id after this silence
REPLY_GRACE_S = 15.0  # the kernel's own "deadline exceeded" gets this long to arrive


class Pending:
    """One syscall that was sent: its text as it comes, and its reply."""

    def __init__(self, syscall_id: str, module: Module) -> None:
        self.syscall_id = syscall_id
        self.module = module
        self.text = ""  # of the chunks so far
        self.acknowledged = False  # the kernel has taken it
        self._reply: Reply | None = None
        self._given_up: KernelError | None = None
        self._news = asyncio.Event()

    @property
    def ended(self) -> Reply | None:
        """Return the reply if it is there."""
        return self._reply

    def hear(self, message: Chunk | Reply) -> None:
        """Take a message: new text, text that came before a crash, or the reply."""
        if isinstance(message, Reply):
            self._reply = message
        elif message.offset <= len(self.text) < message.offset + len(message.text):
            self.text += message.text[len(self.text) - message.offset :]
        self._news.set()

    def give_up(self, error: KernelError) -> None:
        """End the waiting with an error; what the kernel does with the syscall is not known."""
        self._given_up = error
        self._news.set()

    async def reply(self, timeout_s: float) -> Reply:
        """Wait for the reply.

        Raises:
            KernelError: the kernel was away for too long, or refuses to be asked.
            WaitTimeout: none came in time; the syscall goes on.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async for _ in self.pieces():
                    pass
        except TimeoutError as error:
            raise WaitTimeout(
                f"no reply within {timeout_s:g} s",
                remedy=f"`aios why {self.syscall_id}` says what it waits for; "
                f"`aios submit --attach {self.syscall_id}` waits again",
                syscall_id=self.syscall_id,
            ) from error
        assert self._reply is not None
        return self._reply

    async def pieces(self) -> AsyncIterator[str]:
        """Yield new text as it comes; end with the reply."""
        seen = 0
        while True:
            if len(self.text) > seen:
                piece, seen = self.text[seen:], len(self.text)
                yield piece
            elif self._reply is not None:
                return
            elif self._given_up is not None:
                raise self._given_up
            else:
                self._news.clear()
                await self._news.wait()


class KernelClient:
    """A connection to a kernel: an async context manager, for one event loop."""

    def __init__(
        self,
        redis_url: str,
        *,
        keys: Keys | None = None,
        name: str = "aios-cli",
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.keys = keys or Keys()
        self._patience_s = patience_s
        self.connection = Connection(redis_url, name=name)
        self._functions = Functions(self.connection)
        self.control = Control(self._functions, self.keys)
        self.fleet = Fleet(self.connection, self.keys)
        self._client_id = f"{name}-{uuid.uuid4().hex}"
        self._box = ReplyBox(Connection(redis_url, name=name), self._client_id, self.keys)
        self._pending: dict[str, Pending] = {}
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KernelClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        await self._box.aclose()
        await self.connection.aclose()

    async def submit(self, syscalls: Sequence[Syscall], *, wait: bool = True) -> list[Pending]:
        """Publish syscalls, in order, per module in one step.

        Args:
            syscalls: Checked ones (`check_syscall`).
            wait: False: nobody waits, no reply list is kept; the reply is found by id.
        """
        pending = [Pending(syscall.id, syscall.module) for syscall in syscalls]
        if wait:
            self._await_replies(pending)
        client = self._client_id if wait else ""
        by_module: dict[Module, list[Submission]] = {}
        for syscall in syscalls:
            by_module.setdefault(syscall.module, []).append(submission(syscall, client))
        try:
            for module, jobs in by_module.items():
                await self._queue(module).submit(jobs)
        except KernelError:
            for one in pending:
                self._pending.pop(one.syscall_id, None)
            raise
        for one in pending:
            one.acknowledged = True
        return pending

    async def attach(self, syscall_id: str) -> Pending:
        """Wait for a syscall that was sent before, by anybody.

        Raises:
            UnknownSyscall: no syscall of that id is known, or its reply has expired.
        """
        view = await self.control.job(syscall_id)
        # What has ended is in no module's queue: any of them finds its reply.
        module: Module = msgspec.convert(view.module, Module) if view else "llm"
        pending = Pending(syscall_id, module)
        self._await_replies([pending])
        await self._ask(pending)
        pending.acknowledged = True
        return pending

    async def peek(self, syscall_id: str) -> tuple[str, bytes | None]:
        """Return a syscall's state and, if it ended, its encoded reply; nobody waits for it.

        The state is `unknown` where nothing is left of it.
        """
        return await self._queue("llm").attach(syscall_id, "")  # what ended is in no module's queue

    def _queue(self, module: Module) -> ModuleQueue:
        return ModuleQueue(self._functions, module, self.keys)

    def _await_replies(self, pending: Sequence[Pending]) -> None:
        self._pending.update((one.syscall_id, one) for one in pending)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(), name="replies")

    async def _read(self) -> None:
        """Hand messages to those who wait; where that cannot go on, tell them so."""
        try:
            await self._hand_out()
        except KernelError as error:
            self._give_up(error)
        except hiredis.ReplyError as error:
            self._give_up(KernelError(f"Redis refused to hand out replies: {error}"))

    def _give_up(self, error: KernelError) -> None:
        waiting, self._pending = list(self._pending.values()), {}
        for pending in waiting:
            pending.give_up(error)

    async def _hand_out(self) -> None:
        """Hand messages to those who wait.

        Raises:
            RedisUnavailable: Redis was away for PATIENCE_S.
        """
        loop = asyncio.get_running_loop()
        ask_at = loop.time() + ASK_AGAIN_S
        away_since: float | None = None
        while True:
            try:
                messages = await self._box.take()
                away_since = None
                if messages:
                    ask_at = loop.time() + ASK_AGAIN_S
                elif loop.time() > ask_at:
                    await self._ask_all()
                    ask_at = loop.time() + ASK_AGAIN_S
            except RedisUnavailable as error:
                if away_since is None:
                    away_since = loop.time()
                    logger.warning("waiting for Redis: %s", error)
                elif loop.time() - away_since > self._patience_s:
                    raise
                ask_at = loop.time()  # what arrived meanwhile may be lost: ask by id
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            for data in messages:
                self._hear(decode_wire(data))

    def _hear(self, message: Chunk | Reply) -> None:
        pending = self._pending.get(message.id)
        if pending is None:
            return
        pending.hear(message)
        if isinstance(message, Reply):
            del self._pending[message.id]

    async def _ask_all(self) -> None:
        for pending in list(self._pending.values()):
            try:
                await self._ask(pending)
            except UnknownSyscall as error:
                if pending.acknowledged:  # else its submit is still under way
                    del self._pending[pending.syscall_id]
                    pending.give_up(error)

    async def _ask(self, pending: Pending) -> None:
        state, reply = await self._queue(pending.module).attach(pending.syscall_id, self._client_id)
        if reply is not None:
            self._hear(decode_reply(reply))
        elif state == "unknown":
            raise UnknownSyscall(
                f"no syscall {pending.syscall_id} is known",
                field="id",
                remedy="replies are kept for a minute, failures for an hour",
                syscall_id=pending.syscall_id,
            )


def submission(syscall: Syscall, client: str) -> Submission:
    """Return the job that carries a syscall."""
    facts = Facts(
        agent=syscall.agent, kind=syscall.kind, program=syscall.program, tenant=syscall.tenant,
        nice=syscall.nice,
    )  # fmt: skip
    return Submission(
        job_id=syscall.id, data=encode_job(syscall), facts=facts, client=client,
        needs=syscall.needs, deadline_s=syscall.deadline_s,
        description=f"{syscall.kind} of {syscall.agent}/{syscall.program}",
    )  # fmt: skip
