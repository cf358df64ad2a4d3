"""`aios bench queues`: our hot path against other job queues on one Redis."""

from __future__ import annotations

from pathlib import Path

import click

from aios_cli.bench import import_benchmark, the_checkout

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.option("--quick", is_flag=True, help="One round with fewer jobs: under a minute, rough.")
@click.option("--rounds", type=click.IntRange(1, 20), help="How often everybody runs; 3.")
@click.option("--seed", type=click.IntRange(0), help="Of the order in each round; else by chance.")
@click.option("--only", multiple=True, metavar="NAME", help="Measure this one; repeat for more.")
@click.option("--json", "json_path", type=_FILE, metavar="FILE", help="Write all figures as JSON.")
@click.option("--plot", "plot_path", type=_FILE, metavar="FILE", help="Write a chart as PNG.")
def queues(
    *,
    quick: bool,
    rounds: int | None,
    seed: int | None,
    only: tuple[str, ...],
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure no-op syscalls against RQ, Celery, Dramatiq, huey, saq, Taskiq and a bare list.

    All run on one Redis, interleaved, in three loads. The peers are installed into .aios/bench
    on first use. docs/how-to-benchmark.md says how to read the tables.
    """
    checkout = the_checkout()
    command = import_benchmark("benchmarks.queues.command")
    names = import_benchmark("benchmarks.queues.catalogue").NAMES
    for name in only:
        if name not in names:
            raise click.BadParameter(f"{name!r} is none of {', '.join(names)}", param_hint="--only")
    wishes = command.Wishes(quick, rounds, seed, only, json_path, plot_path)
    command.run(checkout, wishes)
