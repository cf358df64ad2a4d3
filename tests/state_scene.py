"""Memory, storage and access on a real Postgres and a real Redis, called as their handlers are."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import pytest
from numpy.typing import NDArray

from aios_broker.access.deciders import Decider
from aios_broker.access.requests import Decision, decide, find_approvals
from aios_broker.access.rights import Right, set_right
from aios_broker.contract.access import (
    AccessGroupAdd,
    AccessGroupCreate,
    AccessRegister,
    Approval,
    TokenIssued,
)
from aios_broker.contract.job import with_token, without_tokens
from aios_broker.contract.llm import LlmBody, LlmChat, LlmCount
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import ChatResult, CountResult, Result, Usage
from aios_broker.contract.syscall import Body, Syscall, new_id
from aios_broker.contract.tokens import new_token
from aios_broker.places import Holder
from aios_broker.postgres.store import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from aios_broker.retry import patiently
from aios_workers.approvals.service import ApprovalService, NeedsApproval
from aios_workers.config import WorkerConfig
from aios_workers.modules.memory.block import Blocks, memory_functions
from aios_workers.modules.refusals import Refusals
from aios_workers.modules.services import Embedder, Services, storage_limits
from aios_workers.modules.state_handler import OPERATIONS
from aios_workers.search.indexing import embed_missing
from tests.queue_user import proves

ALL_OPERATIONS = {body: each for table in OPERATIONS.values() for body, each in table.items()}
OPERATOR = Decider("operator:test")
MODEL = "all-MiniLM-L6-v2-int8"  # whose index the migrations build
DIMENSION = 384

AUDIT_KEY = bytes(range(32))
NOWHERE = Path("/nonexistent")  # of no file of cores


class HashedWords:
    """An embedder without a model: texts that share words lie near each other."""

    model = MODEL
    dimension = DIMENSION

    async def embed(self, texts: Sequence[str], holder: Holder) -> NDArray[np.float32]:
        rows = np.full((len(texts), self.dimension), 1e-6, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
                row += np.random.default_rng(seed).standard_normal(self.dimension)
        lengths: NDArray[np.float32] = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / lengths


class Answers:
    """Kernel calls that answer as a test says; tokens are words."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}  # per step
        self.asked: list[tuple[str, LlmBody]] = []

    async def call(self, asked: Syscall, body: LlmBody, step: str) -> Result:
        self.asked.append((step, body))
        if isinstance(body, LlmCount):
            return CountResult(tuple(len(text.split()) for text in body.texts), body.core or "")
        assert isinstance(body, LlmChat)
        return ChatResult(self.texts[step], "stop", "test", Usage(1, 1))


class NeverAsks(ApprovalService):
    """People are not what is tested here."""

    async def check(self, *_: object) -> None:
        return


