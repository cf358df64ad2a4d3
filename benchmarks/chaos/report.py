"""The figures of a run: as a table for people, as JSON for whoever compares."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from aios_cli.demo.report import machine, versions
from benchmarks.chaos.history import Struck
from benchmarks.chaos.run import Outcome

SHOWN = 20  # broken promises


def figures(outcome: Outcome, *, date: str, commit: str) -> dict[str, object]:
    """Return all figures of a run."""
    rules = Counter(one.rule for one in outcome.broken)
    losses = sum(
        move.event == "reclaim" for story in outcome.stories.values() for move in story.moves
    )
    return {
        "date": date,
        "commit": commit,
        "machine": machine(),
        "versions": versions(),
        "seed": outcome.wish.seed,
        "load_s": outcome.wish.length_s,
        "wall_s": round(outcome.wall_s, 1),
        "faults": dict(sorted(Counter(strike.kind for strike in outcome.strikes).items())),
        "recovery_s": _recoveries(outcome.strikes),
        "syscalls": outcome.acknowledged,
        "kinds": dict(Counter(one.planned.kind for one in outcome.stories.values())),
        "sent_again": sum(max(0, len(one.sent) - 1) for one in outcome.stories.values()),
        "replies_dropped": sum(h.dropped for one in outcome.stories.values() for h in one.heard),
        "attempts_lost": losses,
        "suspensions": sum(
            move.event == "suspend" for story in outcome.stories.values() for move in story.moves
        ),
        "longest_wait_s": round(max(_waits(outcome), default=0.0), 2),
        "excused": outcome.excused,
        "lost": rules["1 lost"],
        "answered_twice": rules["1 twice"],
        "broken": dict(sorted(rules.items())),
        "broken_promises": [
            {"rule": one.rule, "id": one.id, "why": one.why} for one in outcome.broken
        ],
    }


def lines(report: dict[str, object]) -> Iterator[str]:
    """Yield the report for a terminal."""
    yield f"{'faults':34}{'times':>8}{'recovered, median':>20}{'longest':>10}"
    faults, recoveries = report["faults"], report["recovery_s"]
    assert isinstance(faults, dict)
    assert isinstance(recoveries, dict)
    for kind, times in faults.items():
        found = recoveries.get(kind)
        median, longest = (f"{found['median']} s", f"{found['max']} s") if found else ("", "")
        yield f"  {kind:32}{times:>8}{median:>20}{longest:>10}"
    yield ""
    for name in (
        "syscalls",
        "sent_again",
        "replies_dropped",
        "attempts_lost",
        "suspensions",
        "longest_wait_s",
        "excused",
        "lost",
        "answered_twice",
    ):
        yield f"{name.replace('_', ' '):34}{report[name]!s:>8}"
    broken = report["broken_promises"]
    assert isinstance(broken, list)
    yield f"{'promises broken':34}{len(broken):>8}"
    for one in broken[:SHOWN]:
        yield f"  {one['rule']}: {one['id']}: {one['why']}"
    if len(broken) > SHOWN:
        yield f"  and {len(broken) - SHOWN} more"


def _recoveries(strikes: Sequence[Struck]) -> dict[str, dict[str, float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for strike in strikes:
        if strike.recovered_s is not None:
            found[strike.kind].append(strike.recovered_s)
    return {
        kind: {
            "times": len(waits),
            "median": round(statistics.median(waits), 2),
            "max": round(max(waits), 2),
        }
        for kind, waits in sorted(found.items())
    }


def _waits(outcome: Outcome) -> Iterator[float]:
    for story in outcome.stories.values():
        if story.acknowledged is not None and story.heard and not story.poison:
            yield story.heard[0].at - story.acknowledged
