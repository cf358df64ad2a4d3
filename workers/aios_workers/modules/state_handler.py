"""Memory, storage and access: the handler that they share, and what it stands on, opened.

Rows whose time is over, and what Redis lost, are tidied up meanwhile.
"""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any

from prometheus_client.core import Metric

from aios_broker.access.audit import AuditWatch
from aios_broker.access.suspensions import tidy_suspensions
from aios_broker.access.tokens import tidy_tokens
from aios_broker.comparing import Comparer
from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.memory import MemoryContext, MemorySearch
from aios_broker.contract.names import Module
from aios_broker.contract.storage import StorageSearch
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.control import Control
from aios_broker.queues.keys import Keys
from aios_broker.queues.secret import KernelSecret
from aios_broker.queues.tokens import Tokens
from aios_broker.retry import patiently, periodic_task
from aios_workers.approvals.service import ApprovalService, ApprovalSweep, NeedsApproval
from aios_workers.approvals.webhook import Webhook, WebhookSender
from aios_workers.config import WorkerConfig
from aios_workers.modules.access import groups
from aios_workers.modules.access.operations import ACCESS_OPERATIONS
from aios_workers.modules.access.secret import keep_secret
from aios_workers.modules.memory.block import Blocks, memory_functions
from aios_workers.modules.memory.operations import MEMORY_OPERATIONS
from aios_workers.modules.operation import Operation, Operations, no_operation
from aios_workers.modules.refusals import Refusals
from aios_workers.modules.services import Services, storage_limits
from aios_workers.modules.storage.mounts import MountWatch
from aios_workers.modules.storage.operations import STORAGE_OPERATIONS
from aios_workers.runtime.executor import Done, Outcome
from aios_workers.runtime.runs import Run
from aios_workers.search.embedder import open_stores
from aios_workers.search.indexing import index_step

OPERATIONS: dict[Module, Operations] = {
    "memory": MEMORY_OPERATIONS,
    "storage": STORAGE_OPERATIONS,
    "access": ACCESS_OPERATIONS,
}
CAPACITY = 32  # syscalls at once, without those that wait for a model
_SEARCHES = (MemorySearch, MemoryContext, StorageSearch)
TIDY_EVERY_S = 30.0
EXPIRED_AT_ONCE = 1_000  # notes of one transaction
_EXPIRED = """
    WITH gone AS (
        DELETE FROM note WHERE id IN (
            SELECT id FROM note WHERE expires_at <= now() LIMIT %s FOR UPDATE SKIP LOCKED)
        RETURNING id
    )
    DELETE FROM access_grant WHERE object_kind = 'note' AND object_id IN (SELECT id FROM gone)
"""
# A syscall lives for a day at most (its deadline): after two nobody runs it again.
_OLD_EFFECTS = "DELETE FROM effect WHERE at < now() - interval '2 days'"
_OLD_LINKS = "DELETE FROM share_link WHERE expires_at < now()"
# The audit log keeps what was asked and decided; the arguments of a write may be 4 MiB.
_OLD_APPROVALS = """
    DELETE FROM approval WHERE state IN ('used', 'denied', 'expired')
       AND expires_at < now() - interval '30 days'
"""
_OLD_GRANTS = "DELETE FROM access_grant WHERE expires_at < now()"