@dataclass
class StateScene:
    """The three modules, with real approvals."""

    services: Services
    answers: Answers
    tenant: str = "default"
    decided: set[str] = field(default_factory=set)  # ids of syscalls whose leases would say so

    @property
    def store(self) -> Store:
        return self.services.store

    def syscall(self, agent: str, body: Body, *, id: str = "", **fields: Any) -> Syscall:  # noqa: ANN401
        return Syscall(id=id or new_id(), agent=agent, body=body, tenant=self.tenant, **fields)

    async def register(
        self,
        asker: str,
        agent: str,
        *,
        approved: bool = False,
        **fields: Any,  # noqa: ANN401
    ) -> TokenIssued:
        """Register an agent as a client does: it makes the token, and sends the digest.

        `approved`: the operator is asked, and approves.
        """
        asked = self.syscall(asker, AccessRegister(agent, token=new_token(), **fields))
        sent = without_tokens(asked)
        if approved:
            with pytest.raises(NeedsApproval):
                await self.run(sent)
            await self.decide(sent.id, Decision("approved"))
        issued = with_token(asked, await self.run(sent))
        assert isinstance(issued, TokenIssued)
        return issued

    async def proves(self, token: str, agent: str, tenant: str = "default") -> bool:
        """Tell whether the kernel takes a syscall with this token from this agent."""
        return await proves(self.services.functions, token, Owner(tenant, agent))

    async def ask(self, agent: str, body: Body, *, id: str = "") -> Any:  # noqa: ANN401
        """Run one syscall; `NeedsApproval` where it would be parked, its request then waits."""
        return await self.run(self.syscall(agent, body, id=id))

    async def run(self, syscall: Syscall) -> Any:  # noqa: ANN401
        """Run a syscall as the handler does."""
        return await patiently(lambda: self._once(syscall))

    async def _once(self, syscall: Syscall) -> Any:  # noqa: ANN401
        operation = ALL_OPERATIONS[type(syscall.body)]
        try:
            return await operation.run(self.services, syscall, decided=syscall.id in self.decided)
        except NeedsApproval as needs:
            await self.services.approvals.ask(needs)
            await self.services.functions.connection.execute("HSET", _live(syscall), syscall.id, "")
            raise

    async def cancel(self, syscall: Syscall) -> None:
        """End a syscall that waits for a person, as `aios kill` does in the queue."""
        await self.services.functions.connection.execute("HDEL", _live(syscall), syscall.id)

    async def approved(self, agent: str, body: Body) -> Any:  # noqa: ANN401
        """Run one syscall, and have the operator approve what it asks for."""
        syscall = self.syscall(agent, body)
        try:
            return await self.run(syscall)
        except NeedsApproval:
            await self.decide(syscall.id, Decision("approved"))
            return await self.run(syscall)

    async def approval_of(self, syscall_id: str) -> Approval:
        async with self.store.as_steward() as cursor:
            [approval] = await find_approvals(cursor, syscall_id, 2)
        return approval

    async def decide(
        self, syscall_id: str, decision: Decision, decider: Decider = OPERATOR
    ) -> Approval:
        approval = await self.approval_of(syscall_id)
        async with self.store.as_steward() as cursor:
            decided = await decide(cursor, approval.id, decider, decision)
        self.decided.add(syscall_id)
        return decided

    async def known(self, *agents: str) -> None:
        """Make agents known, as their first syscall does."""
        for agent in agents:
            await self.store.vouched(agent, self.tenant)

    async def allow(self, agent: str, *rights: Right) -> None:
        """Have the operator let an agent do what is his to give, as `aios agents allow` does."""
        whose = await self.store.vouched(agent, self.tenant)
        async with self.store.as_steward() as cursor:
            for right in rights:
                await set_right(cursor, whose, right, OPERATOR.name, given=True)

    async def group(self, name: str, admin: str, *members: str) -> None:
        """Make a group with these members."""
        await self.known(admin, *members)
        await self.ask(admin, AccessGroupCreate(name))
        for member in members:
            await self.approved(admin, AccessGroupAdd(name, member))

    async def embedded(self) -> None:
        """Give all that is written its vector."""
        done = 1
        while done:
            done = await embed_missing(self.store, self.services.embedder)

    async def rows(self, query: LiteralString, *values: object) -> list[Any]:
        """Return the rows of a query that sees everything."""
        async with self.store.as_steward() as cursor:
            await cursor.execute(query, values)
            return await cursor.fetchall()


def _live(syscall: Syscall) -> str:
    return Keys().own(f"live:{syscall.module}")


@asynccontextmanager
async def state_scene(
    redis_url: str,
    database_url: str,
    *,
    approvals: Callable[[Store], ApprovalService] = ApprovalService,
    embedder: Embedder | None = None,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[StateScene]:
    """Yield the modules on these servers."""
    config = WorkerConfig(
        state_dir=NOWHERE, redis_url=redis_url, database_url=database_url, **settings
    )
    store, connection = (
        Store(database_url, name="state-test", audit_key=AUDIT_KEY),
        Connection(redis_url),
    )
    functions, answers = Functions(connection), Answers()
    services = Services(
        store,
        embedder or HashedWords(),
        answers,
        functions,
        Keys(),
        approvals(store),
        Blocks(store, memory_functions(connection), Keys()),
        storage_limits(config),
        Refusals(store),
    )
    try:
        yield StateScene(services, answers)
    finally:
        await store.aclose()
        await connection.aclose()
