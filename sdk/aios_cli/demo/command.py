"""`aios demo`: a kernel of its own, a load under round robin and under FIFO, the difference."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import click
import msgspec
from rich.console import Console

from aios_broker.config import KernelConfig, environment
from aios_broker.contract.errors import KernelError
from aios_broker.ledger.ledger import Ledger
from aios_broker.log import KernelLog
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.queues.page_links import LINK_S, PageLink
from aios_broker.views.words import plural, seconds
from aios_cli.demo.load import MAX_AGENTS, demo_agents
from aios_cli.demo.report import (
    Report,
    broken_promises,
    draw,
    figures,
    machine,
    promises_kept,
    require_matplotlib,
    table_of,
    versions,
)
from aios_cli.demo.rounds import DISTURBED_SHARE, MOST_ROUNDS, both_policies
from aios_cli.demo.run import ROUND_ROBIN, Demo, PolicyRun, read_slices
from aios_cli.demo.view import LiveView, PlainView
from aios_cli.session import EXIT_INTERRUPTED, Operator
from aios_cli.tables import say, show_table
from aios_cli.ui import offer
from aios_local.supervisor.kernel import EmbeddedKernel

CoreName = Literal["llama", "simulated"]

EXIT_CODES = (
    "Exit codes: 0 all promises kept; 1 one was broken, also that short requests wait less under "
    "rr, or something failed (it says which); "
    "2 wrong usage or setting; 3 the kernel did not start; 130 interrupted."
)
# The simulated core is as fast as the machine unless told otherwise: then nobody waits.
SIMULATED = {
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "100",
    "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
}
_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asks for."""

    agents: int
    core: CoreName
    slots: int
    json_path: Path | None
    plot_path: Path | None
    keep: bool


@click.command(epilog=EXIT_CODES)
@click.option(
    "--agents",
    type=click.IntRange(2, MAX_AGENTS),
    default=8,
    show_default=True,
    help="How many agents: 3 in 8 tell a story, 2 make lists, 3 ask questions.",
)
@click.option(
    "--core",
    type=click.Choice(["llama", "simulated"]),
    default="llama",
    show_default=True,
    envvar="AIOS_LLM_CORE",
    help="The embedded model, or the simulated one.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Generations that run at the same time.",
)
@click.option("--json", "json_path", type=_FILE, metavar="FILE", help="Write the figures as JSON.")
@click.option(
    "--plot",
    "plot_path",
    type=_FILE,
    metavar="FILE",
    help="Draw the schedule as a PNG: slices per slot.",
)
@click.option("--keep", is_flag=True, help="Keep the state directory, to look into it.")
def demo(**given: object) -> None:
    """Show time slices at work: the same load under round robin, then under FIFO.

    Agents that tell stories, make lists and ask short questions share a real model, in a kernel
    of its own that is gone afterwards. Under FIFO the questions wait for the stories; under round
    robin nobody keeps a slot for longer than a slice while others wait. Every generation that was
    interrupted is compared, id for id, with its uninterrupted run. What else runs on the machine
    counts: where other programs take more than a tenth of the processors, both run again, twice at
    most, and of each policy the least disturbed run counts.

    \b
    Examples:
      aios demo
      aios demo --agents 16 --json figures.json --plot schedule.png
    """  # noqa: D301 - \b keeps click from wrapping
    options = msgspec.convert(given, DemoOptions)
    _check_files(options)
    with _folder(options) as folder:
        runs = _measured(options, folder)
        if not _conclude(options, runs):
            raise SystemExit(1)