class StateHandler:
    """Runs the operations of one state module.

    While a server is away a syscall is tried again, until its deadline.
    """

    capacity = CAPACITY
    cores: tuple[str, ...] = ()  # what needs a model is a syscall of its own

    def __init__(self, services: Services, module: Module) -> None:
        self._services = services
        self._module = module
        self._has_model = services.embedder.dimension > 0

    def metrics(self) -> Iterable[Metric]:
        """Yield the module's own numbers, where it has some."""
        return self._services.blocks.metrics() if self._module == "memory" else ()

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run one syscall, or park it where a person has to decide first."""
        operation = OPERATIONS[self._module].get(type(syscall.body))
        if operation is None:
            raise no_operation(syscall)
        if syscall.needs or (self._has_model and isinstance(syscall.body, _SEARCHES)):
            run.step_aside()  # it waits for a model
        decided, limits_s = run.lease.decided, self._services.store.limits_s()

        async def step() -> Outcome:
            return await self._try(operation, syscall, decided=decided, limit_s=next(limits_s))

        return await patiently(step)

    async def _try(
        self, operation: Operation[Any], syscall: Syscall, *, decided: bool, limit_s: float
    ) -> Outcome:
        try:
            return Done(
                await operation.run(self._services, syscall, decided=decided, limit_s=limit_s)
            )
        except NeedsApproval as needs:
            return await self._services.approvals.ask(needs)
        except AccessDenied as refused:
            await self._services.refusals.note(syscall, refused)
            raise

    async def close(self) -> None:
        """Nothing of its own to free: the services are shared."""


async def open_services(config: WorkerConfig, name: str, stack: AsyncExitStack) -> Services:
    """Open what the state modules share; it is closed with the stack.

    Raises:
        InvalidConfig: There is no database, the embedding model is not installed, or the audit
            log's key can be neither read nor made.
    """
    key = config.audit_folder.made_key()
    store, functions, calls, embedder = await open_stores(config, name, stack, audit_key=key)
    keys = Keys(config.key_prefix)
    comparer = Comparer()
    approvals = ApprovalService(store, ttl_s=config.approval_ttl_s, comparer=comparer)
    blocks = Blocks(store, memory_functions(functions.connection), keys)
    limits = storage_limits(config)
    refusals = Refusals(store)
    services = Services(
        store,
        embedder,
        calls,
        functions,
        keys,
        approvals,
        blocks,
        limits,
        refusals,
        comparer=comparer,
    )
    stack.push_async_callback(refusals.close)
    for task in _periodic_tasks(config, services):
        await stack.enter_async_context(task)
    return services


def _periodic_tasks(
    config: WorkerConfig, services: Services
) -> Iterable[AbstractAsyncContextManager[None]]:
    """Yield what is done beside the syscalls, over and over."""
    store, embedder, unembedded = services.store, services.embedder, services.unembedded
    if embedder.dimension:  # else there is no model: rows wait for the day that there is one
        step = partial(index_step, store, embedder)
        trouble = "notes and files wait for their vectors"
        yield periodic_task("indexing", step, trouble, wake=unembedded)
    if config.storage_mounts:
        step = partial(MountWatch(store, services.limits.mountable).step, unembedded)
        yield periodic_task("mounts", step, "mounted directories wait to be read")
    watch = AuditWatch(store, config.audit_folder)
    yield periodic_task("audit", watch.step, "no new line of the audit log is noted")
    trouble = "the audit log does not say how many refusals it leaves out"
    yield periodic_task("refusals", services.refusals.step, trouble)
    sweep = ApprovalSweep(store, services.functions, services.keys)
    yield periodic_task("approvals", sweep.step, "approvals wait")
    if (url := config.approval_webhook) is not None:
        secret, private = config.approval_webhook_secret, config.approval_webhook_private
        sender = WebhookSender(store, Webhook(url, secret, private))
        yield periodic_task("webhook", sender.step, "nobody is told what waits for a person")
    yield periodic_task("housekeeping", partial(tidy, services), "nothing is tidied up")


async def tidy(services: Services) -> float:
    """Tidy up over all agents, a bounded part of the notes that have expired.

    Return how long to wait before the next time, in s.
    """
    await groups.refresh(services)
    async with services.store.as_steward() as cursor:
        await cursor.execute(_EXPIRED, (EXPIRED_AT_ONCE,))
        for statement in (_OLD_EFFECTS, _OLD_LINKS, _OLD_GRANTS, _OLD_APPROVALS):
            await cursor.execute(statement)
    tokens = Tokens(services.functions.connection, services.keys)
    await tidy_tokens(services.store, tokens)
    await tidy_suspensions(services.store, Control(services.functions, services.keys))
    await keep_secret(services.store, KernelSecret(services.functions.connection, services.keys))
    return TIDY_EVERY_S
