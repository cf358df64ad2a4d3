"""The chart: jobs/s and CPU per job of everybody, a column per load."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from aios_broker.contract.errors import InvalidConfig
from benchmarks.queues.report import KINDS, Figures, Report

WIDTH_INCHES, HEIGHT_INCHES, DPI = 14.0, 8.0, 120
COLOURS = {"kernel": "tab:green", "floor": "tab:grey", "library": "tab:blue"}
TITLES = {
    "throughput": "throughput: all enqueued, all read",
    "alone": "alone in flight",
    "clients": "32 closed loops",
}


def require_matplotlib() -> None:
    """Fail before the measurement, not after it.

    Raises:
        InvalidConfig: the `plot` extra is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidConfig(
            "the chart needs matplotlib",
            field="--plot",
            remedy="install 'aios-broker[plot]', or leave --plot out",
        )


def draw(report: Report, path: Path) -> None:
    """Write the chart as a PNG; both axes of figures are logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(report.medians), squeeze=False)
    for column, (load, rows) in enumerate(report.medians.items()):
        ordered = sorted(rows.items(), key=lambda row: row[1].jobs_per_s.median)
        _bars(axes[0][column], [(name, row.jobs_per_s.median) for name, row in ordered])
        _bars(axes[1][column], [(name, row.cpu_us.median) for name, row in ordered])
        axes[0][column].set_title(TITLES.get(load, load))
        axes[0][column].set_xlabel("jobs/s (more is better)")
        axes[1][column].set_xlabel("CPU us per job, all processes (less is better)")
        _whiskers(axes[0][column], ordered)
    figure.suptitle(
        f"aios bench queues, {report.date}, commit {report.commit}, {report.machine['cpu']}, "
        f"{report.machine['cpus']} CPUs",
        fontsize=9,
    )
    figure.savefig(path, format="png")


def _bars(axis: Any, rows: list[tuple[str, float]]) -> None:
    names, values = [name for name, _ in rows], [value for _, value in rows]
    bars = axis.barh(names, values, color=[COLOURS[KINDS[name]] for name in names])
    axis.set_xscale("log")
    axis.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=3, fontsize=8)
    axis.margins(x=0.2)


def _whiskers(axis: Any, ordered: list[tuple[str, Figures]]) -> None:
    for at, (_, row) in enumerate(ordered):
        axis.hlines(at, row.jobs_per_s.low, row.jobs_per_s.high, color="black", linewidth=1)
