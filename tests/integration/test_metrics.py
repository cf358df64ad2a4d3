"""The metrics of the kernel and of its processes, as Prometheus reads them."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterable

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from aios_broker.contract.errors import InvalidConfig
from aios_broker.metrics.kernel import kernel_metrics, read_kernel
from aios_broker.metrics.server import PORTS_TRIED, MetricsServer
from aios_broker.queues.records import WorkerCard
from tests.queue_user import QueueUser

HERE = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return min(port, 60_000)


def page(port: int | None) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


async def values(user: QueueUser) -> dict[tuple[str, str], float]:
    state = await read_kernel(user.redis, user.control, user.keys)
    return {
        (sample.name, sample.labels.get("module", "")): sample.value
        for metric in kernel_metrics(state)
        for sample in metric.samples
    }


async def test_the_kernel_is_shown_as_it_stands(user: QueueUser) -> None:
    await user.queue.register(WorkerCard("w1", "llm", 1, "here", 3))
    await user.lead()
    job_ids = await user.submit(0, 0, 0)
    [lease] = await user.claim()
    await user.control.hold([job_ids[1]], module="llm")
    shown = await values(user)

    for name, value in (
        ("queue_waiting", 1),
        ("queue_running", 1),
        ("queue_held", 1),
        ("queue_quarantined", 0),
        ("workers", 1),
        ("slots", 3),
    ):
        assert shown[f"aios_{name}", "llm"] == value, name
        assert shown[f"aios_{name}", "tool"] == 0, name
    assert shown["aios_queue_oldest_wait_seconds", "llm"] >= 0
    assert shown["aios_journal_entries", ""] == await user.redis.execute("XLEN", user.keys.journal)
    assert (shown["aios_fleet_suspended", ""], shown["aios_scheduler_lives", ""]) == (0, 1)
    assert shown["aios_redis_used_memory_bytes", ""] > 100_000

    await user.suspend(lease, b"x" * 1000)
    await user.redis.execute("SET", user.keys.suspended, "1")
    shown = await values(user)
    assert (shown["aios_snapshot_bytes", ""], shown["aios_fleet_suspended", ""]) == (1000, 1)


def test_processes_of_one_machine_share_a_setting() -> None:
    count = 0

    def collect() -> Iterable[Metric]:
        return [GaugeMetricFamily("aios_test", "A number.", value=float(count))]

    port = free_port()
    with (
        MetricsServer(port, collect, host=HERE) as first,
        MetricsServer(port, collect, host=HERE) as second,
    ):
        assert first.port is not None
        assert second.port is not None
        assert port <= first.port < second.port < port + PORTS_TRIED
        assert page(first.port)["aios_test"] == 0
        count = 7
        shown = page(second.port)
        assert shown["aios_test"] == 7
        assert shown["process_resident_memory_bytes"] > 1_000_000
    with MetricsServer(port, collect, host=HERE) as again:
        assert again.port == first.port, "a port that was left is free"


def test_a_port_that_may_not_be_used_is_a_wrong_setting() -> None:
    with socket.socket() as blocker:
        blocker.bind(("0.0.0.0", 0))
        blocker.listen()
        taken = blocker.getsockname()[1]
        with MetricsServer(taken, list, host=HERE) as server:
            assert server.port != taken


def test_it_is_served_where_it_was_asked_for_and_nowhere_else() -> None:
    elsewhere = MetricsServer(free_port(), list, host="127.0.0.2")
    with elsewhere as server, pytest.raises(urllib.error.URLError):
        page(server.port)
    with pytest.raises(InvalidConfig, match="AIOS_METRICS_HOST"):
        MetricsServer(free_port(), list, host="192.0.2.1").__enter__()


def test_without_a_port_nothing_is_served() -> None:
    with MetricsServer(None, list, host=HERE) as server:
        assert server.port is None
