"""This checkout against another one, in turns: is it slower?

    python -m benchmarks.against ../before queues --rounds 5      no-op syscalls (`bench queues`)
    python -m benchmarks.against ../before scale --rounds 1       2,000 agents, 100,000 waiting
    python -m benchmarks.against ../before failover --rounds 2    ten kills of each kind a round
    python -m benchmarks.against ../before decisions --rounds 60  100,000 waiting, a second a round
    python -m benchmarks.against ../before queues --json out.json

Each round runs the one and the other's own benchmark, each in its own environment (`./aios` has
made it), in changing order, so that what the machine does meanwhile meets both. A ratio is taken
within a round; printed are the medians, and the median of the ratios.

What a machine does in the minute of one `scale` moves its decisions by more than a few per cent.
For `decisions` both queues stand side by side, and a round is 40 ticks of each: this checkout's
benchmark (`scale/in_turns.py`) with each one's broker.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aios_broker.config import environment
from benchmarks.provenance import commit_of, today

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 3600.0  # of one benchmark
KILLS = 10  # of each kind, in a round of `failover`
DECISIONS = "decisions"
IN_TURNS = ROOT / "benchmarks" / "scale" / "in_turns.py"
POLICIES = ("rr", "priority")  # under fifo nothing is to be decided
SIZES = (2_000, 100_000)  # agents, and what waits
TICKS = 40  # of each side in a round of `decisions`
PATIENCE_S = 300.0  # a side has filled its queue by then
END_S = 30.0  # and has ended by then

Figures = dict[str, float]
Sizes = tuple[int, int]


def of_queues(report: Mapping[str, Any]) -> Figures:
    """Return what one round of the queue benchmark found of us."""
    figures: Figures = {}
    for sample in report["rounds"]:
        load = sample["load"]
        used = {name: us for name, us in sample["cpu_us"].items() if name != "ledger"}
        figures[f"{load}: us per job"] = 1e6 / sample["jobs_per_s"]
        figures[f"{load}: CPU us per job"] = sum(used.values())
        figures[f"{load}: Redis commands per job"] = sample["commands"]
        if sample["p50_ms"] is not None:
            figures[f"{load}: p50 ms"] = sample["p50_ms"]
    return figures


def of_scale(report: Mapping[str, Any]) -> Figures:
    """Return what one round of the scale benchmark found."""
    measured = report["figures"]
    figures: Figures = {"fill s": measured["fill_s"]}
    for policy, found in measured["decisions"].items():
        figures[f"{policy}: decision p50 ms"] = found["wall"]["p50"]
        figures[f"{policy}: decision p99 ms"] = found["wall"]["p99"]
        figures[f"{policy}: submit p50 ms"] = found["submit"]["p50"]
        figures[f"{policy}: claim p50 ms"] = found["claim"]["p50"]
    weighed = measured["memory_waiting"]["by_process"].values()
    return {**figures, "MiB, all processes, waiting": sum(weighed) / 2**20}


def of_failover(report: Mapping[str, Any]) -> Figures:
    """Return what one round of kills found."""
    return {f"{who} killed: s": report[who]["median_s"] for who in ("scheduler", "worker")}


BENCHMARKS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Figures]]] = {
    "queues": (("./aios", "bench", "queues", "--only", "aios", "--rounds", "1"), of_queues),
    "scale": (("./aios", "bench", "scale"), of_scale),
    "failover": (
        (".aios/venv/bin/python", "benchmarks/failover.py", "--runs", str(KILLS)),
        of_failover,
    ),
}


def measure(checkout: Path, name: str) -> Figures:
    """Run a checkout's own benchmark once; what it says goes to standard error."""
    command, read = BENCHMARKS[name]
    with tempfile.TemporaryDirectory(prefix="aios-against-") as folder:
        path = Path(folder) / "figures.json"
        # The other checkout's commands import its own packages, not those of our environment.
        environ = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
        subprocess.run(
            (*command, "--json", str(path)),
            cwd=checkout,
            env=environ,
            stdout=sys.stderr,
            check=False,
            timeout=LIMIT_S,
        )
        if not path.exists():
            raise SystemExit(f"{name} of {checkout} wrote no figures: see above")
        return read(json.loads(path.read_bytes()))


