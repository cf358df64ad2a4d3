"""What every operation of the module works with, and how a changing one is run: once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from aios_broker.contract.access import OperationClass
from aios_broker.contract.paths import is_within
from aios_broker.contract.reply import Result
from aios_broker.store.effects import earlier_effect, enter_effect
from aios_broker.store.session import AgentRow, Cursor
from aios_workers.gate import Irreversible
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked, Operation
from aios_workers.storage.host import AllowedDirectories

SCRATCH = "/scratch"  # below it an agent's own files are deleted and overwritten without a person
_NAMESPACE_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('aios.storage', %s))"


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """What the operator allows."""

    max_bytes: int  # of one agent, versions included; an agent's own limit goes before it
    keep_versions: int  # of one file; older ones are dropped
    allowed: AllowedDirectories  # of the host, to be mounted


@dataclass(frozen=True, slots=True)
class Work:
    """One syscall in its transaction."""

    ground: StateGround
    limits: StorageLimits
    asked: Asked
    owner: AgentRow  # of the namespace
    cursor: Cursor
    allowed: bool = False  # a person was asked for a whole plan that this is a step of

    @property
    def is_own(self) -> bool:
        """Whether the namespace is the asker's own."""
        return self.owner.id == self.asked.agent.id

    async def rows(self, query: LiteralString, values: dict[str, Any]) -> list[Any]:
        """Return the rows of one query, which sees what the asker may see."""
        await self.cursor.execute(query, values)
        return await self.cursor.fetchall()

    async def kernel_rows(self, query: LiteralString, values: dict[str, Any]) -> list[Any]:
        """Return the rows of one query of the kernel's own, which sees all; one round trip."""
        connection = self.cursor.connection
        async with connection.pipeline():
            await connection.execute("SET LOCAL ROLE aios_steward")
            await self.cursor.execute(query, values)
            await connection.execute("SET LOCAL ROLE aios_agent")
        return await self.cursor.fetchall()

    async def lock_namespace(self) -> None:
        """Wait until nobody else changes the namespace; free again when the transaction ends."""
        await self.cursor.execute(_NAMESPACE_LOCK, (self.owner.id,))

    async def check_gate(
        self, operation: OperationClass, what: str, paths: Sequence[str], *,
        lossy: bool = True, diff: str = "",
    ) -> None:  # fmt: skip
        """Return when a person allowed it, or need not be asked.

        Raises:
            NeedsApproval, ApprovalDenied, ApprovalExpired: A person has to decide, or has decided.
        """
        if self.allowed:
            return
        scratch = self.is_own and all(is_within(path, SCRATCH) for path in paths)
        why = Irreversible(operation, what, lossy=lossy, scratch=scratch, diff=diff)
        asked = self.asked
        await self.ground.gate.check(self.cursor, asked.agent, asked.syscall, asked.body, why)


Step = Callable[[Work], Awaitable[Result]]


async def owner_of(ground: StateGround, asked: Asked) -> AgentRow:
    """Return whose namespace a body means.

    Raises:
        UnknownAgent: The tenant has no agent of that name.
    """
    named = getattr(asked.body, "owner", None)
    if named is None or named == asked.agent.name:
        return asked.agent
    return await ground.store.agent(named, asked.agent.tenant)


def reading(ground: StateGround, limits: StorageLimits, step: Step) -> Operation:
    """Return the operation that runs a step which changes nothing."""

    async def operation(asked: Asked) -> Result:
        owner = await owner_of(ground, asked)
        async with ground.store.as_agent(asked.agent) as cursor:
            return await step(Work(ground, limits, asked, owner, cursor))

    return operation


def changing(
    ground: StateGround, limits: StorageLimits, step: Step, *, own: bool = False
) -> Operation:
    """Return the operation that runs a step which changes a namespace, once per syscall.

    With `own` it is the asker's namespace that changes, whoever's the body names.
    """

    async def operation(asked: Asked) -> Result:
        owner = asked.agent if own else await owner_of(ground, asked)
        async with ground.store.as_agent(asked.agent) as cursor:
            earlier = await earlier_effect(cursor, asked.syscall)
            if earlier is not None:
                return earlier
            work = Work(ground, limits, asked, owner, cursor)
            await work.lock_namespace()
            result = await step(work)
            await enter_effect(cursor, asked.agent, asked.syscall, result)
        ground.unembedded.set()
        return result

    return operation
