"""The one shape of what a module does: typed by its body, in one transaction, once.

    reads(MemoryHistory, reading.history)                       # sees, and changes nothing
    changes(MemoryClear, changing.clear, irreversible="clear")  # entered into the effect ledger
    calls(MemoryContext, reading.context)                       # asks models or Redis in between

A step gets its syscall as a `Work` of its own body: mypy refuses it under another one. It may run
again at any time, since its worker may die: what it changed and has entered is found and answered.

What a step takes away it notes (`Work.take`, the rule is in `approvals/irreversible.py`); no
transaction of an operation commits before all of that is allowed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, LiteralString, TypeVar

import msgspec

from aios_broker.access.audit import append_line, line_of
from aios_broker.access.requests import AgentRules
from aios_broker.contract.access import OperationClass
from aios_broker.contract.errors import UnknownModule
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.postgres.store import AgentRow, Cursor
from aios_workers.approvals.irreversible import Irreversible, Takings
from aios_workers.modules.services import Services

_EARLIER = "SELECT result FROM effect WHERE syscall_id = %s AND agent_id = %s"
_ENTER = "INSERT INTO effect (syscall_id, agent_id, kind, result) VALUES (%s, %s, %s, %s)"
_decoder: msgspec.json.Decoder[Result] = msgspec.json.Decoder(Result)

Values = Mapping[str, Any] | Sequence[Any]  # of a query's parameters
B = TypeVar("B", bound=Body)
B_co = TypeVar("B_co", bound=Body, covariant=True)


@dataclass(frozen=True, slots=True)
class Asked(Generic[B_co]):
    """One syscall as its operation sees it."""

    services: Services
    agent: AgentRow
    syscall: Syscall
    body: B_co  # of the syscall, or what a person made of it
    irreversible: tuple[OperationClass, ...] = ()  # what its operation is declared to take away
    limit_s: float | None = None  # of each of its transactions; None: that of the others

    @asynccontextmanager
    async def transaction(self, *locks: str) -> AsyncIterator[Work[B_co]]:
        """Yield the work of one transaction, which sees what the agent may see.

        It is committed when all that it took away is allowed.
        """
        async with self.services.store.as_agent(self.agent, *locks, limit_s=self.limit_s) as cursor:
            work = Work(self, cursor, Pending())
            yield work
            await work.ask()


@dataclass(slots=True)
class Pending:
    """What a transaction has to do before its commit, and after it."""

    taken: list[Irreversible] = field(default_factory=list)  # and not asked for yet
    rules: AgentRules | None = None  # of the asker, as they were when the first thing was taken
    made_files: set[int] = field(default_factory=set)  # their numbers: what it made takes nothing
    made_directories: set[int] = field(default_factory=set)
    afterwards: list[Callable[[], Awaitable[object]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Work(Generic[B_co]):
    """One syscall in its transaction."""

    asked: Asked[B_co]
    cursor: Cursor
    pending: Pending  # one for all that share the transaction

    @property
    def services(self) -> Services:
        """What the module stands on."""
        return self.asked.services

    @property
    def agent(self) -> AgentRow:
        """Who asks."""
        return self.asked.agent

    @property
    def body(self) -> B_co:
        """What is asked."""
        return self.asked.body

    async def agent_named(self, name: str | None) -> AgentRow:
        """Return an agent of the asker's tenant; None: the asker.

        Raises:
            UnknownAgent: The tenant has none of that name.
        """
        if name is None or name == self.agent.name:
            return self.agent
        return await self.services.store.agent(name, self.agent.tenant, self.cursor)

    async def rows(self, query: LiteralString, values: Values) -> list[Any]:
        """Return the rows of one query, which sees what the asker may see."""
        await self.cursor.execute(query, values)
        return await self.cursor.fetchall()

    async def kernel_rows(self, query: LiteralString, values: Values) -> list[Any]:
        """Return the rows of one query of the kernel's own, which sees all; one round trip."""
        connection = self.cursor.connection
        async with connection.pipeline():
            await connection.execute("SET LOCAL ROLE aios_steward")
            await self.cursor.execute(query, values)
            await connection.execute("SET LOCAL ROLE aios_agent")
        return await self.cursor.fetchall()

    async def take(self, what: Irreversible) -> None:
        """Note what this transaction takes away: it is asked for before the commit.

        What a person would be shown is made at once, while it is still there.

        Raises:
            TypeError: The operation is not declared to take such a thing away.
        """
        asked, pending = self.asked, self.pending
        if what.operation not in asked.irreversible:
            raise TypeError(f"{asked.syscall.kind} is not declared as {what.operation!r}")
        if pending.rules is None:
            pending.rules = await self.services.approvals.rules(self.cursor, asked.agent)
        pending.taken.append(await what.shown(pending.rules))

    async def ask(self) -> None:
        """Return when a person allowed what was taken so far, or need not be asked.

        The commit does it. A step does it before it changes what no transaction takes back.

        Raises:
            NeedsApproval, ApprovalDenied, ApprovalExpired: A person has to decide, or has decided.
        """
        asked, pending = self.asked, self.pending
        if pending.rules is None:
            return
        takings = Takings(tuple(pending.taken), pending.rules)
        pending.taken.clear()
        if takings.taken:
            await self.services.approvals.check(
                self.cursor, asked.agent, asked.syscall, asked.body, takings
            )

    async def enter(self, what: str, detail: Mapping[str, Any]) -> None:
        """Add a line on what was done to the audit log."""
        await append_line(self.cursor, line_of(self.asked.syscall, what, "done", dict(detail)))

    def then(self, follow: Callable[[], Awaitable[object]]) -> None:
        """Have this done once the transaction is committed; a crash in between skips it."""
        self.pending.afterwards.append(follow)

    async def follow(self) -> None:
        """Do what was to be done then."""
        for each in self.pending.afterwards:
            await each()


