"""From samples to what is told: medians and ranges, ratios within rounds, budgets. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from benchmarks.queues.catalogue import (
    CONTESTANTS,
    FLOOR,
    KERNEL,
    LOADS,
    RQ,
    Kind,
    Load,
)
from benchmarks.queues.contest import Sample

KINDS: Mapping[str, Kind] = {one.name: one.kind for one in CONTESTANTS}
PROCESSES = ("client", "worker", "scheduler", "redis", "ledger")


class Spread(Struct, frozen=True):
    """A figure over all rounds."""

    median: float
    low: float
    high: float


class Figures(Struct, frozen=True):
    """One contestant under one load; costs are per job."""

    rounds: int
    jobs_per_s: Spread
    cpu_us: Spread  # client, worker, scheduler and Redis together
    cpu_us_by_process: dict[str, float]  # medians; `ledger` is the kernel's Postgres
    commands: Spread
    reads: Spread
    p50_ms: Spread | None
    p99_ms: Spread | None


class Ratio(Struct, frozen=True):
    """Us against one contestant under one load, each round by itself; above 1 we are better."""

    jobs_per_s: Spread  # ours by theirs
    cpu: Spread  # theirs by ours
    p50: Spread | None  # theirs by ours


class Budget(Struct, frozen=True):
    """A promise and what was measured; `figure` None: not measured in this run."""

    what: str
    limit: float
    at_least: bool  # else at most
    figure: float | None
    met: bool | None


class Report(Struct, frozen=True):
    """What `--json` writes."""

    date: str
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    seed: int
    rounds: list[Sample]
    medians: dict[str, dict[str, Figures]]  # load -> contestant
    ratios: dict[str, dict[str, Ratio]]  # load -> contestant, and `best-library`
    best_library: dict[str, str]  # load -> the library of the most jobs/s
    budgets: list[Budget]
    failures: list[str] = []  # libraries that did not finish a load, and in which round


Medians = dict[str, dict[str, Figures]]
Ratios = dict[str, dict[str, Ratio]]
BEST = "best-library"


def spread(values: Iterable[float]) -> Spread:
    """Return median, lowest and highest."""
    known = [round(value, 4) for value in values]
    return Spread(round(statistics.median(known), 4), min(known), max(known))


def medians_of(samples: Sequence[Sample]) -> Medians:
    """Return each contestant's figures under each load."""
    found: Medians = {}
    for load in LOADS:
        names = {sample.contestant: None for sample in samples if sample.load == load}
        if names:
            found[load] = {name: _figures(_of(samples, name, load)) for name in names}
    return found


def best_libraries(medians: Medians) -> dict[str, str]:
    """Return, by load, the library that does the most jobs/s."""
    best: dict[str, str] = {}
    for load, rows in medians.items():
        libraries = [name for name in rows if KINDS[name] == "library"]
        if libraries:
            best[load] = max(libraries, key=lambda name: rows[name].jobs_per_s.median)
    return best


def ratios_of(samples: Sequence[Sample], best: Mapping[str, str]) -> Ratios:
    """Return how our main row compares, round by round, with everybody under each load."""
    found: Ratios = {}
    for load in LOADS:
        ours = _of(samples, KERNEL, load)
        names = {sample.contestant: None for sample in samples if sample.load == load}
        rows = {
            name: _ratio(ours, _of(samples, name, load))
            for name in names
            if ours and name != KERNEL
        }
        if load in best and best[load] in rows:
            rows[BEST] = rows[best[load]]
        if rows:
            found[load] = rows
    return found


def budgets_of(medians: Medians, ratios: Ratios) -> list[Budget]:
    """Return each promise of DESIGN section 10 about the queue, with its figure."""

    def ours(load: Load, figure: Callable[[Figures], Spread]) -> float | None:
        row = medians.get(load, {}).get(KERNEL)
        return None if row is None else figure(row).median

    def against(name: str, load: Load = "throughput") -> float | None:
        row = ratios.get(load, {}).get(name)
        return None if row is None else row.jobs_per_s.median

    floor = ratios.get("alone", {}).get(FLOOR)
    by_floor = None if floor is None or floor.p50 is None else round(1 / floor.p50.median, 2)
    return [
        _at_least("jobs/s by those of RQ SimpleWorker, throughput", 50, against(RQ)),
        _at_least("jobs/s by those of the best library, throughput", 8, against(BEST)),
        _at_most("CPU us per syscall, throughput", 80, ours("throughput", lambda f: f.cpu_us)),
        _at_most("CPU us per syscall, 32 clients", 120, ours("clients", lambda f: f.cpu_us)),
        _at_most(
            "Redis commands per syscall, throughput", 9, ours("throughput", lambda f: f.commands)
        ),
        _at_most(
            "Redis commands per syscall, 32 clients", 9, ours("clients", lambda f: f.commands)
        ),
        _at_most("socket reads per syscall, 32 clients", 0.25, ours("clients", lambda f: f.reads)),
        _at_most("socket reads per syscall, alone", 5, ours("alone", lambda f: f.reads)),
        _at_most("p50 alone by that of the floor", 2, by_floor),
    ]


