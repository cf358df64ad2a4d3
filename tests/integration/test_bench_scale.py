"""`aios bench scale` measures: in small, a real kernel, some agents, a short queue."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.against import ROOT, compare, decisions_in_turns
from benchmarks.scale.report import MEBIBYTE
from benchmarks.scale.run import Figures, measure


@pytest.mark.slow
def test_decisions_memory_and_idle_cost_are_measured() -> None:
    said: list[str] = []
    figures = measure(agents=8, waiting=1200, ticks=20, say=said.append)
    assert figures.waiting == 1200
    assert set(figures.memory_waiting.by_process) == {
        "redis",
        "postgres",
        "scheduler",
        "tool",
        "llm",
    }
    assert figures.memory_waiting.total_bytes > 20 * MEBIBYTE
    assert set(figures.decisions) == {"fifo", "rr", "priority"}
    priority = figures.decisions["priority"]
    assert priority.redis.p50 > 0  # it asked
    assert priority.sweep_pieces > 3
    assert len(figures.budgets) == 3
    assert msgspec.json.decode(msgspec.json.encode(figures), type=Figures) == figures
    assert len(said) >= 5


@pytest.mark.slow
def test_two_checkouts_decide_in_turns() -> None:
    rounds = decisions_in_turns(ROOT, 2, sizes=(4, 1200))
    rows = {row["what"]: row for row in compare(rounds)}
    assert len(rows) == 10  # five of each policy
    for row in rows.values():
        assert row["here"] > 0
        assert row["there"] > 0
        assert len(row["ratios"]) == 2
