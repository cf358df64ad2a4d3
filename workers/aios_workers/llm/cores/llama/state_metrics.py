"""What a core has done with shared KV states, as metrics of its worker."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aios_workers.llm.cores.llama.protocol import StateCounts


def state_metrics(counts: StateCounts) -> Iterable[Metric]:
    """Yield the metrics of the state store of one worker."""
    states = CounterMetricFamily(
        "aios_core_kv_states", "Shared KV states, by what became of them.", labels=["outcome"]
    )
    for outcome in ("written", "read", "refused", "passed_over", "failed"):
        states.add_metric([outcome], getattr(counts, outcome))
    yield states
    yield GaugeMetricFamily(
        "aios_core_kv_state_bytes",
        "Files of all cores in the folder, when this one wrote last.",
        value=counts.used_bytes,
    )
