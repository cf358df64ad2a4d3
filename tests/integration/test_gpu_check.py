"""`python -m benchmarks.gpu_check` measures: all parts, in small, on servers of both kinds."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.provenance import ROOT
from tests.sglang_servers import CPU_FLAGS, sglang_python
from tests.tiny_llama import write_model

LIMIT_S = 280


def check(path: Path, part: str, *flags: object) -> dict[str, Any]:
    """Run one part; return what it wrote."""
    command = (sys.executable, "-m", "benchmarks.gpu_check", part, "--json", path, *flags)
    done = subprocess.run(
        [str(each) for each in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(path.read_text())
    assert "failed" not in found
    assert {"date", "commit", "machine", "server", "flags"} <= set(found)
    return found


@pytest.mark.slow
def test_programs_under_pressure_are_measured_in_each_order(tmp_path: Path) -> None:
    found = check(
        tmp_path / "pressure.json",
        "pressure",
        *("--core", "simulated", "--kv-tokens", 1500, "--context-tokens", 4096, "--slots", 2),
        *("--programs", 6, "--turns", 2, "--turn-tokens", 300, "--new-tokens", 40),
        *("--rate", 10, "--pause-cap-s", 0.2, "--quantum", 16),
    )
    assert found["load"]["contexts_that_fit"] < found["load"]["programs"]
    for name in ("direct", "fifo", "rr"):
        assert found[name]["programs_done"] == found[name]["of"] == 6, name
        assert found[name]["completion_mean_s"] > 0
        assert found[name]["prompt_tokens_read"] > 1_000
    assert found["direct"]["suspensions"] == found["fifo"]["suspensions"] == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Give the flags of a real server that the check starts."""
    model = write_model(tmp_path_factory.mktemp("tiny"), seed=7)
    flags = shlex.join([*CPU_FLAGS, "--dtype", "float32"])
    return [
        *("--start", str(model), "--sglang-python", sglang_python()),
        *("--sglang-flags", flags, "--context-tokens", "2048", "--limit-s", "250"),
    ]


@pytest.mark.sglang
@pytest.mark.timeout(600)
def test_exactness_over_cuts_is_counted_on_a_real_server(server: list[str], tmp_path: Path) -> None:
    few = ("--count", 6, "--prompt-tokens", 120, "--new-tokens", 96, "--quantum", 8, "--slots", 1)
    found = check(
        tmp_path / "exactness.json", "exactness", *server, *few, "--in-flight", 3, "--control", 0
    )
    assert found["sampled"].startswith("left out")  # a CPU server draws by no seed
    row = found["one_server"]
    assert row["by_kind"]["greedy"] == {"compared": 6, "identical": 6}
    assert row["suspensions"] > 0
    assert row["core"]["resumptions"] >= row["suspensions"]
    assert row["core"]["all_but_one_cached"] > 0


@pytest.mark.sglang
@pytest.mark.timeout(600)
def test_overhead_is_measured_in_turns_on_a_real_server(server: list[str], tmp_path: Path) -> None:
    few = ("--levels", "1,2", "--requests", 4, "--prompt-tokens", 64, "--new-tokens", 16)
    found = check(tmp_path / "overhead.json", "overhead", *server, *few, "--rounds", 2)
    for level in ("1", "2"):
        row = found["levels"][level]
        assert len(row["direct"]) == len(row["kernel"]) == 2
        assert all(run["failed"] == 0 for run in (*row["direct"], *row["kernel"]))
        assert row["ratios"]["tokens_per_s"] > 0
