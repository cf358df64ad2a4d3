"""A worker of a few lines, for tests of clients: claims, asks a function, finishes."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from types import TracebackType

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import KernelError, Unavailable
from aios_broker.contract.job import decode_job
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.names import Module
from aios_broker.contract.reply import ChatResult, Chunk, EchoResult, Reply, Result, encode, failure
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import Ending, Lease, WorkerCard
from aios_broker.redis.connection import Connection

MODEL = "tiny"
LEASE_S = 60.0
RETRY_S = 0.02

Emit = Callable[[int, str], Awaitable[None]]  # offset, text
Handler = Callable[[Syscall, Emit], Awaitable[Result]]


async def parrot(syscall: Syscall, emit: Emit) -> Result:
    """Answer with what was said last; stream it word by word where that is asked for."""
    match syscall.body:
        case ToolEcho(text=text):
            return EchoResult(text)
        case LlmChat(messages=messages, stream=stream):
            text = messages[-1].content
            words = [word + " " for word in text.split(" ")] if stream else []
            offset = 0
            for word in words:
                await emit(offset, word.rstrip() if offset + len(word) > len(text) else word)
                offset += len(word)
            return ChatResult(text, "stop", MODEL)
        case other:
            raise AssertionError(f"the parrot cannot answer {other!r}")


class TinyWorker:
    """Serves one module; many syscalls at once, each in a task of its own."""

    def __init__(self, url: str, module: Module, handler: Handler = parrot) -> None:
        self.seen: list[Syscall] = []
        self._handler = handler
        self._connection = Connection(url)
        self._queue = ModuleQueue(Functions(self._connection), module)
        self._name = f"tiny-{module}-{id(self)}"
        cores = (CoreCard(name=MODEL, model=MODEL),) if module == "llm" else ()
        self._card = WorkerCard(self._name, module, os.getpid(), "here", slots=1000, cores=cores)
        self._appetite = ClaimRequest(1000, LEASE_S, self._card.core_names)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "TinyWorker":
        await self._queue.register(self._card)
        self._spawn(self._serve())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.aclose()

    async def _serve(self) -> None:
        while True:
            try:
                leases = await self._queue.claim(self._name, self._appetite)
            except Unavailable:
                leases = []
            for lease in leases:
                self._spawn(self._answer(lease))
            await asyncio.sleep(0 if leases else RETRY_S)

    async def _answer(self, lease: Lease) -> None:
        syscall = decode_job(lease.data, lease.job_id)
        self.seen.append(syscall)

        async def emit(offset: int, text: str) -> None:
            await self._queue.emit([(lease, Chunk(syscall.id, offset, text))])

        try:
            reply = Reply(syscall.id, await self._handler(syscall, emit), worker=self._name)
        except KernelError as error:
            reply = failure(syscall.id, error)
        ending = Ending(lease, "failed" if reply.error else "finished", encode(reply), ran_s=0.0)
        while True:
            try:
                await self._queue.finish(self._name, [ending], ClaimRequest(0, LEASE_S))
            except Unavailable:
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