@contextlib.contextmanager
def _folder(options: DemoOptions) -> Iterator[Path]:
    """Lend a temporary folder; leave nothing of it but what was asked for, or a failure's log."""
    folder = Path(tempfile.mkdtemp(prefix="aios-demo-"))
    before = signal.signal(signal.SIGTERM, _interrupt)
    wanted = True
    try:
        yield folder
        wanted = options.keep
    except KeyboardInterrupt:
        wanted = options.keep
        say("interrupted; the kernel has stopped", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BaseExceptionGroup as group:  # of tasks: the first error says what happened
        raise _first(group) from group
    finally:
        signal.signal(signal.SIGTERM, before)
        if wanted:
            say(f"the kernel's log: {_log_path(folder)}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _measured(options: DemoOptions, folder: Path) -> list[PolicyRun]:
    """Start the kernel, run the load under both policies, compare, stop the kernel."""
    config = KernelConfig(
        state_dir=folder / "state",
        llm_core=options.core,
        llm_slots=options.slots,
        llm_workers=1,
        tool_workers=0,
        state_workers=0,
        policy=ROUND_ROBIN.name,
    )
    say("starting a kernel: Valkey, Postgres, a scheduler, an llm worker")
    began_s = time.monotonic()
    log = KernelLog(_log_path(folder))
    inherited = {**(SIMULATED if options.core == "simulated" else {}), **environment()}
    kernel = EmbeddedKernel(config, log=log, inherited=inherited, temporary=not options.keep)
    with kernel:
        say(f"ready after {seconds(time.monotonic() - began_s)}")
        return asyncio.run(_run_both(kernel, options))


async def _run_both(kernel: EmbeddedKernel, options: DemoOptions) -> list[PolicyRun]:
    console = Console()
    draws = console.is_terminal and not console.is_dumb_terminal
    view = LiveView(console) if draws else PlainView(say)
    agents = demo_agents(options.agents)
    keys = Keys(kernel.config.key_prefix)
    async with (
        Operator(kernel.redis_url, keys=keys, name="aios-demo") as operator,
        operator.client() as client,
    ):
        load = Demo(client, operator.control, agents, view)
        try:
            model = await load.warm_up()
            say(
                f"{plural(len(agents), 'agent')} share {plural(options.slots, 'slot')} of {model}; "
                f"a slice is {ROUND_ROBIN.quantum_tokens} tokens"
            )
            if kernel.api_url is not None:
                at = await offer(operator, PageLink(), "operator:demo", kernel.api_url)
                say(f"watch it: {at} (once, within {seconds(LINK_S)})")
            if options.core != "simulated":
                say("other programs on this machine count: a run that they disturb is made again")
            rounds = 1 if options.core == "simulated" else MOST_ROUNDS  # it needs next to no CPU
            round_robin, fifo = await both_policies(load, say, rounds=rounds)
        finally:
            view.stop()
    runs = [round_robin, fifo]
    if options.plot_path is not None:
        url = kernel.database_url
        async with contextlib.aclosing(Database(url, name="aios-demo")) as database:
            for run in runs:
                run.slices = await read_slices(Ledger(database, keys), list(run.owners))
    return runs


def _conclude(options: DemoOptions, runs: list[PolicyRun]) -> bool:
    """Print the table, write the files, say whether the promises were kept."""
    by_policy = {run.policy: figures(run) for run in runs}
    say()
    show_table(*table_of(by_policy))
    say()
    if options.json_path is not None:
        report = Report(policies=by_policy, machine=machine(), versions=versions())
        options.json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        say(f"figures: {options.json_path}")
    if options.plot_path is not None:
        draw(runs, options.plot_path)
        say(f"chart: {options.plot_path}")
    round_robin, fifo = runs
    broken = broken_promises(round_robin, fifo)
    for line in broken:
        say(f"FAILED: {line}", err=True)
    if any((run.others_share or 0.0) > DISTURBED_SHARE for run in runs) and options.core == "llama":
        say(
            "Other programs had part of the processors all the time: on a quiet machine it is more."
        )
    if not broken:
        say(promises_kept(round_robin, fifo))
    return not broken


def _check_files(options: DemoOptions) -> None:
    """Find out now, not after the demo, whether its files can be written."""
    for path in (options.json_path, options.plot_path):
        if path is not None and not os.access(path.absolute().parent, os.W_OK):
            raise click.BadParameter(f"cannot write in {path.absolute().parent}")
    if options.plot_path is not None:
        require_matplotlib()


def _log_path(folder: Path) -> Path:
    """Return where the log is: beside the state directory, which the kernel deletes."""
    return folder / "kernel.log"


def _first(error: BaseException) -> BaseException:
    """Return the first KernelError in a tree of exceptions; else the tree."""
    found = error.subgroup(KernelError) if isinstance(error, BaseExceptionGroup) else None
    if found is None:
        return error
    return _first(found.exceptions[0])


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C: the kernel is stopped in order, nothing is left behind."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a shell's background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # asyncio ends its tasks in order
