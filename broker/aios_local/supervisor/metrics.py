"""The supervisor's page of metrics: its processes, and how often they were restarted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aios_broker.metrics.server import MetricsServer
from aios_local.supervisor.record import ProcessRecord


def metrics_page(port: int, processes: Callable[[], Sequence[ProcessRecord]]) -> MetricsServer:
    """Return the page; it is served while the context is open."""
    return MetricsServer(port, lambda: process_metrics(processes()))


def process_metrics(processes: Sequence[ProcessRecord]) -> Iterable[Metric]:
    """Yield the metrics of processes."""
    up = GaugeMetricFamily("aios_process_up", "1 while it runs.", labels=["process"])
    restarts = CounterMetricFamily(
        "aios_process_restarts", "Starts after a death.", labels=["process"]
    )
    for process in processes:
        up.add_metric([process.name], float(process.pid is not None))
        restarts.add_metric([process.name], process.restarts)
    yield up
    yield restarts
