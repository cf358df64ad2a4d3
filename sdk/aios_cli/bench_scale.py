"""`aios bench scale`: many connected agents, a long queue; what decisions and memory cost."""

from __future__ import annotations

from pathlib import Path

import click

from aios_cli.bench import import_benchmark, the_checkout

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.option("--agents", type=click.IntRange(4, 4000), default=2000, show_default=True)
@click.option("--waiting", type=click.IntRange(4, 500_000), default=100_000, show_default=True)
@click.option(
    "--ticks",
    type=click.IntRange(10, 10_000),
    default=300,
    show_default=True,
    help="Decisions that are timed under each policy.",
)
@click.option("--json", "json_path", type=_FILE, metavar="FILE", help="Write all figures as JSON.")
def scale(*, agents: int, waiting: int, ticks: int, json_path: Path | None) -> None:
    """Measure decisions, memory and idle cost with many agents and a long queue.

    docs/how-to-benchmark.md says what the figures mean.
    """
    checkout = the_checkout()
    command = import_benchmark("benchmarks.scale.command")
    command.run(checkout, agents=agents, waiting=waiting, ticks=ticks, json_path=json_path)
