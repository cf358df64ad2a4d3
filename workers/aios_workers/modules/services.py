"""What the handlers of memory, storage and access stand on; one per worker process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aios_broker.comparing import Comparer
from aios_broker.contract.llm import LlmBody
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_broker.places import Holder, Places, Shares
from aios_broker.postgres.store import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_workers.approvals.service import ApprovalService
from aios_workers.config import WorkerConfig
from aios_workers.modules.memory.block import Blocks
from aios_workers.modules.refusals import Refusals
from aios_workers.modules.storage.host import MountSetting

LONG_QUERY = 512  # characters: what people ask is shorter
# Of one worker: for each of these Postgres weighs 64 words in thousands of texts, or megabytes of
# notes are read and told, by Postgres, the worker and Redis.
LONG_AT_ONCE = Shares(places=2, of_tenant=1, of_agent=1)


class Embedder(Protocol):
    """Turns texts into vectors, many at a time, off the event loop."""

    @property
    def model(self) -> str:
        """The model's name; its dimension and it are stored with the vectors."""
        ...

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        ...

    async def embed(self, texts: Sequence[str], holder: Holder) -> NDArray[np.float32]:
        """Return an array of shape (len(texts), dimension), each row of length 1.

        `holder`: whose turn of the model it takes.

        Raises:
            CoreError: The model failed.
        """
        ...


class KernelCalls(Protocol):
    """Syscalls that a module makes itself, in the name of the agent whose syscall it runs."""

    async def call(self, asked: Syscall, body: LlmBody, step: str) -> Result:
        """Submit `body` for the agent and program of `asked`; return its result.

        `step` names the call within `asked`: run again after a crash, the same step with the same
        body is the same syscall, and its result is found again.

        Raises:
            KernelError: What the syscall ended with.
        """
        ...


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """What the operator allows in storage."""

    max_bytes: int  # of one agent, versions included; an agent's own limit goes before it
    keep_versions: int  # of one file; older ones are dropped
    mountable: MountSetting  # directories of the host


def storage_limits(config: WorkerConfig) -> StorageLimits:
    """Return the limits that a worker is configured with."""
    mountable = MountSetting(config.storage_mounts)
    return StorageLimits(config.storage_max_bytes, config.storage_keep_versions, mountable)


@dataclass(frozen=True, slots=True)
class Services:
    """The database, the embedding model, Redis, approvals; and what the modules keep themselves."""

    store: Store
    embedder: Embedder
    calls: KernelCalls
    functions: Functions
    keys: Keys
    approvals: ApprovalService
    blocks: Blocks  # of memory
    limits: StorageLimits
    refusals: Refusals
    # Set where something was written that has no vector yet: it is indexed at once.
    unembedded: asyncio.Event = field(default_factory=asyncio.Event)
    comparer: Comparer = field(default_factory=Comparer)
    long_reads: Places = field(default_factory=lambda: Places(LONG_AT_ONCE))

    def search_turn(self, query: str, holder: Holder) -> AbstractAsyncContextManager[None]:
        """Have a turn to search for the length of a block: short queries wait for no long ones."""
        return self.read_turn(holder, is_long=len(query) > LONG_QUERY)

    @asynccontextmanager
    async def read_turn(self, holder: Holder, *, is_long: bool) -> AsyncIterator[None]:
        """Have a turn to read for the length of a block. Take it before a connection."""
        if not is_long:
            yield
            return
        async with self.long_reads.one(holder):
            yield
