"""The benchmarks' arithmetic: medians, ratios within rounds, budgets, quantiles."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from benchmarks.against import of_scale
from benchmarks.queues.catalogue import CLIENTS, CONTESTANTS, LOADS, Load
from benchmarks.queues.command import Wishes, chosen
from benchmarks.queues.contest import Sample
from benchmarks.queues.meter import Reading
from benchmarks.queues.report import (
    BEST,
    KINDS,
    Report,
    Spread,
    best_libraries,
    budget_rows,
    budgets_of,
    medians_of,
    ratios_of,
    spread,
    table_of,
)
from benchmarks.scale.command import Report as ScaleReport
from benchmarks.scale.report import MEBIBYTE, Decisions, Memory, Quantiles, quantiles
from benchmarks.scale.report import budgets_of as scale_budgets_of
from benchmarks.scale.run import Figures


def sample(
    name: str,
    number: int,
    jobs_per_s: float,
    *,
    load: Load = "throughput",
    p50: float | None = None,
) -> Sample:
    cpu_us = {"client": 10.0, "worker": 20.0, "redis": 1e6 / jobs_per_s, "ledger": 500.0}
    return Sample(
        contestant=name,
        load=load,
        round=number,
        jobs=100,
        jobs_per_s=jobs_per_s,
        cpu_us=cpu_us,
        commands=7.0,
        calls={"hset": 3.0},
        reads=0.2,
        p50_ms=p50,
        p99_ms=p50,
    )


SAMPLES = [
    sample("aios", 1, 10_000),
    sample("aios", 2, 20_000),
    sample("aios", 3, 30_000),
    sample("rq-simple", 1, 100),
    sample("rq-simple", 2, 400),
    sample("rq-simple", 3, 500),
    sample("huey", 1, 1000),
    sample("huey", 2, 2000),
    sample("huey", 3, 6000),
    sample("floor", 1, 50_000),
    sample("aios", 1, 900, load="alone", p50=0.5),
    sample("floor", 1, 2000, load="alone", p50=0.2),
]


def test_a_median_and_its_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)


def test_figures_are_medians_over_rounds_and_the_ledger_is_told_apart() -> None:
    ours = medians_of(SAMPLES)["throughput"]["aios"]
    assert ours.rounds == 3
    assert ours.jobs_per_s == Spread(20_000, 10_000, 30_000)
    assert ours.cpu_us.median == 10 + 20 + 50
    assert ours.cpu_us_by_process["ledger"] == 500
    assert ours.p50_ms is None


def test_ratios_are_taken_within_rounds() -> None:
    ratios = ratios_of(SAMPLES, {"throughput": "huey"})["throughput"]
    assert ratios["rq-simple"].jobs_per_s == Spread(60, 50, 100)  # not 20,000 / 400
    assert ratios["huey"].jobs_per_s == Spread(10, 5, 10)
    assert ratios[BEST] == ratios["huey"]
    assert ratios["floor"].jobs_per_s == Spread(0.2, 0.2, 0.2)  # the one round that it ran in
    assert "aios" not in ratios


def test_the_best_library_is_no_floor_and_not_us() -> None:
    assert best_libraries(medians_of(SAMPLES)) == {"throughput": "huey"}


def test_each_budget_has_its_figure_and_its_verdict() -> None:
    medians = medians_of(SAMPLES)
    budgets = budgets_of(medians, ratios_of(SAMPLES, best_libraries(medians)))
    found = {budget.what: (budget.figure, budget.met) for budget in budgets}
    assert found["jobs/s by those of RQ SimpleWorker, throughput"] == (60, True)
    assert found["jobs/s by those of the best library, throughput"] == (10, True)
    assert found["CPU us per syscall, throughput"] == (80, True)
    assert found["p50 alone by that of the floor"] == (2.5, False)
    assert found["CPU us per syscall, 32 clients"] == (None, None)
    assert [row[-1] for row in budget_rows(budgets)].count("not measured") == 3


def test_without_us_there_are_no_ratios() -> None:
    others = [one for one in SAMPLES if one.contestant != "aios"]
    assert ratios_of(others, {}) == {}
    assert all(budget.met is None for budget in budgets_of(medians_of(others), {}))


def test_a_table_has_the_fastest_first() -> None:
    medians = medians_of(SAMPLES)
    rows = table_of(medians, ratios_of(SAMPLES, {}), "throughput")
    assert [row[0] for row in rows] == ["floor", "aios", "huey", "rq-simple"]
    assert rows[2][3] == "10.0"


def test_a_report_is_json_that_reads_back() -> None:
    medians = medians_of(SAMPLES)
    report = Report("today", "abc", {"cpus": 2}, {}, 7, SAMPLES, medians, {}, {}, [])
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_the_catalogue_is_sound() -> None:
    names = [one.name for one in CONTESTANTS]
    assert len(names) == len(set(names)) == len(KINDS)
    assert {one.kind for one in CONTESTANTS} == {"kernel", "floor", "library"}
    for one in CONTESTANTS:
        assert set(one.jobs) <= set(LOADS)
        assert one.jobs.get("clients", CLIENTS) >= CLIENTS


def test_a_quick_run_has_fewer_jobs_and_only_who_is_wanted() -> None:
    wishes = Wishes(quick=True, rounds=None, seed=1, only=("huey",), json_path=None, plot_path=None)
    [huey] = chosen(wishes)
    [whole] = chosen(replace(wishes, quick=False))
    assert huey.jobs["throughput"] < whole.jobs["throughput"]


def test_a_meter_counts_what_came_between() -> None:
    before = Reading({"redis": 1.0}, {"hset": 5}, 10)
    used = Reading({"redis": 1.5}, {"hset": 7, "xadd": 2}, 14).since(before)
    assert (used.cpu_s, used.commands, used.reads) == ({"redis": 0.5}, 4, 4)


def test_quantiles_by_nearest_rank() -> None:
    assert quantiles([]) == Quantiles(0, 0, 0)
    assert quantiles([float(number) for number in range(100)]) == Quantiles(50, 99, 99)


@pytest.mark.parametrize(("p50", "mebibytes", "met"), [(0.9, 900, True), (1.1, 1100, False)])
def test_the_slowest_policy_and_all_processes_count(
    p50: float,
    mebibytes: int,
    met: bool,  # noqa: FBT001
) -> None:
    fast, slow = decisions(0.1), decisions(p50)
    memory = Memory({"redis": mebibytes * MEBIBYTE - 5, "scheduler": 5})
    budgets = scale_budgets_of(memory, {"fifo": fast, "priority": slow})
    assert [budget.met for budget in budgets] == [met, met, met]


def test_two_checkouts_are_compared_by_what_the_scale_benchmark_writes() -> None:
    memory = Memory({"redis": 3 * MEBIBYTE, "scheduler": MEBIBYTE})
    found = Figures(4, 8, 0.5, 2.0, {}, {}, memory, memory, {"rr": decisions(0.25)}, [])
    written = msgspec.json.encode(ScaleReport("2026-01-01", "abc", {}, {}, found))
    figures = of_scale(msgspec.json.decode(written))
    assert figures["fill s"] == 2.0
    assert figures["rr: decision p50 ms"] == 0.25
    assert figures["MiB, all processes, waiting"] == 4.0


def decisions(p50: float) -> Decisions:
    one = Quantiles(p50, p50, p50)
    return Decisions(1, one, one, one, one, one, one, one, 0.0, 0)
