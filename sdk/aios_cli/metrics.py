"""`aios metrics`: the kernel's queues and fleet in Prometheus' text format."""

from __future__ import annotations

import click
from prometheus_client import CollectorRegistry, generate_latest

from aios_broker.metrics.kernel import KernelState, kernel_metrics, read_kernel
from aios_broker.metrics.server import Page
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, with_kernel


@click.command(epilog=EXIT_CODES)
def metrics() -> None:
    """Print the kernel's metrics once, as the leading scheduler serves them.

    Queues, fleet, journal, snapshots, Redis' memory. Each process serves these and its own on
    AIOS_METRICS_PORT, or the next free port, under /metrics.
    """

    async def read(operator: Operator) -> KernelState:
        return await read_kernel(operator.connection, operator.control, operator.keys)

    state = with_kernel(read)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Page(lambda: kernel_metrics(state)))
    click.echo(generate_latest(registry).decode(), nl=False)
