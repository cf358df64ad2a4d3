"""The handler that memory, storage and access share."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.syscall import Syscall
from aios_workers.approvals.gate import NeedsApproval
from aios_workers.modules.access.audit import AuditLine, append_line
from aios_workers.modules.operation import AnyOperation, Operations, no_operation
from aios_workers.modules.services import Services
from aios_workers.runtime.executor import Done, Measured, Outcome, Run
from aios_workers.runtime.retry import patiently

CAPACITY = 32  # syscalls at once: more than there are connections, some wait for a model


class StateHandler:
    """Runs the operations of one state module.

    While a server is away a syscall is tried again, until its deadline.
    """

    def __init__(
        self, services: Services, operations: Operations, measured: Measured | None = None
    ) -> None:
        self._measured = measured
        self._services = services
        self._operations = operations

    @property
    def capacity(self) -> int:
        """How many syscalls it runs at the same time."""
        return CAPACITY

    def metrics(self) -> Iterable[Metric]:
        """Yield the module's own numbers, where it has some."""
        return self._measured.metrics() if self._measured is not None else ()

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run one syscall, or park it where a person has to decide first."""
        operation = self._operations.get(type(syscall.body))
        if operation is None:
            raise no_operation(syscall)
        decided = run.lease.decided
        return await patiently(lambda: self._try(operation, syscall, decided=decided))

    async def _try(self, operation: AnyOperation, syscall: Syscall, *, decided: bool) -> Outcome:
        try:
            return Done(await operation.run(self._services, syscall, decided=decided))
        except NeedsApproval as needs:
            return await self._services.gate.ask(needs)
        except AccessDenied as refused:
            await self._note_refusal(syscall, refused)
            raise

    async def _note_refusal(self, syscall: Syscall, refused: AccessDenied) -> None:
        async with self._services.store.as_steward() as cursor:
            await append_line(
                cursor,
                AuditLine(
                    syscall.tenant,
                    syscall.agent,
                    syscall.kind,
                    str(refused.field),
                    "denied",
                    syscall.id,
                    {"message": refused.message},
                ),
            )

    async def close(self) -> None:
        """Nothing of its own to free: the services is shared."""
