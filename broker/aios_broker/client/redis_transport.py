"""The direct transport: publish straight into the kernel's Redis. Needs `aios-broker[redis]`."""

import asyncio
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate

import msgspec

from aios_broker.client.transport import Attached, CallStatus, Outcome
from aios_broker.contract.errors import InvalidSyscall, KernelError
from aios_broker.contract.ids import IdMaker, Ids
from aios_broker.contract.job import conflict_with, encode_job
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import Chunk, Heard, Part
from aios_broker.contract.syscall import MODULES, State, Syscall
from aios_broker.contract.tokens import digest
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import (
    RESULT_TTL_S,
    Differs,
    ModuleQueue,
)
from aios_broker.queues.records import Submission, metadata_of
from aios_broker.queues.secret import KernelSecret
from aios_broker.redis.connection import Connection

SUBMIT_BYTES = 8 * 1024 * 1024  # of one step, or of one job that is larger
# Replies that one submit brings along, of syscalls that have ended already: what is beyond them is
# asked for by id, later.
MOST_REPLY_BYTES = 32 * 1024 * 1024
BLOCK_S = 10.0  # one blocking look; it ends at once when something comes
REPLIES = 1000  # taken by one blocking look, where they are as small as most
TURN_BYTES = 256 * 1024  # of messages that are read in one turn of the loop
LOOK_BYTES = 2 * 1024 * 1024  # by the next look, if its messages are as large as those of the last


