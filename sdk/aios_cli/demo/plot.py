"""The chart of the schedule: a Gantt of slices per slot, one panel per policy."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aios_broker.contract.errors import InvalidConfig
from aios_cli.demo.load import Role
from aios_cli.demo.report import figures
from aios_cli.demo.run import PolicyRun
from aios_cli.tables import plural, seconds

WIDTH_INCHES = 13.0
LANE_INCHES = 0.7
PANEL_INCHES = 0.8
DPI = 130
LABEL_MIN_SHARE = 0.02  # a slice shorter than this share of the time axis carries no label
COLOUR_MAPS: dict[Role, str] = {"story": "Blues", "list": "Greens", "question": "Oranges"}
# Of a colour map, for agents of one role in turn; its ends are too pale or too dark to tell apart.
SHADES = (0.8, 0.5, 0.65, 0.35)
DARK_BELOW = 0.45  # of luminance, 0 to 1: labels on darker bars are white

Lane = tuple[str, int]  # worker and slot


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
