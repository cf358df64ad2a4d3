"""Results on their way to the queue, and counted. Nothing leaves before the queue has answered."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aios_broker.contract.errors import KernelError, Unavailable
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue, Settled
from aios_broker.queues.records import Ending, Lease, Suspension

logger = logging.getLogger(__name__)

# Of one step: Redis serves nobody else while it takes some megabytes in, and keeps them twice.
STEP_BYTES = 1024 * 1024
SMALL_BYTES = 64 * 1024  # replies up to this wait for no large one but the one in their own step
REFUSED_S = 30.0  # results that Redis refuses this long are given up; their leases run out

E = TypeVar("E", Ending, Suspension)
_Send = Callable[[list[E], ClaimRequest], Awaitable[Settled]]


@dataclass(slots=True)
class RunCounts:
    """Counted since the process began, when a run ends: before its result is settled."""

    outcomes: Counter[str] = field(default_factory=Counter)
    ran_s: float = 0.0
    tokens: int = 0  # output


def worker_metrics(
    module: str, counts: RunCounts, *, running: int, slots: int, unsettled: int
) -> Iterable[Metric]:
    """Yield the metrics of a worker process."""
    runs = CounterMetricFamily(
        "aios_worker_runs", "Runs that ended, by what came of them.", labels=["module", "outcome"]
    )
    for outcome in ("finished", "failed", "suspended", "parked"):
        runs.add_metric([module, outcome], counts.outcomes[outcome])
    yield runs
    counter, gauge = CounterMetricFamily, GaugeMetricFamily
    for kind, name, text, value in (
        (counter, "run_seconds", "Time that runs took, all together.", counts.ran_s),
        (counter, "tokens", "Output tokens.", counts.tokens),
        (gauge, "running", "Runs under way.", running),
        (gauge, "slots", "Runs that may be under way at once.", slots),
        (gauge, "unsettled", "Results on their way to the queue.", unsettled),
    ):
        family = kind(f"aios_worker_{name}", text, labels=["module"])
        family.add_metric([module], value)
        yield family


class Outbox:
    """Settles endings and suspensions in batches, and claims the next jobs in the same step.

    One caller at a time settles; anybody may add meanwhile. What is large goes one at a time, so
    that neither Redis nor small results wait for all large ones.
    """

    def __init__(self, queue: ModuleQueue, worker: str) -> None:
        self._finish = partial(queue.finish, worker)
        self._suspend = partial(queue.suspend, worker)
        self._endings: list[Ending] = []
        self._suspensions: list[Suspension] = []
        self._refused_since_s: float | None = None
        self.left = 0  # entries that the last step had no room for
        self.counts = RunCounts()

    def __len__(self) -> int:
        """Return how many results wait."""
        return len(self._endings) + len(self._suspensions)

    def add(self, entry: Ending | Suspension) -> None:
        """Take in what came of a run, and count it."""
        counts = self.counts
        if isinstance(entry, Ending):
            self._endings.append(entry)
            counts.outcomes[entry.status] += 1
        else:
            self._suspensions.append(entry)
            counts.outcomes["parked" if entry.reason == "park" else "suspended"] += 1
        counts.ran_s += entry.ran_s
        counts.tokens += entry.tokens

    def leases(self) -> list[Lease]:
        """Return the leases that must live until their results are settled."""
        return [end.lease for end in self._endings] + [each.lease for each in self._suspensions]

    async def settle(self, claim_request: ClaimRequest) -> list[Lease]:
        """Hand over what waits, of large entries one; return the jobs claimed in the same step.

        Raises:
            KernelError: Redis is away or refused; what it did not answer for is still here.
        """
        nothing = ClaimRequest(0, claim_request.lease_s, claim_request.cores)
        try:
            leases: list[Lease] = []
            if self._suspensions:
                leases += await _send_all(
                    self._suspensions, self._suspend, nothing if self._endings else claim_request
                )
            if self._endings and not leases:
                leases += await _send_all(self._endings, self._finish, claim_request)
        except Unavailable:
            raise
        except KernelError:
            # One bad result must not hold up all others.
            await _send_singly(self._suspensions, self._suspend, nothing)
            await _send_singly(self._endings, self._finish, nothing)
            if self._is_hopeless():
                return []
            raise
        self._refused_since_s = None
        self.left = len(self)
        return leases

    def _is_hopeless(self) -> bool:
        """Note that results were refused; after REFUSED_S give them up and return True."""
        now_s = asyncio.get_running_loop().time()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        if len(self) and now_s - self._refused_since_s < REFUSED_S:
            return False
        if len(self):
            lost = [lease.job_id for lease in self.leases()]
            logger.error("Redis refuses these results, they are given up: %s", lost)
        self._endings.clear()
        self._suspensions.clear()
        self.left = 0
        self._refused_since_s = None
        return True


def portion(entries: Sequence[E]) -> list[E]:
    """Return what one step carries: the first large entry, and all others as far as they fit."""
    if sum(map(_size_bytes, entries)) <= STEP_BYTES:
        return list(entries)
    large = next((each for each in entries if _size_bytes(each) > SMALL_BYTES), None)
    found: list[E] = []
    size_bytes = 0
    for entry in entries:
        if entry is not large:
            size_bytes += _size_bytes(entry)
            if size_bytes > STEP_BYTES:
                size_bytes -= _size_bytes(entry)
                continue
        found.append(entry)
    return found


def _size_bytes(entry: Ending | Suspension) -> int:
    data = entry.reply if isinstance(entry, Ending) else entry.snapshot
    return len(data or b"")


async def _send_all(entries: list[E], send: _Send[E], claim_request: ClaimRequest) -> list[Lease]:
    batch = portion(entries)
    settled = await send(batch, claim_request)
    sent = set(map(id, batch))  # others may have come meanwhile
    entries[:] = [each for each in entries if id(each) not in sent]
    for entry, accepted in zip(batch, settled.accepted, strict=True):
        if not accepted:
            logger.info(
                "late: attempt %d of %s no longer counts, its result was dropped",
                entry.lease.attempt,
                entry.lease.job_id,
            )
    return settled.leases


async def _send_singly(entries: list[E], send: _Send[E], claim_request: ClaimRequest) -> None:
    refused: list[E] = []
    batch = entries[:]
    for entry in batch:
        try:
            await send([entry], claim_request)
        except Unavailable:
            raise
        except KernelError as error:
            logger.warning("Redis refuses the result of %s: %s", entry.lease.job_id, error)
            refused.append(entry)
    entries[: len(batch)] = refused
