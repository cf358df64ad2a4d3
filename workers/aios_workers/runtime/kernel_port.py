"""What a running generation may ask of the kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from aios_broker.queues.contexts import Contexts
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import PolicyRow
from aios_broker.retry import patiently
from aios_workers.runtime.slices import SliceDesk
from aios_workers.runtime.streams import ChunkDesk

LoadSpilled = Callable[[str], Awaitable[bytes | None]]


class Policy(Protocol):
    """Where the policy in force is read."""

    @property
    def row(self) -> PolicyRow:
        """The policy in force."""
        ...


async def nothing_spilled(job_id: str) -> bytes | None:
    """Stand in where no ledger is: no snapshot was ever spilled."""
    return None


class Snapshots:
    """Where suspended generations are read back: Redis first, then where old ones spill to."""

    def __init__(self, queue: ModuleQueue, load_spilled: LoadSpilled = nothing_spilled) -> None:
        self._queue = queue
        self._load_spilled = load_spilled

    async def load(self, job_id: str) -> bytes | None:
        """Return the latest snapshot, or None; waits while a server is away."""
        data = await patiently(lambda: self._queue.snapshot(job_id))
        if data is None:
            data = await patiently(lambda: self._load_spilled(job_id))
        return data


@dataclass(frozen=True, slots=True)
class KernelPort:
    """The kernel, as a handler sees it."""

    slices: SliceDesk
    chunks: ChunkDesk
    policy: Policy
    snapshots: Snapshots
    contexts: Contexts
