"""The handler that memory, storage and access share: who asks, what runs, what a person decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import Metric

from aios_broker.contract.errors import AccessDenied, UnknownModule
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.store.audit import AuditLine, append_line
from aios_broker.store.session import AgentRow
from aios_workers.gate import NeedsApproval
from aios_workers.patience import patiently
from aios_workers.run import Done, Measured, Outcome, Run
from aios_workers.state_ground import StateGround

CAPACITY = 32  # syscalls at once: more than there are connections, some wait for a model


@dataclass(frozen=True, slots=True)
class Asked:
    """One syscall of a state module as an operation sees it."""

    agent: AgentRow
    syscall: Syscall
    body: Any  # of the operation's own type; a person may have edited it
    run: Run


Operation = Callable[[Asked], Awaitable[Result]]
Operations = Mapping[type[Body], Operation]


class StateHandler:
    """Runs the operations of one state module.

    An operation may be run again after it was committed: it looks into the effect ledger first.
    While a server is away it is tried again until the syscall's deadline.
    """

    def __init__(
        self, ground: StateGround, module: str, operations: Operations,
        measured: Measured | None = None,
    ) -> None:  # fmt: skip
        self._measured = measured
        self._ground = ground
        self._module = module
        self._operations = operations

    @property
    def capacity(self) -> int:
        """How many syscalls it runs at the same time."""
        return CAPACITY

    @property
    def cores(self) -> tuple[str, ...]:
        """None: what needs a model is a syscall of its own."""
        return ()

    def metrics(self) -> Iterable[Metric]:
        """Yield the module's own numbers, where it has some."""
        return self._measured.metrics() if self._measured is not None else ()

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run one syscall, or park it where a person has to decide first."""
        operation = self._operations.get(type(syscall.body))
        if operation is None:
            raise UnknownModule(
                f"module {self._module!r} has no operation {syscall.kind!r}", field="body.type",
                remedy="send it to the queue of its own module",
            )  # fmt: skip
        return await patiently(lambda: self._run_once(operation, run, syscall))

    async def _run_once(self, operation: Operation, run: Run, syscall: Syscall) -> Outcome:
        ground = self._ground
        agent = await ground.store.vouched(syscall.agent, syscall.tenant)
        body = await ground.gate.body_of(agent, syscall)
        try:
            return Done(await operation(Asked(agent, syscall, body, run)))
        except NeedsApproval as needs:
            return await ground.gate.ask(agent, syscall, needs)
        except AccessDenied as refused:
            await self._note_refusal(agent, syscall, refused)
            raise

    async def _note_refusal(self, agent: AgentRow, syscall: Syscall, refused: AccessDenied) -> None:
        async with self._ground.store.as_steward() as cursor:
            await append_line(cursor, AuditLine(
                agent.tenant, agent.name, syscall.kind, str(refused.field), "denied", syscall.id,
                {"message": refused.message},
            ))  # fmt: skip

    async def close(self) -> None:
        """Nothing of its own to free: the ground is shared."""