Step = Callable[[Work[B]], Awaitable[Result]]
Run = Callable[[Asked[B]], Awaitable[Result]]
Locks = Callable[[Asked[B]], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Operation(Generic[B]):
    """What a module does for one kind of body."""

    body: type[B]
    do: Run[B]
    irreversible: tuple[OperationClass, ...] = ()  # what it may take away: it may wait for a person

    async def run(
        self,
        services: Services,
        syscall: Syscall,
        *,
        decided: bool,
        limit_s: float | None = None,
    ) -> Result:
        """Run a syscall of this kind; `decided`: a person has decided about it, or edited it.

        `limit_s`: of each of its transactions; None: that of the others.

        Raises:
            NeedsApproval: A person has to be asked; nothing was changed.
        """
        agent = await services.store.vouched(syscall.agent, syscall.tenant)
        body = syscall.body
        if decided and self.irreversible:
            body = await services.approvals.body_of(agent, syscall)
        if not isinstance(body, self.body):
            raise no_operation(syscall)
        return await self.do(Asked(services, agent, syscall, body, self.irreversible, limit_s))


Operations = Mapping[type[object], Operation[Any]]


def table(*operations: Operation[Any]) -> Operations:
    """Return operations by the body that asks for each.

    Raises:
        ValueError: A body has two.
    """
    by_body = {each.body: each for each in operations}
    if len(by_body) < len(operations):
        raise ValueError("a body has two operations")
    return by_body


def reads(body: type[B], step: Step[B]) -> Operation[B]:
    """Return the operation of a step that changes nothing."""

    async def do(asked: Asked[B]) -> Result:
        async with asked.transaction() as work:
            return await step(work)

    return Operation(body, do)


def changes(
    body: type[B],
    step: Step[B],
    *,
    irreversible: OperationClass | tuple[OperationClass, ...] = (),
    locks: Locks[B] | None = None,
    after: Callable[[Services], Awaitable[object]] | None = None,
) -> Operation[B]:
    """Return the operation of a step that changes something, once however often it is run.

    `irreversible`: what it may take away; the step says what, by `Work.take`. `locks`
    names what nobody else changes meanwhile. `after` follows each commit, also that of a run which
    finds what an earlier one has changed: whose worker may have died before it.
    """

    async def do(asked: Asked[B]) -> Result:
        result = await run_once(asked, step, *(locks(asked) if locks is not None else ()))
        if after is not None:
            await after(asked.services)
        return result

    return calls(body, do, irreversible=irreversible)


def calls(
    body: type[B], do: Run[B], *, irreversible: OperationClass | tuple[OperationClass, ...] = ()
) -> Operation[B]:
    """Return an operation that does more than one transaction; it changes things by `run_once`."""
    taken = (irreversible,) if isinstance(irreversible, str) else irreversible
    return Operation(body, do, taken)


async def run_once(asked: Asked[B], step: Step[B], *locks: str) -> Result:
    """Run a step in one transaction with its entry in the effect ledger; return its result.

    A syscall that has an entry is not run: its result is the one that was entered. Its worker may
    have died after the commit and before the answer. The transaction holds the lock of the
    agent's syscall: who runs it at the same time waits. What the step left for `then` follows the
    commit.
    """
    async with asked.transaction(f"{asked.agent.id} {asked.syscall.id}", *locks) as work:
        earlier = await work.rows(_EARLIER, (asked.syscall.id, asked.agent.id))
        if earlier:
            return _decoder.decode(earlier[0].result)
        result = await step(work)
        entry = (asked.syscall.id, asked.agent.id, asked.syscall.kind, msgspec.json.encode(result))
        await work.cursor.execute(_ENTER, entry)
    await work.follow()
    return result


def no_operation(syscall: Syscall) -> UnknownModule:
    """Return the error of a body that the module has no operation for."""
    return UnknownModule(
        f"module {syscall.module!r} has no operation {syscall.kind!r}",
        field="body.type",
        remedy="send it to the queue of its own module",
    )
