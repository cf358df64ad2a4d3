"""Memory, storage and access, wired: one services, and a handler for each."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Module
from aios_broker.postgres.session import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from aios_workers.approvals.duty import ApprovalDuty, Webhook, sweeping
from aios_workers.approvals.gate import Gate
from aios_workers.config import WorkerConfig
from aios_workers.modules.access.operations import access_operations
from aios_workers.modules.handler import StateHandler
from aios_workers.modules.memory.operations import memory_operations, open_ram
from aios_workers.modules.services import Services
from aios_workers.modules.storage.host import AllowedDirectories
from aios_workers.modules.storage.operations import storage_operations
from aios_workers.modules.storage.watching import MountWatch, watching
from aios_workers.runtime.kernel_calls import SubmittedCalls
from aios_workers.search.embedder import open_embedder
from aios_workers.search.indexing import indexing


async def open_ground(config: WorkerConfig, name: str, stack: AsyncExitStack) -> Services:
    """Open what the state modules share; it is closed with the stack.

    Raises:
        InvalidConfig: There is no database, or the embedding model is not installed.
    """
    if config.database_url is None:
        raise InvalidConfig(
            "memory, storage and access keep what they have in Postgres",
            field="AIOS_DATABASE_URL",
            remedy="set it to the address of a Postgres with pgvector",
        )
    store = Store(config.database_url, name=name)
    stack.push_async_callback(store.aclose)
    connection = Connection(config.redis_url, name=f"{name}.services")
    stack.push_async_callback(connection.aclose)
    functions, keys = Functions(connection), Keys(config.key_prefix)
    calls = await stack.enter_async_context(SubmittedCalls(functions, keys, config.redis_url, name))
    embedder = await stack.enter_async_context(open_embedder(config, calls))
    unembedded = asyncio.Event()
    await stack.enter_async_context(indexing(store, embedder, unembedded))
    if config.storage_mounts:
        watch = MountWatch(store, AllowedDirectories(config.storage_mounts))
        await stack.enter_async_context(watching(watch, unembedded))
    webhook = Webhook(config.approval_webhook, config.approval_webhook_secret)
    duty = ApprovalDuty(store, functions, keys, webhook)
    await stack.enter_async_context(sweeping(duty))
    gate = Gate(store, ttl_s=config.approval_ttl_s)
    return Services(store, embedder, calls, functions, keys, gate, unembedded)


def state_handler(module: Module, services: Services, config: WorkerConfig) -> StateHandler:
    """Return the handler of one state module."""
    match module:
        case "memory":
            ram = open_ram(services)
            return StateHandler(services, memory_operations(ram), ram)
        case "storage":
            return StateHandler(services, storage_operations(config))
        case "access":
            return StateHandler(services, access_operations(services))
        case "llm" | "tool":
            raise InvalidConfig(f"{module} keeps no state", field="module")