def one_after_the_other(other: Path, name: str, num_rounds: int) -> list[tuple[Figures, Figures]]:
    """Run a whole benchmark of the one, then of the other, in changing order."""
    rounds: list[tuple[Figures, Figures]] = []
    for number in range(num_rounds):
        checkouts = [ROOT, other]
        if number % 2:
            checkouts.reverse()
        found = {checkout: measure(checkout, name) for checkout in checkouts}
        rounds.append((found[ROOT], found[other]))
    return rounds


class Side:
    """A queue of one checkout's broker, decided on when it is told to."""

    def __init__(self, checkout: Path, policy: str, sizes: Sizes) -> None:
        command = (".aios/venv/bin/python", "-P", str(IN_TURNS), policy, *map(str, sizes))
        self._policy, self._name = policy, f"the queue of {checkout}"
        self._process = subprocess.Popen(
            command,
            cwd=checkout,
            env=environment() | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        """Wait until the queue stands in the policy's order."""
        self._hear()

    def ticks(self, count: int) -> Figures:
        """Let so many ticks pass; return their figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return {f"{self._policy}: {what}": figure for what, figure in self._hear().items()}

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=END_S)

    def _hear(self) -> Figures:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            raise SystemExit(f"{self._name} did not answer within {PATIENCE_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} has ended: see above")
        figures: Figures = json.loads(line)
        return figures


def decisions_in_turns(
    other: Path, num_rounds: int, sizes: Sizes = SIZES
) -> list[tuple[Figures, Figures]]:
    """Time both brokers' decisions, some ticks of the one and some of the other."""
    rounds: list[tuple[Figures, Figures]] = [({}, {}) for _ in range(num_rounds)]
    for policy in POLICIES:
        sides = [Side(checkout, policy, sizes) for checkout in (ROOT, other)]
        for side in sides:
            side.ready()
        for number, figures in enumerate(rounds):
            first = number % 2
            for at in (first, 1 - first):
                figures[at].update(sides[at].ticks(TICKS))
        for side in sides:
            side.close()
    return rounds


def compare(rounds: list[tuple[Figures, Figures]]) -> list[dict[str, Any]]:
    """Return a row per figure that both have: medians, and the median ratio within rounds."""
    rows = []
    for what in rounds[0][0]:
        pairs = [(ours[what], theirs[what]) for ours, theirs in rounds if what in theirs]
        if pairs:
            ratios = [ours / theirs for ours, theirs in pairs if theirs]
            rows.append(
                {
                    "what": what,
                    "here": statistics.median(ours for ours, _ in pairs),
                    "there": statistics.median(theirs for _, theirs in pairs),
                    "ratio": statistics.median(ratios) if ratios else None,
                    "ratios": [round(ratio, 4) for ratio in ratios],
                }
            )
    return rows


def main() -> int:
    """Measure in turns, print a table; figures are costs: a ratio above 1 is slower here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("benchmark", choices=(*BENCHMARKS, DECISIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    other = options.other.resolve()
    if options.benchmark == DECISIONS:
        rounds = decisions_in_turns(other, options.rounds)
    else:
        rounds = one_after_the_other(other, options.benchmark, options.rounds)
    rows = compare(rounds)
    print(
        f"{options.benchmark}, {options.rounds} rounds, {today()}, {os.cpu_count()} processors: "
        f"here {commit_of(ROOT)}, there {commit_of(options.other)}"
    )
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        print(f"{row['what']:<36}{row['here']:>12.3f}{row['there']:>12.3f}{ratio:>9}")
    if options.json:
        report = {
            "date": today(),
            "here": commit_of(ROOT),
            "there": commit_of(options.other),
            "rows": rows,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
