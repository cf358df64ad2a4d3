"""Every process of a kernel serves its numbers to Prometheus, and its ledger is told in traces."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aios_broker.config import KernelConfig
from aios_broker.contract.syscall import MODULES
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import AsyncAgent
from tests.integration.test_traces import receiving
from tests.waiting import wait_until

BOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "aios.json"
METRIC = re.compile(r"\b(?:aios|process)_\w+")
PORTS = 10  # more than the kernel has processes
OUTCOMES = {"finished", "failed", "suspended", "parked"}  # of runs
OUTCOMES |= {"written", "read", "refused", "passed_over"}  # of KV states
Samples = dict[tuple[str, tuple[str, ...]], float]


def free_range() -> int:
    """Return a port that is free, as those behind it most probably are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 60_000)


def pages(first: int) -> Samples:
    """Return all samples of all processes: name and labels, value."""
    found: Samples = {}
    for port in range(first, first + PORTS):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
                text = answer.read().decode()
        # Where nobody listens yet, a connection may come out at its own other end.
        except (OSError, http.client.HTTPException):
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name, tuple(sample.labels.values())] = sample.value
    return found


@pytest.mark.timeout(90)
def test_all_processes_serve_their_numbers(tmp_path: Path) -> None:
    first = free_range()
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        endpoint, receiver = stack.enter_context(receiving())
        config = KernelConfig(
            state_dir=tmp_path,
            llm_core="simulated",
            metrics_port=first,
            otel_endpoint=endpoint,
            log_format="json",
        )
        kernel = EmbeddedKernel(config, inherited=inherited, temporary=True)
        stack.enter_context(kernel)

        async def work() -> None:
            async with AsyncAgent("counter", url=kernel.redis_url) as me:
                await me.tool.echo.map(["x"] * 50)
                await me.llm.chat("Hello", max_tokens=12)

        asyncio.run(work())
        wait_until(lambda: pages(first).get(("aios_slots", ("tool",))) == 64, timeout_s=20)
        wait_until(lambda: pages(first).get(("aios_traces_syscalls_total", ())) == 51, timeout_s=20)
        told = [span.name for span in receiver.spans]
        shown = pages(first)
        names = {process.name for process in kernel.record.processes}
        log = (tmp_path / "log" / "kernel.log").read_text().splitlines()

    assert shown["aios_worker_runs_total", ("tool", "finished")] == 50
    assert shown["aios_worker_runs_total", ("llm", "finished")] == 1
    assert shown["aios_worker_tokens_total", ("llm",)] <= 12
    assert shown["aios_worker_slots", ("tool",)] == 64
    assert shown["aios_scheduler_leading", ()] == 1
    assert shown["aios_scheduler_decision_seconds_count", ()] > 0
    assert shown["aios_queue_waiting", ("llm",)] == 0
    labels = {
        label
        for name, labels in shown
        if not name.startswith("aios_api_")  # whose routes have a test of their own
        for label in labels
    }
    assert labels <= {*MODULES, *OUTCOMES, *names}  # nothing that an agent says makes a series
    assert told.count("execute_tool tool.echo") == 50
    assert told.count("slice") == 51
    assert len([name for name in told if name.startswith("chat ")]) == 1
    metrics = {name for name, _ in shown}
    asked = {
        metric
        for panel in json.loads(BOARD.read_text())["panels"]
        for target in panel.get("targets", ())
        for metric in METRIC.findall(target["expr"])
    }
    assert asked
    assert asked <= metrics
    speakers = {json.loads(line)["process"] for line in log}
    assert speakers >= {"kernel", "scheduler", "llm-1", "traces"}
    for process in ("redis", "postgres", "scheduler", "llm-1", "tool-1"):
        assert shown["aios_process_up", (process,)] == 1
        assert shown["aios_process_restarts_total", (process,)] == 0
