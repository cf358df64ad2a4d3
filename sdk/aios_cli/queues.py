"""`aios queues`: the module queues at a glance."""

from __future__ import annotations

import click

from aios_broker.contract.syscall import MODULES
from aios_broker.queues.records import QueueView
from aios_cli.human import narrow_seconds
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, with_kernel
from aios_cli.tables import Column, show_json, show_table

COLUMNS = (
    Column("Module"),
    Column("Policy"),
    Column("Waiting", "right"),
    Column("Running", "right"),
    Column("Held", "right"),
    Column("Parked", "right"),
    Column("Finished", "right"),
    Column("Failed", "right"),
    Column("Quarantined", "right"),
    Column("Oldest", "right"),
)


@click.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def queues(*, as_json: bool) -> None:
    """Show each module's queue: what waits, runs, is held, has ended.

    FINISHED and FAILED count those whose result has not expired (a minute, an hour);
    QUARANTINED those that killed their workers or named foreign code; OLDEST is the longest wait
    of those that wait now.
    """
    views = with_kernel(read_queues, as_json=as_json)
    if as_json:
        show_json(views)
    else:
        show_table(COLUMNS, [cells_of(view) for view in views])


async def read_queues(operator: Operator) -> list[QueueView]:
    """Return every module's queue."""
    return [await operator.control.queue(module) for module in MODULES]


def cells_of(view: QueueView) -> list[str]:
    """Return one row of the table."""
    return [
        view.module,
        view.policy,
        str(view.waiting),
        str(view.running),
        str(view.held),
        str(view.parked),
        str(view.finished),
        str(view.failed),
        str(view.quarantined),
        narrow_seconds(view.oldest_wait_s) if view.waiting else "-",
    ]
