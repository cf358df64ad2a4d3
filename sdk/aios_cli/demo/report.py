"""What the demo says in the end: figures per policy, and whether it kept its promises. Pure."""

import math
from collections.abc import Sequence

from msgspec import Struct

from aios_broker.contract.reply import ChatResult
from aios_cli.demo.run import PolicyRun
from aios_cli.tables import Column, plural, seconds


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
        makespan_s=_rounded(run.makespan_s),
        wait_mean_s=_rounded(sum(waits) / len(waits)) if waits else 0.0,
        wait_p90_s=_rounded(percentile(waits, 90)),
        short_wait_p90_s=_rounded(percentile(short, 90)),
        syscalls_per_s=_rounded(len(run.answers) / run.makespan_s),
        tokens_per_s=_rounded(tokens / run.makespan_s),
    )


def broken_promises(rr: PolicyRun, fifo: PolicyRun) -> list[str]:
    """Return, in words, every condition of success that does not hold."""
    broken = []
    for run in (rr, fifo):
        failed = [answer for answer in run.answers if answer.reply.error is not None]
        if failed:
            error = failed[0].reply.error
            assert error is not None
            broken.append(
                f"{plural(len(failed), 'syscall')} failed under {run.policy}; the first one, of "
                f"{failed[0].agent.name}: {error.code}: {error.message}"
            )
    rr_figures, fifo_figures = figures(rr), figures(fifo)
    if rr.compared == 0 or rr_figures.suspensions == 0:
        broken.append("no generation was preempted under rr")
    if rr.identical != rr.compared:
        broken.append(
            f"{rr.compared - rr.identical} of {rr.compared} preempted generations differ from "
            "their uninterrupted run"
        )
    if rr_figures.short_wait_p90_s >= fifo_figures.short_wait_p90_s:
        broken.append(
            f"the short requests' p90 wait is not lower under rr: {rr_figures.short_wait_p90_s} s "
            f"against {fifo_figures.short_wait_p90_s} s under fifo"
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


def _rounded(value: float) -> float:
    return round(value, 4)
