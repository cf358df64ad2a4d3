"""`aios ps | queues | metrics`: what has not ended, the queues it is in, the figures."""

from collections import Counter
from collections.abc import Sequence

import click
from prometheus_client import CollectorRegistry, generate_latest

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES, State
from aios_broker.metrics.kernel import kernel_metrics, read_kernel
from aios_broker.metrics.server import Page
from aios_broker.queues.ended import EndedJob, queues_of, recently_ended
from aios_broker.queues.records import CoreView, JobView, QueueView
from aios_broker.views.live import DEFAULT_LIMIT, read_jobs, read_queues
from aios_broker.views.words import plural, short_id
from aios_cli.session import EXIT_CODES, Operator, command, with_kernel
from aios_cli.syscalls import ModuleName
from aios_cli.tables import Column, Listing, narrow_seconds, say


def slice_number(job: JobView) -> int:
    """Return which slice it is in (from 1), or how many it has had while it does not run."""
    return job.slices + 1 if job.state == "running" else job.slices


JOBS = Listing[JobView](
    (Column("Id"), lambda job: short_id(job.job_id)),
    (Column("Program", shrinks=True), lambda job: job.metadata.program),
    (Column("Agent", shrinks=True), lambda job: job.metadata.agent),
    (Column("Module"), lambda job: job.module),
    (Column("State"), lambda job: job.state),
    (Column("Slice", "right"), slice_number),
    (Column("Tokens", "right"), lambda job: job.tokens),
    (Column("Wait", "right"), lambda job: narrow_seconds(job.queued_s)),
    (Column("Age", "right"), lambda job: narrow_seconds(job.age_s)),
    # Where it runs, or the core that it asked for.
    (Column("Core/worker", shrinks=True), lambda job: job.worker or job.core or "-"),
)
QUEUES = Listing[QueueView](
    (Column("Module"), lambda view: view.module),
    (Column("Policy"), lambda view: view.policy),
    (Column("Waiting", "right"), lambda view: view.waiting),
    (Column("Running", "right"), lambda view: view.running),
    (Column("Held", "right"), lambda view: view.held),
    (Column("Parked", "right"), lambda view: view.parked),
    (Column("Finished", "right"), lambda view: view.finished),
    (Column("Failed", "right"), lambda view: view.failed),
    (Column("Quarantined", "right"), lambda view: view.quarantined),
    (
        Column("Oldest", "right"),
        lambda view: narrow_seconds(view.oldest_wait_s) if view.waiting else "-",
    ),
)


CORES = Listing[CoreView](
    (Column("Core", shrinks=True), lambda core: core.card.name),
    (Column("Model", shrinks=True), lambda core: core.card.model),
    (Column("Waiting", "right"), lambda core: core.waiting),
    (Column("Running", "right"), lambda core: core.running),
    (Column("Slots", "right"), lambda core: "-" if core.slots is None else core.slots),
    (Column("Served"), lambda core: _served(core)),
)


def _served(core: CoreView) -> str:
    return f"not since {narrow_seconds(core.silent_s)}" if core.slots is None else "yes"


def _show_queues(views: Sequence[QueueView]) -> None:
    QUEUES.show(views)
    if cores := [core for view in views for core in view.cores]:
        say("")
        CORES.show(cores)


def _show_jobs(jobs: Sequence[JobView]) -> None:
    if jobs:
        JOBS.show(jobs)
    say(summary(jobs))


@command(_show_jobs)
@click.option("--module", "-m", type=ModuleName(), help="Only this module's syscalls.")
@click.option("--agent", help="Only this agent's syscalls.")
@click.option("--program", help="Only this program's syscalls, or this tree's.")
@click.option("--all", "-a", "whole", is_flag=True, help="Those that have ended lately, too.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="At most this many per module; with --all so many that have ended.",
)
async def ps(
    operator: Operator,
    module: Module | None,
    agent: str | None,
    program: str | None,
    limit: int,
    *,
    whole: bool,
) -> list[JobView]:
    """List the syscalls that run, wait, are held, or are parked.

    First those that run, then those that wait, in the order in which they will be taken, then
    those that an operator holds and those that wait for approval; with --all those that have ended
    lately (in the last minute; in the last hour where they failed), the newest first. WAIT is all
    the time that a syscall has waited, AGE the time since it was submitted, SLICE how often it has
    run, CORE/WORKER where it runs or which core it asked for.

    \b
    Examples:
      aios ps
      aios ps --module llm --agent writer
      aios ps --all
      aios ps --json | jq '.[] | select(.state == "running") | .job_id'
    """  # noqa: D301 - \b keeps click from wrapping
    modules = (module,) if module else MODULES
    jobs = await read_jobs(operator.control, modules, limit=limit)
    if whole:
        jobs += [ended.job for ended in await read_ended(operator, modules, limit)]
    return [
        job
        for job in jobs
        if agent in (None, job.metadata.agent)
        and program in (None, job.metadata.program, job.metadata.tree)
    ]


async def read_ended(operator: Operator, modules: Sequence[Module], limit: int) -> list[EndedJob]:
    """Return what has ended lately, the newest first."""
    queues = await queues_of(operator.control, modules)
    return await recently_ended(operator.connection, operator.keys, queues, limit)


def summary(jobs: Sequence[JobView]) -> str:
    """Return how many of each state, such as `2 running, 5 waiting (3 suspended), 1 held`."""
    if not jobs:
        return "no syscalls"
    states = Counter(job.state for job in jobs)
    waiting = f"{states['queued'] + states['suspended']} waiting"
    if states["suspended"]:
        waiting += f" ({states['suspended']} suspended)"
    others: tuple[State, ...] = ("held", "parked", "finished", "failed", "cancelled")
    kept_out = [f"{states[state]} {state}" for state in others if states[state]]
    parts = [f"{states['running']} running", waiting, *kept_out]
    return f"{plural(len(jobs), 'syscall')}: {', '.join(parts)}"


@command(_show_queues)
async def queues(operator: Operator) -> list[QueueView]:
    """Show each module's queue: what waits, runs, is held, has ended; and that of each core.

    Each core has a run queue of its own, `llm.NAME` to RQ's tools. SERVED says whether a worker
    of it lives; what waits for one without goes on when there is one again.

    FINISHED and FAILED count those whose result has not expired (a minute, an hour);
    QUARANTINED those that killed their workers or named foreign code; OLDEST is the longest wait
    of those that wait now.
    """
    return await read_queues(operator.control)


@click.command(epilog=EXIT_CODES)
def metrics() -> None:
    """Print the kernel's metrics once, as the leading scheduler serves them.

    Queues, fleet, journal, snapshots, Redis' memory. Each process serves these and its own on
    AIOS_METRICS_PORT, or the next free port, under /metrics.
    """
    state = with_kernel(lambda kernel: read_kernel(kernel.connection, kernel.control, kernel.keys))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Page(lambda: kernel_metrics(state)))
    say(generate_latest(registry).decode(), nl=False)
