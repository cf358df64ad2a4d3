"""What a worker has done, as plain numbers; its page of metrics reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aios_broker.queues.records import Ending, Pause


@dataclass(slots=True)
class Tally:
    """Counted since the process began, when a run ends: before its result is settled."""

    finished: int = 0
    failed: int = 0
    suspended: int = 0
    parked: int = 0
    ran_s: float = 0.0
    tokens: int = 0  # output

    def count(self, entry: Ending | Pause) -> None:
        """Count what came of a run."""
        if isinstance(entry, Pause):
            self.suspended += entry.reason != "park"
            self.parked += entry.reason == "park"
        elif entry.status == "finished":
            self.finished += 1
        else:
            self.failed += 1
        self.ran_s += entry.ran_s
        self.tokens += entry.tokens


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker has to do at this moment."""

    running: int
    slots: int
    unsettled: int  # results on their way to the queue


def worker_metrics(module: str, tally: Tally, load: Callable[[], Load]) -> Iterable[Metric]:
    """Yield the metrics of a worker process."""
    now = load()
    runs = CounterMetricFamily(
        "aios_worker_runs", "Runs that ended, by what came of them.", labels=["module", "outcome"]
    )
    for outcome in ("finished", "failed", "suspended", "parked"):
        runs.add_metric([module, outcome], getattr(tally, outcome))
    yield runs
    for name, text, value in (
        ("run_seconds", "Time that runs took, all together.", tally.ran_s),
        ("tokens", "Output tokens.", tally.tokens),
    ):
        counter = CounterMetricFamily(f"aios_worker_{name}", text, labels=["module"])
        counter.add_metric([module], value)
        yield counter
    for name, text, value in (
        ("running", "Runs under way.", now.running),
        ("slots", "Runs that may be under way at once.", now.slots),
        ("unsettled", "Results on their way to the queue.", now.unsettled),
    ):
        gauge = GaugeMetricFamily(f"aios_worker_{name}", text, labels=["module"])
        gauge.add_metric([module], value)
        yield gauge
