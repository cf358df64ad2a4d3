"""The kernel in Prometheus' terms: queues, fleet, journal and snapshots; what a scheduler does."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from aios_broker.contract.syscall import MODULES
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet, WorkerView
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import QueueView
from aios_broker.redis.connection import Connection


@dataclass(frozen=True, slots=True)
class KernelState:
    """What is exported of the whole kernel."""

    queues: Sequence[QueueView]
    workers: Sequence[WorkerView]
    suspended: bool
    is_led: bool
    journal_entries: int
    snapshot_bytes: int
    redis_bytes: int


async def read_kernel(connection: Connection, control: Control, keys: Keys) -> KernelState:
    """Read it: about ten commands, and one per worker."""
    fleet = Fleet(connection, keys)
    queues = await asyncio.gather(*(control.queue(module) for module in MODULES))
    info = (await connection.execute("INFO", "memory")).decode().splitlines()
    memory = dict(line.split(":", 1) for line in info if ":" in line)
    return KernelState(
        queues=queues,
        workers=await fleet.live_workers(),
        suspended=await fleet.suspended(),
        is_led=await fleet.leading_scheduler() is not None,
        journal_entries=await connection.execute("XLEN", keys.journal),
        snapshot_bytes=int(await connection.execute("GET", keys.own("snapshot_total")) or 0),
        redis_bytes=int(memory["used_memory"]),
    )


def kernel_metrics(state: KernelState) -> Iterable[Metric]:
    """Yield the metrics of a state; all are gauges, by module where there is one."""
    for name, text, values in (
        ("waiting", "Syscalls in the run queue.", [q.waiting for q in state.queues]),
        ("running", "Syscalls that a worker holds.", [q.running for q in state.queues]),
        ("held", "Syscalls that an operator holds.", [q.held for q in state.queues]),
        ("parked", "Syscalls that wait for approval.", [q.parked for q in state.queues]),
        ("quarantined", "Poison and foreign jobs.", [q.quarantined for q in state.queues]),
        (
            "oldest_wait_seconds",
            "How long the one that waits longest has waited.",
            [q.oldest_wait_s for q in state.queues],
        ),
    ):
        gauge = GaugeMetricFamily(f"aios_queue_{name}", text, labels=["module"])
        for queue, value in zip(state.queues, values, strict=True):
            gauge.add_metric([queue.module], value)
        yield gauge
    yield from _fleet(state)
    for name, text, value in (
        ("fleet_suspended", "1 while `rq suspend` is in force.", state.suspended),
        ("scheduler_lives", "1 while some scheduler leads.", state.is_led),
        ("journal_entries", "Journal entries that wait for the ledger.", state.journal_entries),
        ("snapshot_bytes", "Snapshots in Redis.", state.snapshot_bytes),
        ("redis_used_memory_bytes", "What Redis has allocated.", state.redis_bytes),
    ):
        yield GaugeMetricFamily(f"aios_{name}", text, value=float(value))


@dataclass(slots=True)
class SchedulerStats:
    """Counted since the process began. Only a leader shows the kernel: sums stay right."""

    epoch: int = 0  # of its leadership; 0: it stands by
    decisions: int = 0
    decided_s: float = 0.0  # in all decisions together, Redis' part included
    done: Counter[str] = field(default_factory=Counter)  # by the names below
    kernel: KernelState | None = None

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics of this process, and of the kernel while it leads."""
        yield GaugeMetricFamily(
            "aios_scheduler_leading", "1 while it leads.", value=float(self.epoch > 0)
        )
        yield GaugeMetricFamily("aios_scheduler_epoch", "Of its lead.", value=float(self.epoch))
        yield SummaryMetricFamily(
            "aios_scheduler_decision_seconds",
            "Bringing all queues into order once.",
            count_value=self.decisions,
            sum_value=self.decided_s,
        )
        for name, text in (
            ("reclaimed", "Jobs taken back from workers that died or hang."),
            ("expired", "Jobs that outlived their deadlines."),
            ("reconciled", "Jobs put right after stock RQ tools."),
            ("moved", "Jobs taken to another core than they waited for."),
            ("ledger_transitions", "State changes entered in the ledger."),
        ):
            yield CounterMetricFamily(f"aios_scheduler_{name}", text, value=float(self.done[name]))
        if self.kernel is not None:
            yield from kernel_metrics(self.kernel)


def _fleet(state: KernelState) -> Iterable[Metric]:
    workers = GaugeMetricFamily("aios_workers", "Live workers.", labels=["module"])
    slots = GaugeMetricFamily("aios_slots", "Slots of live workers.", labels=["module"])
    for module in MODULES:
        of_module = [worker for worker in state.workers if worker.module == module]
        workers.add_metric([module], len(of_module))
        slots.add_metric([module], sum(worker.slots for worker in of_module))
    yield workers
    yield slots
