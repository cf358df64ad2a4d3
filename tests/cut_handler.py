"""The llm handler under a kernel that suspends it at random, without Redis.

What the kernel keeps of a suspended syscall is its snapshot alone: the next slice is run by a
handler of its own, on the same core or on another one of the same model.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from aios_broker.contract.llm import LlmBody
from aios_broker.contract.reply import Chunk, Result
from aios_broker.contract.syscall import Syscall
from aios_broker.places import Holder
from aios_broker.queues.contexts import Contexts
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import Lease, PolicyRow, SliceUse, SliceVerdict
from aios_broker.redis.connection import Answer, Argument
from aios_workers.llm.core import Constraint, Core
from aios_workers.llm.handler import LlmHandler
from aios_workers.runtime.executor import Done, Outcome, Suspended
from aios_workers.runtime.kernel import Kernel, SliceEnds, StreamSender
from aios_workers.runtime.runs import Run

SYSCALL_ID = "5eed" * 8
SLICE_LIMIT_S = 30.0


@dataclass
class Cuts:
    """When the kernel cuts, and what came of it."""

    rng: random.Random
    probability: float = 0.0  # of a cut at the end of a slice
    quantum_tokens: tuple[int, int] = (1, 12)
    made: int = 0
    stream: str = ""
    reasoning: str = ""  # what was streamed of it
    checkpoints: list[bytes] = field(default_factory=list)
    tokens: int = 0  # charged, over all slices


class _NoFleet(Functions):
    """Knows of no other core."""

    def __init__(self) -> None:
        return

    async def call(self, step: str, keys: Keys, arguments: Sequence[Argument]) -> Answer:
        """Answer the one question that a handler asks when its core has failed."""
        del keys, arguments
        assert step == "cores"
        return []


class _Queue(ModuleQueue):
    """The two steps of a queue that a handler sees, decided here."""

    def __init__(self, cuts: Cuts, snapshot: bytes | None) -> None:
        self._cuts = cuts
        self._snapshot = snapshot
        self.functions = _NoFleet()
        self.keys = Keys()

    async def slice_end(
        self, worker: str, uses: Sequence[SliceUse], claim_request: ClaimRequest
    ) -> list[SliceVerdict]:
        """Keep the checkpoints; cut by chance, and a little later."""
        for _ in range(self._cuts.rng.randint(0, 3)):
            await asyncio.sleep(0)
        for use in uses:
            if use.checkpoint is not None:
                self._cuts.checkpoints.append(use.checkpoint)
        cut = self._cuts.rng.random() < self._cuts.probability
        return ["suspend" if cut else "go"] * len(uses)

    async def emit(self, chunks: Sequence[tuple[Lease, Chunk]]) -> None:
        """Put the streamed text together, and find gaps and repetitions."""
        for _, chunk in chunks:
            if chunk.part == "reasoning":
                assert chunk.offset == len(self._cuts.reasoning), "a gap or a repetition"
                self._cuts.reasoning += chunk.text
                continue
            assert chunk.offset == len(self._cuts.stream), "a gap or a repetition"
            self._cuts.stream += chunk.text

    async def snapshot(self, job_id: str) -> bytes | None:
        """Return the snapshot of the slice before."""
        return self._snapshot


def lease(*, has_snapshot: bool = False) -> Lease:
    """Return the lease of a job that somebody waits for."""
    return Lease(
        SYSCALL_ID,
        1,
        b"",
        trusted=True,
        wants_chunks=True,
        queued_s=0.0,
        ran_s=0.0,
        slices=0,
        suspensions=0,
        losses=0,
        deadline_in_s=600.0,
        has_snapshot=has_snapshot,
    )


def handler_of(core: Core, cuts: Cuts, snapshot: bytes | None = None) -> LlmHandler:
    """Return a handler under a kernel that cuts."""
    queue = _Queue(cuts, snapshot)
    policy = PolicyRow(quantum_s=600.0, quantum_tokens=cuts.rng.randint(*cuts.quantum_tokens))
    kernel = Kernel(
        queue=queue,
        policy=lambda: policy,
        slices=SliceEnds(queue, "here", ClaimRequest(0, 1.0)),
        streams=StreamSender(queue),
        contexts=cast(Contexts, None),  # no body here names a context
    )
    return LlmHandler(core, kernel)


async def trusting(constraint: Constraint, holder: Holder, patience_s: float | None) -> None:
    """Spare the child process in which constraints are tried: those of tests can be kept."""


async def run_cut(
    cores: Sequence[Core], body: LlmBody, cuts: Cuts, snapshot: bytes | None = None
) -> Result:
    """Run a syscall to its end, cut where the kernel wants, each slice on one of the cores."""
    syscall = Syscall(SYSCALL_ID, "ada", body)
    while True:
        handler = handler_of(cuts.rng.choice(cores), cuts, snapshot)
        outcome: Outcome = Suspended(None, "suspend")
        while isinstance(outcome, Suspended) and outcome.snapshot is None:  # its form is pending
            run = Run(lease(has_snapshot=snapshot is not None))
            async with asyncio.timeout(SLICE_LIMIT_S):
                outcome = await handler.run(run, syscall)
        cuts.tokens += run.use().tokens
        if isinstance(outcome, Done):
            return outcome.result
        assert isinstance(outcome, Suspended)
        snapshot = outcome.snapshot
        cuts.made += 1


async def run_whole(core: Core, body: LlmBody) -> Result:
    """Run a syscall that nobody cuts."""
    return await run_cut([core], body, Cuts(random.Random(0)))
