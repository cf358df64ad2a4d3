"""`aios bench scale`: many connected agents, a long queue; what decisions and memory cost."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from aios_cli.demo.report import machine, versions
from aios_cli.tables import Column, show_table
from benchmarks.provenance import ROOT, commit_of, today
from benchmarks.scale.report import MEBIBYTE
from benchmarks.scale.run import Figures, measure


class Report(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    date: str
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    figures: Figures


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
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write all figures as JSON.",
)
def scale(*, agents: int, waiting: int, ticks: int, json_path: Path | None) -> None:
    """Measure decisions, memory and idle cost with many agents and a long queue.

    docs/how-to-benchmark.md says what the figures mean.
    """
    figures = measure(agents=agents, waiting=waiting, ticks=ticks, say=_say)
    report = Report(today(), commit_of(ROOT), machine(), versions(), figures)
    show(figures)
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        click.echo(f"figures: {json_path}")


def show(figures: Figures) -> None:
    """Print what was found."""
    names = list(figures.memory_waiting.by_process)
    columns = [
        Column("process"),
        *(
            Column(title, "right")
            for title in (
                "MiB idle",
                "MiB waiting",
                "CPU % idle",
                "CPU % waiting",
            )
        ),
    ]
    show_table(
        columns,
        [
            [
                name,
                f"{figures.memory_idle.by_process[name] / MEBIBYTE:.1f}",
                f"{figures.memory_waiting.by_process[name] / MEBIBYTE:.1f}",
                f"{figures.idle_cpu[name]:.1f}",
                f"{figures.waiting_cpu[name]:.1f}",
            ]
            for name in names
        ],
    )
    click.echo()
    for policy, decisions in figures.decisions.items():
        click.echo(decisions.line(policy))
    click.echo()
    budget_columns = [
        Column("what"),
        Column("at most", "right"),
        Column("figure", "right"),
        Column(""),
    ]
    show_table(
        budget_columns,
        [
            [one.what, f"{one.limit:g}", f"{one.figure:,.2f}", "met" if one.met else "MISSED"]
            for one in figures.budgets
        ],
    )


def _say(line: str) -> None:
    click.echo(line, err=True)
