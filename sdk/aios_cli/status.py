"""`aios status`: where the kernel is reached, and how its processes do."""

import click
import msgspec

from aios_broker.postgres.database import without_password
from aios_cli.operator import Operator
from aios_cli.session import with_kernel
from aios_cli.settings import find_kernel
from aios_cli.tables import Column, show_json, show_table
from aios_local.supervisor.record import KernelRecord, ProcessRecord

COLUMNS = (
    Column("process"),
    Column("state"),
    Column("pid", align="right"),
    Column("restarts", align="right"),
    Column("last exit", align="right"),
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
        scheduler, workers = with_kernel(_at_work, as_json=as_json)
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
        show_table(COLUMNS, [_row(process) for process in record.processes])


def _row(process: ProcessRecord) -> tuple[str, ...]:
    pid, last_exit = process.pid, process.last_exit
    return (
        process.name,
        "crash loop" if process.state == "failed" else process.state,
        "" if pid is None else str(pid),
        str(process.restarts),
        "" if last_exit is None else str(last_exit),
    )
