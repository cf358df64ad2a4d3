"""Syscalls that a module makes itself, in the name of the agent whose syscall it runs.

They go through the queue of their module like everybody's: the agent's quota counts them, the
scheduler orders them, `aios ps` shows them. All of a process share one client. The id is made of
the asking syscall's id, the step, and what is asked: a worker that runs the syscall again after a
crash finds the call under way, or its result (kept for a minute), and makes no second one; where it
has something else to ask by then, it is another call.
"""

import asyncio
import hashlib
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

import msgspec

from aios_broker.client.pending import REPLY_GRACE_S
from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Session
from aios_broker.contract.errors import (
    DeadlineExceeded,
    QueueFull,
    Unavailable,
    UnknownCore,
    WaitTimeout,
)
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.retry import patiently

LEAST_DEADLINE_S = 0.05
NO_WORKER_S = 10.0  # how long a module without a worker is waited for: one may be restarting
LOOK_S = 0.5  # between looks for one
SEEN_S = 5.0  # how long it counts that one was seen
RETRY_AFTER_S = 1.0  # where the kernel does not say


class SubmittedCalls:
    """Submits them to the queues of their modules and waits for the replies."""

    def __init__(
        self,
        functions: Functions,
        keys: Keys,
        redis_url: str,
        name: str,
        *,
        no_worker_s: float = NO_WORKER_S,
    ) -> None:
        self._control = Control(functions, keys)
        self._fleet = Fleet(functions.connection, keys)
        self._redis_url = redis_url
        self._keys = keys
        self._name = f"{name}.calls"
        self._opening = asyncio.Lock()
        self._client: Session | None = None
        self._closing = AsyncExitStack()
        self._under_way: dict[str, asyncio.Task[Result]] = {}
        self._no_worker_s = no_worker_s
        self._seen_at: dict[Module, float] = {}  # when a worker of it was seen

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close. What is under way goes on: who runs the asking syscall next finds it."""
        under_way = list(self._under_way.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._closing.aclose()

    async def call(self, asked: Syscall, body: Body, step: str) -> Result:
        """Submit, and return the result; its deadline is what is left of that of `asked`.

        Raises:
            UnknownCore: No worker serves the core, or the module at all.
            KernelError: What the syscall ended with.
        """
        digest = hashlib.blake2b(msgspec.json.encode(body), digest_size=16).hexdigest()
        key = f"call\x1f{asked.id}\x1f{step}\x1f{digest}"
        left_s = await patiently(lambda: self._left_s(asked))
        client = await patiently(self._open_client)
        call = Syscall(
            client.ids(asked.owner).from_key(key),
            asked.agent,
            body,
            program=asked.program,
            tenant=asked.tenant,
            nice=asked.nice,
            deadline_s=left_s,
            traceparent=asked.traceparent,
            asked_by=asked.id,
        )
        task = self._under_way.get(call.id)
        if task is None:  # else the same syscall runs twice in this process: they hear one answer
            task = asyncio.create_task(self._answer(call))
            self._under_way[call.id] = task
            task.add_done_callback(partial(self._ended, call.id))
        return await asyncio.shield(task)

    async def _answer(self, call: Syscall) -> Result:
        """Ask until there is an answer: a queue that is full and a kernel that is away pass."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + call.deadline_s
        await patiently(lambda: self._await_worker(call.module))
        while True:
            left_s = max(until_s - loop.time(), LEAST_DEADLINE_S)
            try:
                return await self._ask(msgspec.structs.replace(call, deadline_s=left_s))
            except (QueueFull, Unavailable) as error:
                pause_s = error.retry_after_s or RETRY_AFTER_S
                if loop.time() + pause_s > until_s:
                    raise
                await asyncio.sleep(pause_s)

    async def _ask(self, call: Syscall) -> Result:
        client = await self._open_client()
        pending = client.submit(call)
        try:
            reply = await pending.reply_within(call.deadline_s + REPLY_GRACE_S)
        except WaitTimeout as error:
            raise DeadlineExceeded(
                f"its own {call.kind} had no answer in time",
                field="deadline_s",
                remedy=error.remedy,
            ) from error
        finally:
            client.let_go(pending)
        return reply.unwrap()

    async def _open_client(self) -> Session:
        """Return the client of this process.

        It is opened at the first call: most workers make none for hours, and some never, and each
        client is two connections more of Redis and a look every second.
        """
        async with self._opening:
            if self._client is None:
                transport = RedisTransport(self._redis_url, self._name, self._keys)
                self._client = await self._closing.enter_async_context(Session(transport))
            return self._client

    def _ended(self, syscall_id: str, task: asyncio.Task[Result]) -> None:
        del self._under_way[syscall_id]
        if not task.cancelled():
            task.exception()  # who asked may be gone: nobody else has to hear it

    async def _left_s(self, asked: Syscall) -> float:
        """Return what is left of the asking syscall's deadline, by Redis's clock."""
        view = await self._control.job(asked.id)
        if view is None or view.deadline_in_s is None:  # one that stands in no queue
            return asked.deadline_s
        if view.deadline_in_s < LEAST_DEADLINE_S:
            raise DeadlineExceeded(
                "it outlived its deadline", field="deadline_s", remedy="allow it more time"
            )
        return min(asked.deadline_s, view.deadline_in_s)

    async def _await_worker(self, module: Module) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._no_worker_s
        while loop.time() - self._seen_at.get(module, float("-inf")) > SEEN_S:
            workers = await self._fleet.live_workers()
            if any(module in worker.module.split(",") for worker in workers):
                self._seen_at[module] = loop.time()
            elif loop.time() >= give_up_at:
                raise UnknownCore(
                    f"no worker serves the module {module} ({self._no_worker_s:g} s waited)",
                    field="body.core" if module == "llm" else "body.type",
                    remedy="start one (`aios up` with AIOS_LLM_WORKERS=1)"
                    if module == "llm"
                    else "start one (`aios up`)",
                )
            else:
                await asyncio.sleep(LOOK_S)
