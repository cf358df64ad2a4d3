"""A worker, wired: its connections, its handler, its loop, and what ends it when it hangs."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from aios_broker.queues.contexts import Contexts
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import PolicyRow, WorkerCard
from aios_broker.queues.tokens import Tokens
from aios_broker.redis.connection import Connection
from aios_workers.runtime.executor import Executor
from aios_workers.runtime.loop import Worker, WorkerSpec
from aios_workers.runtime.registry import LoadedModule
from aios_workers.runtime.slices import (
    Kernel,
    LoadSpilled,
    PolicyWatch,
    SliceEnds,
    nothing_spilled,
)
from aios_workers.runtime.streams import StreamSender

HOSTNAME_CHARACTERS = 40  # of a worker's name
DISTRIBUTION = "aios-broker"
HUNG_LEASES = 3  # so many leases without one turn of the loop; after one, all are lost
CHECKS = 4  # of the loop, within that time


def worker_name(role: str) -> str:
    """Return the name of this process's worker: host, process id and module or role."""
    host = socket.gethostname().partition(".")[0][:HOSTNAME_CHARACTERS]
    return f"{host}.{os.getpid()}.{role}"


def _release() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # a checkout that is not installed
        return ""


@asynccontextmanager
async def wired(
    queue: ModuleQueue,
    spec: WorkerSpec,
    loaded: LoadedModule,
    policy: Callable[[], PolicyRow],
    load_spilled: LoadSpilled = nothing_spilled,
) -> AsyncIterator[tuple[Executor, WorkerCard]]:
    """Give what runs a worker's jobs and how it shows itself; its handler is closed behind it."""
    kernel = Kernel(
        queue=queue,
        policy=policy,
        slices=SliceEnds(queue, spec.name, ClaimRequest(0, spec.limits.lease_s, loaded.cores)),
        streams=StreamSender(queue),
        contexts=Contexts(queue.functions, queue.keys),
        load_spilled=load_spilled,
    )
    handler = loaded.make_handler(kernel)
    try:
        tokens = Tokens(queue.functions.connection, spec.keys)
        yield (
            Executor(handler, spec.module, tokens, spec.name),
            WorkerCard(
                spec.name,
                spec.module,
                os.getpid(),
                socket.gethostname(),
                handler.capacity,
                loaded.cores,
                _release(),
            ),
        )
    finally:
        await handler.close()


@asynccontextmanager
async def open_worker(
    spec: WorkerSpec, loaded: LoadedModule, load_spilled: LoadSpilled = nothing_spilled
) -> AsyncIterator[Worker]:
    """Wire a worker; free all that it holds, its core too, when the context is left."""
    async with AsyncExitStack() as stack:
        connection = Connection(spec.redis_url, name=spec.name)
        stack.push_async_callback(connection.aclose)
        blocking = Connection(spec.redis_url, name=f"{spec.name}.wait")
        stack.push_async_callback(blocking.aclose)
        functions = Functions(connection)
        queue = ModuleQueue(functions, spec.module, spec.keys)
        policy = PolicyWatch(Control(functions, spec.keys), spec.module).current
        executor, card = await stack.enter_async_context(
            wired(queue, spec, loaded, policy, load_spilled)
        )
        yield Worker(spec, queue, blocking, executor, card)


@asynccontextmanager
async def watched(lease_s: float) -> AsyncIterator[None]:
    """For the length of a block, see that the loop turns. One that hangs ends the process.

    The thread that watches needs nothing of Python: code that never lets go of the interpreter
    is noticed, too. It writes where each thread stands to standard error, and exits with 1.
    """
    watching = asyncio.create_task(_watch(HUNG_LEASES * lease_s))
    try:
        yield
    finally:
        watching.cancel()
        faulthandler.cancel_dump_traceback_later()


async def _watch(limit_s: float) -> None:
    while True:
        faulthandler.dump_traceback_later(limit_s, exit=True)  # begins anew with each call
        await asyncio.sleep(limit_s / CHECKS)
