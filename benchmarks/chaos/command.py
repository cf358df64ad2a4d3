"""`aios bench chaos`: kill, stop and disturb everything; check that nothing was lost.

The logs of a run that broke a promise are kept.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click

from aios_broker.config import environment
from benchmarks.chaos.report import figures, lines
from benchmarks.chaos.run import ROOT, Wish, run_chaos
from benchmarks.chaos.schedule import GROUPS

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
EXIT_CODES = "Exit codes: 0 every promise was kept; 1 one was broken; 2 wrong usage."


@click.command(epilog=EXIT_CODES)
@click.option(
    "--minutes",
    type=click.FloatRange(0.1, 1440.0),
    default=1.0,
    show_default=True,
    help="How long the load lasts; start, drain and check come on top.",
)
@click.option("--seed", type=click.IntRange(0), help="Of all choices; else by chance, and printed.")
@click.option("--faults", metavar="KINDS", help="Only these, with commas between; else all.")
@click.option("--json", "json_path", type=_FILE, metavar="FILE", help="Write the figures as JSON.")
def chaos(*, minutes: float, seed: int | None, faults: str | None, json_path: Path | None) -> None:
    """Run a kernel of its own under faults, and prove from outside what it promises.

    Clients log what they submit and hear, faults come by a seeded schedule, and a checker reads
    the logs and the ledger: nothing lost, nothing answered twice, every invariant kept.

    \b
    Kinds of faults:
      kill      kill -9 of workers, schedulers, clients, Redis, Postgres
      stop      the same processes stopped, for less and for more than a lease
      restart   workers and schedulers stopped in order, and started again
      messages  finishes and submits sent twice or late, replies lost
      clock     wall clocks that jump by an hour
      poison    syscalls that crash, hang, or fill their worker
      hold      syscalls taken out of the queue and given back

    \b
    Examples:
      aios bench chaos --minutes 10 --json chaos.json
      aios bench chaos --seed 7 --faults kill,stop
    """  # noqa: D301 - \b keeps click from wrapping
    groups = tuple(faults.split(",")) if faults else GROUPS
    if unknown := [group for group in groups if group not in GROUPS]:
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(GROUPS)}", param_hint="--faults"
        )
    chosen = random.randrange(2**31) if seed is None else seed
    if not run(Wish(minutes * 60, chosen, groups), environment(), json_path):
        raise SystemExit(1)


def run(wish: Wish, environment: Mapping[str, str], json_path: Path | None) -> bool:
    """Run the chaos; return whether every promise was kept."""
    folder = Path(tempfile.mkdtemp(prefix="aios-chaos-"))
    print(f"{wish.length_s:g} s of {', '.join(wish.groups)}; seed {wish.seed}", flush=True)
    outcome = run_chaos(wish, folder, environment)
    report = figures(outcome, date=datetime.now(UTC).isoformat(timespec="seconds"), commit=commit())
    for line in lines(report):
        print(line)
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    if outcome.broken:
        print(f"the logs are in {folder}; again: --seed {wish.seed}")
    else:
        shutil.rmtree(folder)
    return not outcome.broken


def commit() -> str:
    """Return the checkout's commit, or `-`."""
    git = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "-"
