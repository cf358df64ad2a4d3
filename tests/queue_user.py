"""A client, a worker and a scheduler for tests, step by step, on the queue functions alone.

By hand, on purpose: a test says when each step happens, and the product's client would batch,
repeat and wait.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import AccessDenied, Cancelled, KernelError
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.syscall import new_id
from aios_broker.contract.tokens import digest
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest, Differs, ModuleQueue, SubmitStatus
from aios_broker.queues.order import Order
from aios_broker.queues.records import (
    Ending,
    JobMetadata,
    Lease,
    PolicyRow,
    Submission,
    Suspension,
    WorkerCard,
)
from aios_broker.redis.connection import Connection
from aios_broker.scheduler.policy import policy_named

LEASE_S = 30.0
DATA = b'["aios_workers.entry.run",null,["{}"],{}]'
_numbers = itertools.count(1)


async def submitted(queue: ModuleQueue, jobs: Sequence[Submission]) -> list[SubmitStatus]:
    """Submit jobs all of which must be acknowledged: a refusal is raised."""
    statuses: list[SubmitStatus] = []
    for outcome in await queue.submit(jobs):
        if isinstance(outcome, KernelError):
            raise outcome
        assert not isinstance(outcome, Differs)
        statuses.append(outcome)
    return statuses


@dataclass
class QueueUser:
    """One module's queue, seen from all sides."""

    url: str
    module: Module = "llm"
    keys: Keys = field(default_factory=Keys)

    def __post_init__(self) -> None:
        self.redis = Connection(self.url)
        self.functions = Functions(self.redis)
        self.queue = ModuleQueue(self.functions, self.module, self.keys)
        self.order = Order(self.functions, self.module, self.keys)
        self.control = Control(self.functions, self.keys)

    async def submit(self, *nices: int, deadline_s: float = 600.0) -> list[str]:
        """Submit one job per nice value, in one step; return their ids.

        Values below 0 are the operator's to give.
        """
        jobs = [
            Submission(
                new_id(),
                DATA,
                JobMetadata("ada", "llm.chat", nice=max(0, nice)),
                "me",
                deadline_s=deadline_s,
            )
            for nice in nices
        ]
        await submitted(self.queue, jobs)
        for job, nice in zip(jobs, nices, strict=True):
            if nice < 0:
                await self.control.nice([job.job_id], nice, module=self.module)
        return [job.job_id for job in jobs]

    async def serve(self, *cores: CoreCard, slots: int = 2) -> None:
        """Let a worker of its own begin to serve each core; it is named as its core is."""
        for core in cores:
            card = WorkerCard(core.name, self.module, 1, "here", slots=slots, cores=(core,))
            await self.queue.register(card)

    async def claim(
        self, want: int = 1, *cores: str, worker: str = "worker", lease_s: float = LEASE_S
    ) -> list[Lease]:
        """Take jobs as a worker does."""
        return await self.queue.claim(worker, ClaimRequest(want, lease_s, cores))

    async def finish(self, *leases: Lease, tokens: int = 0) -> list[bool]:
        """End jobs well."""
        endings = [Ending(lease, "finished", b'{"kind":"reply"}', 0.25, tokens) for lease in leases]
        return (await self.queue.finish("worker", endings, ClaimRequest(0, LEASE_S))).accepted

    async def suspend(self, lease: Lease, snapshot: bytes | None = None, tokens: int = 0) -> None:
        """Send a running job back to the tail."""
        suspension = Suspension(lease, snapshot, 0.5, tokens)
        await self.queue.suspend("worker", [suspension], ClaimRequest(0, LEASE_S))

    async def waiting(self) -> list[str]:
        """Return the ids that wait, next one first."""
        return (await self.order.head(0))[1]

    async def publish(self, policy: str) -> None:
        """Publish a policy for the module."""
        row = PolicyRow(name=policy, preempt=policy_named(policy).preempt)
        await self.control.set_policy(self.module, row)

    async def lead(self, lease_s: float = LEASE_S) -> int:
        """Take the lead as one more scheduler; return the epoch."""
        leadership = await self.order.lead(f"test.{next(_numbers)}", lease_s)
        assert leadership.leading
        return leadership.epoch


@asynccontextmanager
async def queue_user(url: str, module: Module = "llm") -> AsyncIterator[QueueUser]:
    """Give a queue's user for the length of a block."""
    user = QueueUser(url, module)
    try:
        yield user
    finally:
        await user.redis.aclose()


async def proves(functions: Functions, token: str, owner: Owner) -> bool:
    """Tell whether the kernel takes a syscall with this token from this agent."""
    job_id, metadata = new_id(), JobMetadata(owner.agent, "tool.echo", tenant=owner.tenant)
    job = Submission(job_id, b"[]", metadata, "", token_digest=digest(token))
    [outcome] = await ModuleQueue(functions, "tool").submit([job])
    assert outcome == "queued" or isinstance(outcome, AccessDenied)
    await Control(functions).cancel([job_id], Cancelled("it was a question"), module="tool")
    return outcome == "queued"
