"""`aios bench`: the measurements of this checkout, each a command of its own.

The benchmarks do not ship in the wheel: they need a checkout, as `aios test` does.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import click

import aios_broker
from aios_cli.main import Entry, LazyGroup
from aios_cli.test_command import find_checkout

BENCHMARKS = {
    "queues": Entry("aios_cli.bench_queues:queues", "Against other job queues.", False),
    "scale": Entry("aios_cli.bench_scale:scale", "Many agents, a long queue.", False),
    "chaos": Entry("aios_cli.bench_chaos:chaos", "Kill everything, lose nothing.", False),
}

bench = LazyGroup(
    "bench",
    BENCHMARKS,
    help_text="""Measure this checkout; figures with machine, date and commit.

    \b
    Examples:
      aios bench queues --quick           a first look, under a minute
      aios bench queues --json out.json   all peers, all loads, ten minutes
    """,
)


def the_checkout() -> Path:
    """Return the root of the checkout that this package stands in.

    Raises:
        click.ClickException: it is an installed package, without the benchmarks.
    """
    checkout = find_checkout(Path(aios_broker.__file__))
    if checkout is None:
        raise click.ClickException(
            "the benchmarks are not part of the installed package; "
            "run `./aios bench` in a checkout of the repository"
        )
    return checkout


def import_benchmark(name: str) -> ModuleType:
    """Import a module of the checkout: `benchmarks.queues.run`, `tests.faults.chaos`.

    The checkout goes last on the path: its folders (sdk, workers) must not hide a package.
    """
    checkout = str(the_checkout())
    if checkout not in sys.path:
        sys.path.append(checkout)
    return importlib.import_module(name)