def table_of(medians: Medians, ratios: Ratios, load: str) -> list[list[str]]:
    """Return the rows of one load's table, the most jobs/s first."""
    rows = sorted(medians[load].items(), key=lambda row: -row[1].jobs_per_s.median)
    return [
        [
            name,
            f"{figures.jobs_per_s.median:,.0f}",
            f"{figures.jobs_per_s.low:,.0f}-{figures.jobs_per_s.high:,.0f}",
            _times(ratios.get(load, {}).get(name), lambda ratio: ratio.jobs_per_s),
            f"{figures.cpu_us.median:,.0f}",
            "+".join(f"{figures.cpu_us_by_process.get(one, 0):,.0f}" for one in PROCESSES),
            _times(ratios.get(load, {}).get(name), lambda ratio: ratio.cpu),
            f"{figures.commands.median:.1f}",
            f"{figures.reads.median:.2f}",
            "-" if figures.p50_ms is None else f"{figures.p50_ms.median:.2f}",
            "-" if figures.p99_ms is None else f"{figures.p99_ms.median:.2f}",
        ]
        for name, figures in rows
    ]


COLUMNS = (
    "contestant",
    "jobs/s",
    "range",
    "we x",
    "CPU us/job",
    "client+worker+sched.+redis+ledger",
    "we x",
    "commands",
    "reads",
    "p50 ms",
    "p99 ms",
)


def budget_rows(budgets: Sequence[Budget]) -> list[list[str]]:
    """Return the rows of the table of promises."""
    verdicts = {True: "met", False: "MISSED", None: "not measured"}
    return [
        [
            budget.what,
            f"{'>=' if budget.at_least else '<='} {budget.limit:g}",
            "-" if budget.figure is None else f"{budget.figure:,.2f}",
            verdicts[budget.met],
        ]
        for budget in budgets
    ]


def _of(samples: Sequence[Sample], name: str, load: Load) -> list[Sample]:
    return [sample for sample in samples if sample.contestant == name and sample.load == load]


def _figures(samples: Sequence[Sample]) -> Figures:
    processes = {name: None for sample in samples for name in sample.cpu_us}
    return Figures(
        rounds=len(samples),
        jobs_per_s=spread(sample.jobs_per_s for sample in samples),
        cpu_us=spread(sample.cpu_total_us for sample in samples),
        cpu_us_by_process={
            name: spread(sample.cpu_us[name] for sample in samples).median for name in processes
        },
        commands=spread(sample.commands for sample in samples),
        reads=spread(sample.reads for sample in samples),
        p50_ms=_latency([sample.p50_ms for sample in samples]),
        p99_ms=_latency([sample.p99_ms for sample in samples]),
    )


def _latency(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def _ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Ratio:
    """Compare within rounds: what disturbs the machine disturbs both sides of a quotient."""
    by_round = {sample.round: sample for sample in theirs}
    pairs = [(one, by_round[one.round]) for one in ours if one.round in by_round]
    return Ratio(
        jobs_per_s=spread(a.jobs_per_s / b.jobs_per_s for a, b in pairs),
        cpu=spread(b.cpu_total_us / a.cpu_total_us for a, b in pairs),
        p50=_latency([b.p50_ms / a.p50_ms for a, b in pairs if a.p50_ms and b.p50_ms]),
    )


def _at_least(what: str, limit: float, figure: float | None) -> Budget:
    return Budget(
        what, limit, at_least=True, figure=figure, met=None if figure is None else figure >= limit
    )


def _at_most(what: str, limit: float, figure: float | None) -> Budget:
    return Budget(
        what, limit, at_least=False, figure=figure, met=None if figure is None else figure <= limit
    )


def _times(ratio: Ratio | None, figure: Callable[[Ratio], Spread]) -> str:
    return "" if ratio is None else f"{figure(ratio).median:.1f}"
