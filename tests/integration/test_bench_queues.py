"""`aios bench queues` measures: our own path and the floor, with few jobs, without the peers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from aios_cli.main import cli
from benchmarks.__main__ import bench
from benchmarks.queues.catalogue import AGENTS, CONTESTANTS, FLOOR, KERNEL, LOADS
from benchmarks.queues.contest import Contest, Ground
from benchmarks.queues.plot import draw
from benchmarks.queues.report import Report, medians_of, ratios_of
from benchmarks.queues.run import Rounds, open_ground

TINY = 0.004  # of the jobs


def silent(_line: str) -> None: ...


def test_the_kernel_and_the_floor_are_measured_under_every_load(tmp_path: Path) -> None:
    wanted = [one.scaled(TINY) for one in CONTESTANTS if one.name in (KERNEL, AGENTS, FLOOR)]
    with open_ground(sys.executable, ledger=False, say=silent) as services:
        samples = Rounds(services, silent).run(wanted, LOADS, rounds=1, seed=1)
    found = {(sample.contestant, sample.load) for sample in samples}
    assert found == {(name, load) for name in (KERNEL, FLOOR) for load in LOADS} | {
        (AGENTS, "clients")
    }
    for sample in samples:
        assert sample.jobs_per_s > 0
        assert set(sample.cpu_us) >= {"client", "worker", "redis"}
        assert sample.reads > 0
        assert (sample.p50_ms is None) == (sample.load == "throughput")
    floor = next(one for one in samples if (one.contestant, one.load) == (FLOOR, "alone"))
    assert floor.commands == pytest.approx(5, abs=0.5)  # LPUSH, BLMOVE, LPUSH, LREM, BRPOP
    assert floor.reads == pytest.approx(4, abs=0.5)  # that is, nothing of ours is counted

    medians, ratios = medians_of(samples), ratios_of(samples, {})
    report = Report(
        "today", "abc", {"cpu": "?", "cpus": 2}, {}, 1, samples, medians, ratios, {}, []
    )
    draw(report, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_contestant_that_does_not_start_is_said_with_its_own_words(tmp_path: Path) -> None:
    [floor] = [one.scaled(TINY) for one in CONTESTANTS if one.name == FLOOR]
    with open_ground("/bin/false", ledger=False, say=silent) as services:
        broken = Ground(services.redis_url, None, None, "/bin/false", tmp_path)
        with pytest.raises(Exception, match="floor: its client has ended"), Contest(floor, broken):
            pass


def test_an_unknown_contestant_is_refused() -> None:
    told = CliRunner().invoke(bench, ["queues", "--only", "sidekiq"])
    assert told.exit_code == 2
    assert "huey" in told.output


def test_the_installed_product_says_where_its_benchmarks_are() -> None:
    told = CliRunner().invoke(cli, ["bench", "queues", "--json", "out.json"])
    assert told.exit_code == 2
    assert "run `./aios bench` in a checkout" in told.output