class ReplyBox:
    """Reads the list to which workers push this client's replies and chunks."""

    def __init__(self, blocking: Connection, client: str, keys: Keys | None = None) -> None:
        self.client = client
        self._key = (keys or Keys()).reply(client)
        self._connection = blocking
        self._count = REPLIES
        self._untold: list[bytes] = []  # taken, and left to the next turns of the loop

    async def take(self, *, timeout_s: float = 2.0) -> list[bytes]:
        """Return the messages that are there; wait up to `timeout_s` for the first one.

        Of large ones only some at a time: between them whoever else is served by this loop goes
        on. A message taken here is gone from Redis: one that is lost with the client is found
        again by id (ModuleQueue.attach).
        """
        if self._untold:
            await asyncio.sleep(0)
        else:
            self._untold = await self._look(timeout_s)
        told, self._untold = _parted(self._untold)
        return told

    async def _look(self, timeout_s: float) -> list[bytes]:
        """Take what is there off the list. The connection must be this box's alone."""
        answer = await self._connection.execute(
            "BLMPOP",
            timeout_s,
            1,
            self._key,
            "LEFT",
            "COUNT",
            self._count,
            timeout_s=timeout_s + 5.0,
        )
        taken: list[bytes] = answer[1] if answer else []
        if taken:
            mean_bytes = sum(map(len, taken)) // len(taken) + 1
            self._count = min(max(LOOK_BYTES // mean_bytes, 1), REPLIES)
        return taken

    async def aclose(self) -> None:
        """Close the connection; the list expires by itself."""
        await self._connection.aclose()


class RedisTransport:
    """Two connections: one for commands, one that blocks on this client's reply list."""

    def __init__(self, url: str, name: str, keys: Keys | None = None) -> None:
        """Make a client of the kernel whose Redis is at `url`; `name` is what CLIENT LIST shows."""
        keys = keys or Keys()
        self._client = f"{name}.{uuid.uuid4().hex[:16]}"
        self._connection = Connection(url, name=f"aios-client:{name}")
        functions = Functions(self._connection)
        self._queues = {module: ModuleQueue(functions, module, keys) for module in MODULES}
        self._control = Control(functions, keys)
        self._secret = KernelSecret(self._connection, keys)
        self._id_maker: IdMaker | None = None
        blocking = Connection(url, name=f"aios-replies:{name}")
        self._replies = ReplyBox(blocking, self._client, keys)

    @property
    def result_ttl_s(self) -> float:
        """How long a stored reply can be fetched."""
        return RESULT_TTL_S

    async def open(self) -> None:
        """Reach Redis and our functions in it, or raise at once."""
        await self._control.queue("tool")
        if self._id_maker is None:
            self._id_maker = await self._secret.id_maker()

    def ids(self, owner: Owner) -> Ids:
        """Return what makes the ids of an agent's syscalls."""
        assert self._id_maker is not None, "it is not open"
        return self._id_maker.of(owner)

    async def submit(self, syscalls: Sequence[Syscall]) -> list[Outcome]:
        """Publish syscalls of one module, in one step where they are not too large for it."""
        found: list[Outcome] = [None] * len(syscalls)
        jobs: dict[int, Submission] = {}  # by place
        size_bytes = 0
        for place, syscall in enumerate(syscalls):
            try:
                job = _submission(syscall, self._client)
            except InvalidSyscall as error:
                found[place] = error
                continue
            size_bytes += len(job.data)
            if jobs and size_bytes > SUBMIT_BYTES:
                await self._publish(syscalls, jobs, found)
                jobs, size_bytes = {}, len(job.data)
            jobs[place] = job
        if jobs:
            await self._publish(syscalls, jobs, found)
        return found

    async def _publish(
        self, syscalls: Sequence[Syscall], jobs: dict[int, Submission], found: list[Outcome]
    ) -> None:
        """Publish jobs, and write down what came of each at its place."""
        queue = self._queues[syscalls[0].module]
        outcomes = await queue.submit(list(jobs.values()))
        size_bytes = 0
        for place, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, KernelError):
                found[place] = outcome
            elif isinstance(outcome, Differs):
                known = await self._compared(syscalls[place], outcome)
                if isinstance(known, Attached) and known.reply is not None:
                    size_bytes += len(known.reply)
                    if size_bytes > MOST_REPLY_BYTES:
                        known = replace(known, reply=None)
                found[place] = known

    async def _compared(self, syscall: Syscall, stored: Differs) -> Outcome:
        """Tell a key used twice from a syscall sent again, with less time or another token."""
        conflict = conflict_with(syscall, stored.data)
        return conflict or await self.attach(syscall.id, syscall.module, syscall.owner)

    async def cancel(
        self, ids: Sequence[str], module: Module, error: KernelError, owner: Owner | None
    ) -> list[bool]:
        """End syscalls of one module in one step."""
        outcomes = await self._control.cancel(ids, error, module=module, owner=owner)
        return [outcome == "done" for outcome in outcomes]

    async def attach(
        self,
        syscall_id: str,
        module: Module | None,
        owner: Owner | None,
        heard: Heard | None = None,
    ) -> Attached:
        """Join those who wait for a syscall, or fetch its stored reply."""
        for candidate in (module,) if module else MODULES:
            queue = self._queues[candidate]
            state, reply = await queue.attach(syscall_id, self._client, owner)
            if state == "unknown":
                continue
            # Once it is joined: what is emitted from now on comes by itself.
            missing = () if heard is None else await _streamed(queue, syscall_id, heard)
            return Attached(msgspec.convert(state, State), candidate, reply, missing)
        return Attached(None)

    async def status(self, syscall_id: str, owner: Owner | None) -> CallStatus | None:
        """Look at one syscall that has not ended."""
        view = await self._control.job(syscall_id)
        if view is None or owner not in (None, view.metadata.owner):
            return None
        shown = {field.name: getattr(view, field.name) for field in fields(CallStatus)[1:]}
        return CallStatus(view.job_id, **shown)

    async def messages(self) -> list[bytes]:
        """Take what lies in the reply list; block for the first message."""
        return await self._replies.take(timeout_s=BLOCK_S)

    async def aclose(self) -> None:
        """Close both connections."""
        try:
            await self._replies.aclose()
        finally:
            await self._connection.aclose()


async def _streamed(queue: ModuleQueue, syscall_id: str, heard: Heard) -> tuple[Chunk, ...]:
    """Return what was streamed beyond what was heard."""
    parts: tuple[tuple[Part, int], ...] = (
        ("reasoning", heard.reasoning),
        ("answer", heard.answer),
    )
    texts = await asyncio.gather(*(queue.streamed(syscall_id, *part) for part in parts))
    return tuple(
        Chunk(syscall_id, offset, text, part)
        for (part, offset), text in zip(parts, texts, strict=True)
        if text
    )


def _parted(messages: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return those that are read in one turn of the loop, and those that come behind them."""
    if sum(map(len, messages)) <= TURN_BYTES:
        return messages, []
    count = 1 + bisect_right(list(accumulate(map(len, messages))), TURN_BYTES)
    return messages[:count], messages[count:]


def _submission(syscall: Syscall, client: str) -> Submission:
    metadata = metadata_of(syscall)
    return Submission(
        syscall.id,
        encode_job(syscall),
        metadata,
        client,
        syscall.needs,
        syscall.deadline_s,
        f"{metadata.kind} of {syscall.agent}/{syscall.program}",
        digest(syscall.token) if syscall.token else "",
    )
