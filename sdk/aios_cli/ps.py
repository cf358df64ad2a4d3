"""`aios ps`: the syscalls that have not ended, one per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click

from aios_broker.contract.errors import KernelError
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.records import JobView
from aios_cli.human import narrow_seconds, plural, short_id
from aios_cli.lookup import parse_module
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, CommandFailed, with_kernel
from aios_cli.tables import Column, show_json, show_table

DEFAULT_LIMIT = 1000

COLUMNS = (
    Column("Id"),
    Column("Program", shrinks=True),
    Column("Agent", shrinks=True),
    Column("Module"),
    Column("State"),
    Column("Slice", "right"),
    Column("Tokens", "right"),
    Column("Wait", "right"),
    Column("Core/worker", shrinks=True),
)


@click.command(epilog=EXIT_CODES)
@click.option("--module", "-m", "module_name", help="Only this module's syscalls.")
@click.option("--agent", help="Only this agent's syscalls.")
@click.option("--program", help="Only this program's syscalls.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="At most this many per module.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all fields, no abbreviation.")
def ps(
    module_name: str | None, agent: str | None, program: str | None, limit: int, *, as_json: bool
) -> None:
    """List the syscalls that run, wait, are held, or are parked.

    First those that run, then those that wait, in the order in which they will be taken, then
    those that an operator holds and those that wait for approval. WAIT is all the time that a
    syscall has waited, SLICE how often it has run, CORE/WORKER where it runs or which core it
    asked for.

    \b
    Examples:
      aios ps
      aios ps --module llm --agent writer
      aios ps --json | jq '.[] | select(.state == "running") | .job_id'
    """  # noqa: D301 - \b keeps click from wrapping
    modules = _modules(module_name, as_json=as_json)

    async def read(operator: Operator) -> list[JobView]:
        return await read_jobs(operator, modules, limit=limit)

    jobs = [
        job
        for job in with_kernel(read, as_json=as_json)
        if agent in (None, job.metadata.agent) and program in (None, job.metadata.program)
    ]
    if as_json:
        show_json(jobs)
    elif jobs:
        show_table(COLUMNS, rows_of(jobs))
        click.echo(summary(jobs))
    else:
        click.echo("no syscalls")


async def read_jobs(
    operator: Operator, modules: Sequence[Module], *, limit: int = DEFAULT_LIMIT
) -> list[JobView]:
    """Return the jobs of these modules, at most `limit` of each."""
    return [job for module in modules for job in await operator.control.jobs(module, limit=limit)]


def rows_of(jobs: Sequence[JobView]) -> list[list[str]]:
    """Return the table's cells."""
    return [
        [
            short_id(job.job_id),
            job.metadata.program,
            job.metadata.agent,
            job.module,
            job.state,
            str(slice_number(job)),
            str(job.tokens),
            narrow_seconds(job.queued_s),
            place(job),
        ]
        for job in jobs
    ]


def slice_number(job: JobView) -> int:
    """Return which slice it is in (from 1), or how many it has had while it does not run."""
    return job.slices + 1 if job.state == "running" else job.slices


def place(job: JobView) -> str:
    """Return where it runs, or the core that it asked for."""
    return job.worker or job.core or "-"


def summary(jobs: Sequence[JobView]) -> str:
    """Return how many of each state, such as `2 running, 5 waiting (3 suspended), 1 held`."""
    states = Counter(job.state for job in jobs)
    waiting = states["queued"] + states["suspended"]
    text = f"{states['running']} running, {waiting} waiting"
    if states["suspended"]:
        text += f" ({states['suspended']} suspended)"
    for kept_out in ("held", "parked"):
        if states[kept_out]:
            text += f", {states[kept_out]} {kept_out}"
    return f"{plural(len(jobs), 'syscall')}: {text}"


def _modules(name: str | None, *, as_json: bool) -> tuple[Module, ...]:
    if name is None:
        return MODULES
    try:
        return (parse_module(name),)
    except KernelError as error:
        raise CommandFailed(error, as_json=as_json) from error
