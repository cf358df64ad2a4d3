"""`aios top`: the kernel at work, twice a second: queues, slots, syscalls, what ended lately."""

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aios_broker.contract.errors import KernelError
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.ended import EndedJob, queues_of, recently_ended
from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.records import CoreView, JobView, QueueView
from aios_broker.views.live import read_jobs, read_queues
from aios_broker.views.words import plural, short_id
from aios_cli.ps import JOBS, summary
from aios_cli.session import EXIT_CODES, Interrupted, Operator, with_kernel
from aios_cli.syscalls import cancel_one
from aios_cli.tables import (
    Column,
    Listing,
    fitted_widths,
    narrow_seconds,
    plain_lines,
    rich_table,
    say,
    show_json,
)
from aios_cli.top_rates import OutputRates
from aios_cli.top_screen import END, ESCAPE, HELP, KEYS, KeyCommand, Screen
from aios_workers.modules.memory.block import MemoryTotals, memory_totals

REFRESH_S = 0.5
JOBS_READ = 200  # per module and frame: more than a terminal shows
ENDED_READ = 10
ENDED_SHOWN = 4  # where more wait than there is room for
TABLE_HEAD_LINES = 2
FOOT_LINES = 2  # how many of each state; keys, or what is being typed
READ_BYTES = 64

