"""`aios ps | queues | top | metrics`: what has not ended, the queues it is in, the figures."""

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.metrics.kernel import kernel_metrics, read_kernel
from aios_broker.metrics.server import Page
from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.records import CoreView, JobView, QueueView
from aios_broker.views.live import DEFAULT_LIMIT, read_jobs, read_queues
from aios_broker.views.words import plural, short_id
from aios_cli.session import EXIT_CODES, Interrupted, Operator, command, with_kernel
from aios_cli.syscalls import ModuleName
from aios_cli.tables import Column, Listing, narrow_seconds, plain_lines, rich_table, say, show_json
from aios_workers.modules.memory.block import MemoryTotals, memory_totals

REFRESH_S = 0.5
FIXED_LINES = 5  # of a frame, beside modules and jobs: heading, table head, summary, margin
KEYS_BYTES = 16
JOBS_READ = 200  # per module and frame: more than a terminal shows


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
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="At most this many per module.",
)
async def ps(
    operator: Operator, module: Module | None, agent: str | None, program: str | None, limit: int
) -> list[JobView]:
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
    return [
        job
        for job in await read_jobs(operator.control, (module,) if module else MODULES, limit=limit)
        if agent in (None, job.metadata.agent)
        and program in (None, job.metadata.program, job.metadata.tree)
    ]


def summary(jobs: Sequence[JobView]) -> str:
    """Return how many of each state, such as `2 running, 5 waiting (3 suspended), 1 held`."""
    if not jobs:
        return "no syscalls"
    states = Counter(job.state for job in jobs)
    waiting = f"{states['queued'] + states['suspended']} waiting"
    if states["suspended"]:
        waiting += f" ({states['suspended']} suspended)"
    kept_out = [f"{states[state]} {state}" for state in ("held", "parked") if states[state]]
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


@dataclass(frozen=True, slots=True)
class Frame:
    """All that one frame shows."""

    queues: list[QueueView]
    workers: list[WorkerView]
    jobs: list[JobView]
    suspended: bool
    memory: MemoryTotals


@click.command(epilog=EXIT_CODES)
@click.option("--count", "-n", type=click.IntRange(min=1), help="End after so many frames.")
@click.option("--json", "as_json", is_flag=True, help="Print each frame as one line of JSON.")
def top(count: int | None, *, as_json: bool) -> None:
    """Watch the kernel: queues, workers, and the syscalls that run and wait.

    `q` or Ctrl-C ends it. Without a terminal it prints one frame (or --count frames) and ends.
    """
    live = sys.stdout.isatty() and not as_json
    with contextlib.suppress(Interrupted):  # the usual way to leave it
        with_kernel(
            lambda operator: (
                _watch(operator, count)
                if live
                else _print_frames(operator, count or 1, as_json=as_json)
            )
        )


async def read_frame(operator: Operator) -> Frame:
    """Read one frame."""
    return Frame(
        queues=await read_queues(operator.control),
        workers=await operator.fleet.live_workers(),
        jobs=await read_jobs(operator.control, MODULES, limit=JOBS_READ),
        suspended=await operator.fleet.suspended(),
        memory=await memory_totals(operator.connection, operator.keys),
    )


def heading(frame: Frame) -> str:
    """Return the first line: the time and the fleet."""
    slots = sum(worker.slots for worker in frame.workers)
    busy = sum(1 for job in frame.jobs if job.state == "running")
    text = (
        f"aios top  {time.strftime('%H:%M:%S')}  {plural(len(frame.workers), 'worker')}, "
        f"{busy} of {plural(slots, 'slot')} busy"
    )
    return f"{text}, fleet suspended (rq resume)" if frame.suspended else text


def module_lines(frame: Frame) -> list[str]:
    """Return a line per module that a worker serves or where something is, and one of blocks."""
    served = {worker.module for worker in frame.workers}
    blocks = [_blocks(frame.memory)] if frame.memory.blocks else []
    lines = []
    for view in frame.queues:
        if view.module in served or view.running or view.waiting or view.held or view.parked:
            lines.append(f"{view.module:<7} {view.policy:<8} {_counts(view)}")
            lines += [_core_line(core) for core in view.cores]
    return lines + blocks


def _core_line(core: CoreView) -> str:
    slots = f"no worker since {narrow_seconds(core.silent_s)}"
    if core.slots is not None:
        slots = f"of {plural(core.slots, 'slot')}"
    return f"  {core.card.name}: {core.running} running {slots}, {core.waiting} waiting"


def _blocks(memory: MemoryTotals) -> str:
    return (
        f"{plural(memory.blocks, 'memory block')}: {plural(memory.notes, 'note')} of "
        f"{memory.used_bytes:,} bytes resident, {memory.hits} hits, {memory.faults} faults, "
        f"{memory.swaps} swapped out"
    )


def _counts(view: QueueView) -> str:
    oldest = f" (oldest {narrow_seconds(view.oldest_wait_s)})" if view.waiting else ""
    rare = (
        (view.held, "held"),
        (view.parked, "parked"),
        (view.failed, "failed"),
        (view.quarantined, "quarantined"),
    )
    return ", ".join(
        [
            f"{view.running:>2} running",
            f"{view.waiting:>3} waiting{oldest}",
            f"{view.finished} finished",
            *(f"{count} {what}" for count, what in rare if count),
        ]
    )


def draw(frame: Frame, console: Console) -> Group:
    """Return the frame as it fits the terminal."""
    modules = module_lines(frame)
    room = max(console.height - len(modules) - FIXED_LINES, 1)
    hidden = f", {len(frame.jobs) - room} not shown" if len(frame.jobs) > room else ""
    jobs = rich_table(JOBS.columns, JOBS.rows(frame.jobs[:room]), width=console.width)
    return Group(
        Text(heading(frame), style="bold", no_wrap=True, overflow="ellipsis"),
        *(Text(line, no_wrap=True, overflow="ellipsis") for line in modules),
        *([jobs] if frame.jobs else []),
        Text(f"{summary(frame.jobs)}{hidden}", style="dim", no_wrap=True),
    )


async def _print_frames(operator: Operator, count: int, *, as_json: bool) -> None:
    for number in range(count):
        if number:
            await asyncio.sleep(REFRESH_S)
        frame = await read_frame(operator)
        if as_json:
            show_json(frame, on_one_line=True)
            continue
        jobs = plain_lines(JOBS.columns, JOBS.rows(frame.jobs)) if frame.jobs else []
        say("\n".join([heading(frame), *module_lines(frame), *jobs, summary(frame.jobs)]))


async def _watch(operator: Operator, count: int | None) -> None:
    """Draw until `q`, or `count` frames."""
    console = Console()
    ended = asyncio.Event()
    first = draw(await read_frame(operator), console)
    with _keys(ended), Live(first, console=console, screen=True, auto_refresh=False) as live:
        drawn = 1
        while count is None or drawn < count:
            try:
                async with asyncio.timeout(REFRESH_S):
                    await ended.wait()
                return
            except TimeoutError:
                live.update(draw(await read_frame(operator), console), refresh=True)
                drawn += 1


@contextlib.contextmanager
def _keys(ended: asyncio.Event) -> Iterator[None]:
    """Set `ended` when `q` is pressed; the terminal is given back as it was."""
    if not sys.stdin.isatty():
        yield
        return
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> None:
        if os.read(descriptor, KEYS_BYTES) in (b"q", b"Q", b""):
            ended.set()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, pressed)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


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
