"""`aios top`: the kernel live, drawn again twice a second."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from aios_broker.contract.syscall import MODULES
from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.records import JobView, QueueView
from aios_cli.human import narrow_seconds, plural
from aios_cli.operator import Operator
from aios_cli.ps import COLUMNS, read_jobs, rows_of, summary
from aios_cli.queues import read_queues
from aios_cli.session import EXIT_CODES, Interrupted, with_kernel
from aios_cli.tables import plain_lines, rich_table
from aios_workers.modules.memory.block import MemoryTotals, memory_totals

REFRESH_S = 0.5
FIXED_LINES = 5  # beside modules and jobs: heading, table head, summary, margin
KEYS_BYTES = 16
JOBS_READ = 200  # per module and frame: more than a terminal shows


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

    async def work(operator: Operator) -> None:
        if live:
            await _watch(operator, count)
        else:
            await _print_frames(operator, count or 1, as_json=as_json)

    try:
        with_kernel(work, as_json=as_json)
    except Interrupted:
        return  # the usual way to leave it


async def read_frame(operator: Operator) -> Frame:
    """Read one frame."""
    return Frame(
        queues=await read_queues(operator),
        workers=await operator.fleet.live_workers(),
        jobs=await read_jobs(operator, MODULES, limit=JOBS_READ),
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
    return [
        f"{view.module:<7} {view.policy:<8} {_counts(view)}"
        for view in frame.queues
        if view.module in served or view.running or view.waiting or view.held or view.parked
    ] + blocks


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
    parts: list[RenderableType] = [
        Text(heading(frame), style="bold", no_wrap=True, overflow="ellipsis")
    ]
    parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in modules]
    if frame.jobs:
        parts.append(rich_table(COLUMNS, rows_of(frame.jobs[:room]), width=console.width))
    parts.append(Text(_footer(frame.jobs, room), style="dim", no_wrap=True))
    return Group(*parts)


def _footer(jobs: Sequence[JobView], room: int) -> str:
    if not jobs:
        return "no syscalls"
    hidden = f", {len(jobs) - room} not shown" if len(jobs) > room else ""
    return f"{summary(jobs)}{hidden}"


async def _print_frames(operator: Operator, count: int, *, as_json: bool) -> None:
    for number in range(count):
        if number:
            await asyncio.sleep(REFRESH_S)
        frame = await read_frame(operator)
        if as_json:
            click.echo(msgspec.json.encode(frame).decode())
            continue
        click.echo(heading(frame))
        for line in module_lines(frame):
            click.echo(line)
        for line in plain_lines(COLUMNS, rows_of(frame.jobs)) if frame.jobs else ():
            click.echo(line)
        click.echo(summary(frame.jobs) if frame.jobs else "no syscalls")


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


@contextmanager
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