ENDED = Listing[EndedJob](
    (Column("Id"), lambda one: short_id(one.job.job_id)),
    (Column("Program", shrinks=True), lambda one: one.job.metadata.program),
    (Column("Agent", shrinks=True), lambda one: one.job.metadata.agent),
    (Column("Module"), lambda one: one.job.module),
    (Column("State"), lambda one: one.job.state),
    (Column("Slice", "right"), lambda one: one.job.slices),
    (Column("Tokens", "right"), lambda one: one.job.tokens),
    (Column("Wait", "right"), lambda one: narrow_seconds(one.job.queued_s)),
    (Column("Ago", "right"), lambda one: narrow_seconds(one.ago_s)),
    (Column("Error or worker", shrinks=True), lambda one: one.error or one.job.worker or "-"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """All that one frame shows."""

    queues: list[QueueView]
    workers: list[WorkerView]
    jobs: list[JobView]
    ended: list[EndedJob]
    suspended: bool
    memory: MemoryTotals
    tokens_per_s: float | None  # that models write; None: there was no frame before
    core_tokens_per_s: Mapping[str, float] = field(default_factory=dict)  # of those that write

    def slots(self, module: str) -> int:
        """Return how many places a module's workers have."""
        return sum(worker.slots for worker in self.workers if worker.module == module)


class Frames:
    """Reads one frame after the other."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._rates = OutputRates()

    async def read(self) -> Frame:
        """Read one frame."""
        operator = self._operator
        queues = await queues_of(operator.control)
        jobs = await read_jobs(operator.control, MODULES, limit=JOBS_READ)
        ended = await recently_ended(operator.connection, operator.keys, queues, ENDED_READ)
        used = (await operator.quotas.usage("llm")).by_subject.items()
        total = sum(use.tokens for subject, use in used if subject.scope == "tenant")
        self._rates.note(time.monotonic(), total, [*jobs, *(one.job for one in ended)])
        return Frame(
            queues=await read_queues(operator.control),
            workers=await operator.fleet.live_workers(),
            jobs=jobs,
            ended=ended,
            suspended=await operator.fleet.suspended(),
            memory=await memory_totals(operator.connection, operator.keys),
            tokens_per_s=self._rates.per_s(),
            core_tokens_per_s=self._rates.by_core(),
        )


@click.command(epilog=EXIT_CODES)
@click.option("--count", "-n", type=click.IntRange(min=1), help="End after so many frames.")
@click.option("--json", "as_json", is_flag=True, help="Print each frame as one line of JSON.")
def top(count: int | None, *, as_json: bool) -> None:
    """Watch the kernel: modules and their slots, the syscalls that run and wait, what ended lately.

    Keys: `h` shows all of them, `s` sorts, `f` filters, `k` ends a syscall, `q` or Ctrl-C ends it.
    Without a terminal, or on one that cannot draw (TERM=dumb), it prints one frame (or --count
    frames) and ends.
    """
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal and not as_json
    with contextlib.suppress(Interrupted):  # the usual way to leave it
        with_kernel(
            lambda operator: (
                _watch(operator, console, count)
                if live
                else _print_frames(operator, count or 1, as_json=as_json)
            )
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
    lines = []
    for view in frame.queues:
        if view.module in served or view.running or view.waiting or view.held or view.parked:
            lines.append(_module_line(frame, view))
            lines += [_core_line(frame, core) for core in view.cores]
    if frame.memory.blocks:
        lines.append(_blocks(frame.memory))
    return lines


def _module_line(frame: Frame, view: QueueView) -> str:
    slots = frame.slots(view.module)
    oldest = f" (oldest {narrow_seconds(view.oldest_wait_s)})" if view.waiting else ""
    rate = frame.tokens_per_s if view.module == "llm" else None
    rare = (
        (view.finished, "finished"),
        (view.held, "held"),
        (view.parked, "parked"),
        (view.failed, "failed"),
        (view.quarantined, "quarantined"),
    )
    parts = [
        f"{view.running} of {plural(slots, 'slot')}",
        f"{view.waiting} waiting{oldest}",
        *([] if rate is None else [f"{rate:.0f} tokens/s"]),
        *(f"{count} {what}" for count, what in rare if count),
    ]
    return f"{view.module:<7} {view.policy}: {', '.join(parts)}"


def _core_line(frame: Frame, core: CoreView) -> str:
    slots = f"no worker since {narrow_seconds(core.silent_s)}"
    if core.slots is not None:
        slots = f"of {plural(core.slots, 'slot')}"
    line = f"  {core.card.name}: {core.running} {slots}, {core.waiting} waiting"
    if frame.tokens_per_s is None:
        return line
    return f"{line}, {frame.core_tokens_per_s.get(core.card.name, 0.0):.0f} tokens/s"


def _blocks(memory: MemoryTotals) -> str:
    return (
        f"{plural(memory.blocks, 'memory block')}: {plural(memory.notes, 'note')} of "
        f"{memory.used_bytes:,} bytes resident, {memory.hits} hits, {memory.faults} faults, "
        f"{memory.swaps} swapped out"
    )


def draw(frame: Frame, screen: Screen, console: Console) -> Group:
    """Return the frame as it fits the terminal."""
    head = [_line(heading(frame), "bold")]
    if screen.help:
        return Group(*head, *map(_line, HELP))
    head += map(_line, module_lines(frame))
    jobs = screen.chosen(frame.jobs)
    ended = [one for one in frame.ended if screen.has(one.job)]
    room = console.height - len(head) - FOOT_LINES - (TABLE_HEAD_LINES if jobs else 0)
    shown, ended = _fitted(jobs, ended, max(room, 2))
    hidden = len(jobs) - len(shown)
    more = [_line(f"… {hidden} more", "dim")] if hidden else []
    foot = [
        _line(screen.summary(summary(frame.jobs), len(jobs)), "dim"),
        _line(screen.foot(KEYS)),
    ]
    return Group(*head, *_tables(shown, more, ended, console.width), *foot)


def _fitted(
    jobs: list[JobView], ended: list[EndedJob], room: int
) -> tuple[list[JobView], list[EndedJob]]:
    """Return what of both fits into so many lines: a title before what ended is one of them."""
    least = min(len(ended), ENDED_SHOWN if room > 2 * ENDED_SHOWN else 0)
    for_jobs = room - (least + 1 if least else 0)
    if len(jobs) > for_jobs:
        return jobs[: max(for_jobs - 1, 0)], ended[:least]  # one line says how many more
    return jobs, ended[: max(room - len(jobs) - 1, 0)]


def _tables(
    jobs: list[JobView], more: list[Text], ended: list[EndedJob], width: int
) -> list[Table | Text]:
    rows, ended_rows = JOBS.rows(jobs), ENDED.rows(ended)
    widths = fitted_widths(JOBS.columns, [*rows, *ended_rows], width)
    parts: list[Table | Text] = [rich_table(JOBS.columns, rows, widths)] if jobs else []
    parts += more
    if ended:
        parts.append(_line("ended lately (AGE: how long ago)", "dim"))
        parts.append(rich_table(ENDED.columns, ended_rows, widths, header=False))
    return parts


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


async def _print_frames(operator: Operator, count: int, *, as_json: bool) -> None:
    frames = Frames(operator)
    for number in range(count):
        if number:
            await asyncio.sleep(REFRESH_S)
        frame = await frames.read()
        if as_json:
            show_json(frame, on_one_line=True)
            continue
        jobs = plain_lines(JOBS.columns, JOBS.rows(frame.jobs)) if frame.jobs else []
        say("\n".join([heading(frame), *module_lines(frame), *jobs, summary(frame.jobs)]))
        if frame.ended:
            say("\n".join(["", *plain_lines(ENDED.columns, ENDED.rows(frame.ended))]))


async def _watch(operator: Operator, console: Console, count: int | None) -> None:
    """Draw until `q`, or `count` frames."""
    frames, screen = Frames(operator), Screen()
    frame, drawn = await frames.read(), 1
    first = draw(frame, screen, console)
    with _keys() as pressed, Live(first, console=console, screen=True, auto_refresh=False) as live:
        while count is None or drawn < count:
            try:
                async with asyncio.timeout(REFRESH_S):
                    deed = screen.pressed(await pressed.get())
            except TimeoutError:
                frame = await frames.read()
                drawn += 1
            else:
                if deed == KeyCommand("quit"):
                    return
                if deed is not None:
                    screen.said = await _end(operator, deed.typed)
            live.update(draw(frame, screen, console), refresh=True)


async def _end(operator: Operator, typed: str) -> str:
    """End the syscall whose id begins so; return what came of it."""
    try:
        job_id, outcome = await cancel_one(operator, typed)
    except KernelError as error:
        return str(error)
    return f"{short_id(job_id)} {'cancelled' if outcome == 'done' else outcome}"


@contextlib.contextmanager
def _keys() -> Iterator[asyncio.Queue[str]]:
    """Lend what is pressed, key by key; the terminal is given back as it was."""
    pressed: asyncio.Queue[str] = asyncio.Queue()
    if not sys.stdin.isatty():
        yield pressed
        return
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read() -> None:
        said = os.read(descriptor, READ_BYTES).decode(errors="ignore")
        if not said:
            loop.remove_reader(descriptor)
            said = END
        # Arrows and the like come in one piece, which begins as Escape does.
        for key in [said] if said.startswith(ESCAPE) else said:
            pressed.put_nowait(key)

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
