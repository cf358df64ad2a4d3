"""`aios status | metrics`: where the kernel is reached, how its processes do, its figures."""

import click
import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from aios_broker.metrics.kernel import kernel_metrics, read_kernel
from aios_broker.metrics.server import Page
from aios_broker.postgres.database import without_password
from aios_cli.session import EXIT_CODES, Operator, find_kernel, with_kernel
from aios_cli.tables import Column, Listing, show_json
from aios_local.supervisor.record import KernelRecord, ProcessRecord


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


PROCESSES = Listing[ProcessRecord](
    (Column("process"), lambda one: one.name),
    (Column("state"), lambda one: "crash loop" if one.state == "failed" else one.state),
    (Column("pid", "right"), lambda one: _number(one.pid)),
    (Column("restarts", "right"), lambda one: one.restarts),
    (Column("last exit", "right"), lambda one: _number(one.last_exit)),
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(*, as_json: bool) -> None:
    """Show the kernel's addresses and processes, and who is at work.

    Exit code 0 if it is well; 1 if a process was given up; 3 if there is no kernel, or its Redis
    does not answer. With AIOS_REDIS_URL set, the kernel there is shown; its processes are not
    known here.
    """
    record = find_kernel()
    scheduler: str | None = None
    workers: list[str] = []
    if record.state == "running":  # else its Redis may not be there yet
        scheduler, workers = with_kernel(_at_work)
    if as_json:
        body = msgspec.to_builtins(record)
        show_json({**body, "scheduler": scheduler, "workers": workers})
    else:
        _show(record, scheduler, workers)
    if any(process.state == "failed" for process in record.processes):
        raise SystemExit(1)


async def _at_work(operator: Operator) -> tuple[str | None, list[str]]:
    await operator.connection.execute("PING")
    workers = await operator.fleet.live_workers()
    return await operator.fleet.leading_scheduler(), [worker.name for worker in workers]


def _show(record: KernelRecord, scheduler: str | None, workers: list[str]) -> None:
    lines = {
        "state": record.state,
        "AIOS_REDIS_URL": without_password(record.redis_url),
        "Redis by TCP": record.redis_tcp_url,
        "AIOS_DATABASE_URL": without_password(record.database_url or "not set"),
        "scheduler": scheduler or "none leads",
        "workers": ", ".join(workers) or "none",
    }
    for name, value in lines.items():
        if value is not None:
            click.echo(f"{name:<18} {value}")
    if record.processes:
        click.echo()
        PROCESSES.show(record.processes)


@click.command(epilog=EXIT_CODES)
def metrics() -> None:
    """Print the kernel's metrics once, as the leading scheduler serves them.

    Queues, fleet, journal, snapshots, Redis' memory. Each process serves these and its own on
    AIOS_METRICS_PORT, or the next free port, under /metrics.
    """
    state = with_kernel(lambda kernel: read_kernel(kernel.connection, kernel.control, kernel.keys))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Page(lambda: kernel_metrics(state)))
    click.echo(generate_latest(registry).decode(), nl=False)
