"""`aios bench queues`: our hot path against other job queues on one Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from aios_cli.demo.report import machine, versions
from aios_cli.tables import Column, show_table
from benchmarks.provenance import ROOT, commit_of, today
from benchmarks.queues.catalogue import CONTESTANTS, LOADS, NAMES, QUICK_SHARE, Contestant
from benchmarks.queues.contest import Sample
from benchmarks.queues.environment import peers_python, versions_of
from benchmarks.queues.plot import draw, require_matplotlib
from benchmarks.queues.report import (
    COLUMNS,
    Report,
    best_libraries,
    budget_rows,
    budgets_of,
    medians_of,
    ratios_of,
    table_of,
)
from benchmarks.queues.run import Rounds, open_ground

ROUNDS = 3
_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person asked for."""

    quick: bool
    rounds: int | None
    seed: int | None
    only: tuple[str, ...]  # contestants; none: all
    json_path: Path | None
    plot_path: Path | None


@click.command()
@click.option("--quick", is_flag=True, help="One round with fewer jobs: under a minute, rough.")
@click.option("--rounds", type=click.IntRange(1, 20), help="How often everybody runs; 3.")
@click.option("--seed", type=click.IntRange(0), help="Of the order in each round; else by chance.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(NAMES),
    metavar="NAME",
    help="Measure this one; repeat for more.",
)
@click.option("--json", "json_path", type=_FILE, metavar="FILE", help="Write all figures as JSON.")
@click.option("--plot", "plot_path", type=_FILE, metavar="FILE", help="Write a chart as PNG.")
def queues(**given: object) -> None:
    """Measure no-op syscalls against RQ, Celery, Dramatiq, huey, saq, Taskiq and a bare list.

    All run on one Redis, interleaved, in three loads. The peers are installed into .aios/bench
    on first use. docs/how-to-benchmark.md says how to read the tables.
    """
    run(ROOT, msgspec.convert(given, Wishes))


def run(checkout: Path, wishes: Wishes) -> Report:
    """Measure, print the tables, write the files."""
    if wishes.plot_path is not None:
        require_matplotlib()  # now, not after the measurement
    seed = secrets.randbelow(10_000) if wishes.seed is None else wishes.seed
    contestants = chosen(wishes)
    python = peers_python(checkout, _say)
    samples: list[Sample] = []
    with open_ground(str(python), ledger=True, say=_say) as ground:
        _say(f"seed {seed}")
        rounds = wishes.rounds or (1 if wishes.quick else ROUNDS)
        contest = Rounds(ground, _say)
        samples += contest.run(contestants, LOADS, rounds=rounds, seed=seed)
    installed = {**versions(), **versions_of(python)}
    report = report_of(checkout, samples, seed, installed, failures=contest.failures)
    show(report)
    if wishes.json_path is not None:
        wishes.json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        click.echo(f"figures: {wishes.json_path}")
    if wishes.plot_path is not None:
        draw(report, wishes.plot_path)
        click.echo(f"chart: {wishes.plot_path}")
    return report


def chosen(wishes: Wishes) -> list[Contestant]:
    """Return who takes part, with as many jobs as are wanted."""
    wanted = [one for one in CONTESTANTS if not wishes.only or one.name in wishes.only]
    return [one.scaled(QUICK_SHARE) for one in wanted] if wishes.quick else wanted


def report_of(
    checkout: Path,
    samples: Sequence[Sample],
    seed: int,
    installed: dict[str, str],
    *,
    failures: Sequence[str] = (),
) -> Report:
    """Return all that is known of a run."""
    medians = medians_of(samples)
    best = best_libraries(medians)
    ratios = ratios_of(samples, best)
    return Report(
        date=today(),
        commit=commit_of(checkout),
        machine=machine(),
        versions=installed,
        seed=seed,
        rounds=list(samples),
        medians=medians,
        ratios=ratios,
        best_library=best,
        budgets=budgets_of(medians, ratios),
        failures=list(failures),
    )


def show(report: Report) -> None:
    """Print a table per load, and the promises."""
    columns = [Column(title, "right" if at else "left") for at, title in enumerate(COLUMNS)]
    for load in report.medians:
        click.secho(f"\n{load}", bold=True)
        show_table(columns, table_of(report.medians, report.ratios, load))
    click.secho("\nbudgets", bold=True)
    budget_columns = [Column("what"), Column("budget"), Column("figure", "right"), Column("")]
    show_table(budget_columns, budget_rows(report.budgets))
    for failure in report.failures:
        click.echo(f"not finished, {failure}")


def _say(line: str) -> None:
    click.echo(line, err=True)
