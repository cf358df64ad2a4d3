"""A module under a policy of one's choice, step by step, and a connection that hears everything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aios_broker.contract.syscall import new_id
from aios_broker.queues.functions import LIBRARY
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Ending, JobMetadata, Lease, PolicyRow, Submission
from aios_broker.redis.connection import Answer, Argument, Connection
from aios_broker.scheduler.ordering import ModuleOrder
from aios_broker.scheduler.policy import Policy, policy_named
from tests.policies import named
from tests.queue_user import DATA, LEASE_S, QueueUser, submitted

NOW_MS = 1_700_000_000_000
NOTHING_MORE = ClaimRequest(0, LEASE_S)


class Heard(Connection):
    """A connection that remembers what went over it; something may happen after a step, once."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sent: list[str] = []
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}

    async def execute(self, *arguments: Argument, timeout_s: float | None = None) -> Answer:
        step = str(arguments[1 if arguments[0] == "FCALL" else 0]).removeprefix(f"{LIBRARY}_")
        self.sent.append(step)
        answer = await super().execute(*arguments, timeout_s=timeout_s)
        if (meanwhile := self.after.pop(step, None)) is not None:
            await meanwhile()
        return answer


@dataclass
class Scene:
    """A module under a policy that a scheduler follows, tick by tick."""

    user: QueueUser
    policy: str
    epoch: int = 0

    async def begin(self, policy: Policy | None = None) -> None:
        chosen = policy or named(self.policy)
        row = PolicyRow(chosen.name, chosen.preempt, max_waiting=1_000_000)
        await self.user.control.set_policy("llm", row)
        await self.user.redis.execute("HSET", self.user.keys.own("scheduler"), "until", 0)
        self.epoch = await self.user.lead()
        self.queue = ModuleOrder(
            self.user.order, self.user.control, policy_named("rr"), lambda _: chosen
        )
        await self.tick()

    async def tick(self) -> bool:
        return await self.queue.tick(self.epoch, NOW_MS)

    async def settle(self) -> None:
        while await self.tick():
            pass

    async def submit(self, metadata: JobMetadata, count: int = 1) -> list[str]:
        jobs = [Submission(new_id(), DATA, metadata, "") for _ in range(count)]
        await submitted(self.user.queue, jobs)
        return [job.job_id for job in jobs]

    async def finish(self, lease: Lease, *, ran_s: float = 1.0, tokens: int = 10) -> None:
        ending = Ending(lease, "finished", b"{}", ran_s, tokens)
        await self.user.queue.finish("worker", [ending], NOTHING_MORE)

    async def serve(self) -> str:
        """Let a worker run who is next, to its end; return the id."""
        [lease] = await self.user.claim()
        await self.finish(lease)
        return lease.job_id
