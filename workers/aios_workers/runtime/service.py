"""A worker, wired: its connections, its handler and its loop."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from aios_broker.contract.names import Module
from aios_broker.queues.contexts import Contexts
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import WorkerCard
from aios_broker.queues.tokens import Tokens
from aios_broker.redis.connection import Connection
from aios_workers.runtime.commands import CommandChannel
from aios_workers.runtime.executor import Executor
from aios_workers.runtime.kernel_port import (
    KernelPort,
    LoadSpilled,
    Policy,
    Snapshots,
    nothing_spilled,
)
from aios_workers.runtime.loop import Limits, Links, Worker
from aios_workers.runtime.policy_watch import PolicyWatch
from aios_workers.runtime.registry import LoadedModule
from aios_workers.runtime.run import Handler
from aios_workers.runtime.slices import SliceDesk
from aios_workers.runtime.streams import ChunkDesk

HOSTNAME_CHARACTERS = 40  # of a worker's name
DISTRIBUTION = "aios-broker"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands: its name, its module, its Redis, and how long it holds on."""

    name: str
    module: Module
    redis_url: str
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)


def worker_name(role: str) -> str:
    """Return the name of this process's worker: host, process id and module or role."""
    host = socket.gethostname().partition(".")[0][:HOSTNAME_CHARACTERS]
    return f"{host}.{os.getpid()}.{role}"


def card_of(place: Place, handler: Handler) -> WorkerCard:
    """Return how a worker shows itself."""
    try:
        release = version(DISTRIBUTION)
    except PackageNotFoundError:  # a checkout that is not installed
        release = ""
    return WorkerCard(
        place.name,
        place.module,
        os.getpid(),
        socket.gethostname(),
        handler.capacity,
        handler.cores,
        release,
    )


def port_of(
    queue: ModuleQueue,
    place: Place,
    cores: tuple[str, ...],
    policy: Policy,
    load_spilled: LoadSpilled = nothing_spilled,
) -> KernelPort:
    """Return the kernel as the handler of this worker sees it."""
    return KernelPort(
        slices=SliceDesk(queue, place.name, ClaimRequest(0, place.limits.lease_s, cores)),
        chunks=ChunkDesk(queue),
        policy=policy,
        snapshots=Snapshots(queue, load_spilled),
        contexts=Contexts(queue.functions, queue.keys),
    )


@asynccontextmanager
async def open_worker(
    place: Place, loaded: LoadedModule, load_spilled: LoadSpilled = nothing_spilled
) -> AsyncIterator[Worker]:
    """Wire a worker; free all that it holds, its core too, when the context is left."""
    async with AsyncExitStack() as stack:
        connection = Connection(place.redis_url, name=place.name)
        stack.push_async_callback(connection.aclose)
        blocking = Connection(place.redis_url, name=f"{place.name}.look")
        stack.push_async_callback(blocking.aclose)
        functions = Functions(connection)
        queue = ModuleQueue(functions, place.module, place.keys)
        policy = PolicyWatch(Control(functions, place.keys), place.module)
        handler = loaded.make_handler(port_of(queue, place, loaded.cores, policy, load_spilled))
        stack.push_async_callback(handler.close)
        links = Links(
            queue, blocking, CommandChannel(place.redis_url, place.keys.commands(place.name))
        )
        border = Executor(handler, place.module, Tokens(connection, place.keys), place.name)
        yield Worker(links, handler, border, card_of(place, handler), place.limits)
