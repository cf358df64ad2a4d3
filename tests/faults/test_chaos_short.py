"""Chaos in small: the default lane sees that nothing is lost; the slow lane that bugs are found."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios_broker.config import environment
from benchmarks.chaos.report import figures, lines
from benchmarks.chaos.run import Wish, run_chaos
from benchmarks.chaos.schedule import GROUPS, schedule
from benchmarks.chaos.seeded import BUGS, Bug, broken_copy, judge

pytestmark = pytest.mark.timeout(600)

SHORT = Wish(
    8.0,
    seed=25,
    groups=("kill", "stop", "messages", "clock", "hold"),
    clients=2,
    gap_s=1.0,
    pause_s=0.3,
    wait_s=60.0,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="aios-chaos-") as name:
        yield Path(name)


def test_a_short_chaos_breaks_no_promise(folder: Path) -> None:
    outcome = run_chaos(SHORT, folder, environment())
    assert outcome.broken == []
    assert outcome.acknowledged > 50
    assert len(outcome.strikes) > 3
    report = figures(outcome, date="today", commit="this")
    assert (report["lost"], report["answered_twice"]) == (0, 0)
    assert any("syscalls" in line for line in lines(report))


def test_a_seed_is_a_schedule() -> None:
    first, again = (schedule(7, 600, GROUPS, gap_s=2, clients=3) for _ in range(2))
    assert first == again
    assert first != schedule(8, 600, GROUPS, gap_s=2, clients=3)
    assert {fault.kind for fault in first} == {"kill", "stop", "restart", "hold"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_every_seeded_bug_stands_in_the_source(bug: Bug, tmp_path: Path) -> None:
    path = broken_copy(bug, tmp_path) / bug.file
    assert bug.new in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_every_seeded_bug_is_found(bug: Bug) -> None:
    assert judge(bug).is_found
