"""The storage module on a real Postgres, called as its handler calls it; no queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from aios_broker.contract.storage import Entry, StorageBody
from aios_broker.contract.syscall import Body, Syscall, new_id
from aios_broker.postgres.store import AgentRow, Cursor, Store
from aios_broker.retry import patiently
from aios_workers.approvals.irreversible import Irreversible, Takings
from aios_workers.approvals.service import ApprovalService, NeedsApproval
from aios_workers.config import WorkerConfig
from aios_workers.modules.refusals import Refusals
from aios_workers.modules.services import Services, storage_limits
from aios_workers.modules.storage.operations import STORAGE_OPERATIONS
from tests.state_scene import AUDIT_KEY, HashedWords

NOWHERE = Path("/nonexistent")  # of no file of cores


class OpenApprovals(ApprovalService):
    """Lets everything through and remembers what it was asked; or stops it all."""

    def __init__(self) -> None:
        self.asked: list[Irreversible] = []
        self.is_closed = False

    async def check(
        self, cursor: Cursor, agent: AgentRow, syscall: Syscall, body: Body, takings: Takings
    ) -> None:
        self.asked += takings.taken
        if self.is_closed:
            raise NeedsApproval(agent, syscall, body, takings)


@dataclass
class Scene:
    """Agents of one tenant, and the module's operations."""

    services: Services
    approvals: OpenApprovals
    tenant: str = "default"
    calls: list[Syscall] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.services.store

    async def ask(self, body: Struct, agent: str = "ann", *, id: str = "") -> Any:  # noqa: ANN401
        """Run one syscall as the handler does, and return its result."""
        syscall = Syscall(
            id=id or new_id(), agent=agent, body=cast("Body", body), tenant=self.tenant
        )
        self.calls.append(syscall)
        return await patiently(lambda: self._once(syscall))

    async def _once(self, syscall: Syscall) -> Any:  # noqa: ANN401
        operation = STORAGE_OPERATIONS[type(syscall.body)]
        return await operation.run(self.services, syscall, decided=False)

    async def again(self) -> Any:  # noqa: ANN401
        """Run the last syscall once more, as after the death of its worker."""
        return await self._once(self.calls[-1])

    async def entry(self, body: StorageBody, agent: str = "ann") -> Entry:
        """Run one syscall that returns an entry."""
        result = await self.ask(body, agent)
        assert isinstance(result, Entry)
        return result

    async def rows(self, query: str, *values: object) -> list[Any]:
        """Return the rows of a query that sees everything."""
        async with self.store.as_steward() as cursor:
            await cursor.execute(query.encode(), values)
            return await cursor.fetchall()


@asynccontextmanager
async def storage_scene(
    database_url: str,
    *,
    calls: object = None,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[Scene]:
    """Yield the module on a database."""
    config = WorkerConfig(
        state_dir=NOWHERE, redis_url="redis://unused", database_url=database_url, **settings
    )
    store, approvals = (
        Store(database_url, name="storage-test", audit_key=AUDIT_KEY),
        OpenApprovals(),
    )
    unused = cast("Any", None)
    services = Services(
        store,
        HashedWords(),
        cast("Any", calls),
        unused,
        unused,
        approvals,
        unused,
        storage_limits(config),
        Refusals(store),
    )
    try:
        yield Scene(services, approvals)
    finally:
        await store.aclose()
