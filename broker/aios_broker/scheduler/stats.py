"""What a scheduler has done, as plain numbers; its page of metrics reads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from aios_broker.metrics.kernel import KernelState, kernel_metrics


@dataclass(slots=True)
class SchedulerStats:
    """Counted since the process began. Only a leader shows the kernel: sums stay right."""

    epoch: int = 0  # of its leadership; 0: it stands by
    decisions: int = 0
    decided_s: float = 0.0  # in all decisions together, Redis' part included
    reclaimed: int = 0
    expired: int = 0
    reconciled: int = 0
    transitions: int = 0  # entered in the ledger
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
        for name, text, value in (
            ("reclaimed", "Jobs taken back from workers that died or hang.", self.reclaimed),
            ("expired", "Jobs that outlived their deadlines.", self.expired),
            ("reconciled", "Jobs put right after stock RQ tools.", self.reconciled),
            ("ledger_transitions", "State changes entered in the ledger.", self.transitions),
        ):
            yield CounterMetricFamily(f"aios_scheduler_{name}", text, value=float(value))
        if self.kernel is not None:
            yield from kernel_metrics(self.kernel)
