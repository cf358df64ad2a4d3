"""Break the kernel on purpose, and see that chaos and its checker find every break.

    python -m benchmarks.chaos.seeded            all bugs, and a run without any
    python -m benchmarks.chaos.seeded fencing    those with this word, or another one, in the name

Each bug is one replaced piece of text in a copy of the packages, put first on the path of all
processes of a short run. A bug that is not found means that a promise is not watched. Exit code
0 only when the run without a bug breaks nothing and every bug is found.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aios_broker.config import environment
from benchmarks.chaos.run import PACKAGES, ROOT, Outcome, Wish, run_chaos

LENGTH_S = 12.0
TRIES = 3  # of a bug that a run may miss: other seeds, other faults
SEED = 20
LUA = "broker/aios_broker/queues/lua/"


@dataclass(frozen=True, slots=True)
class Bug:
    """One break, and the faults that bring it to light. `old` must stand in the file."""

    name: str
    file: str
    old: str
    new: str
    groups: tuple[str, ...] = ("kill", "stop")


BUGS = (
    Bug(
        "finish ignores the fencing",
        LUA + "worker/finish.lua",
        "accepted[i] = held and not is_removed(c, job.id) and 1 or 0",
        "accepted[i] = 1",
        ("stop", "messages"),
    ),
    Bug(
        "suspend ignores the fencing",
        LUA + "worker/suspend.lua",
        "accepted[i] = held and not is_removed(c, job.id) and 1 or 0",
        "accepted[i] = 1",
        ("stop", "messages"),
    ),
    Bug(
        "reclaim forgets to put back",
        LUA + "scheduler/reclaim.lua",
        "            put_back(c, id, attempt, member, losses)",
        "            redis.call('ZREM', c.leases, member)",
    ),
    Bug(
        "reclaim never comes",
        LUA + "scheduler/reclaim.lua",
        "'-inf', c.now, 'LIMIT'",
        "'-inf', 0, 'LIMIT'",
    ),
    Bug(
        "submit is not idempotent",
        LUA + "client/submit.lua",
        "elseif check and call('EXISTS', job.key) == 1 then",
        "elseif false then",
        ("messages",),
    ),
    Bug(
        "a reply is pushed twice",
        LUA + "worker/finish.lua",
        "reply_to(c, clients[i], job.reply)",
        "reply_to(c, clients[i], job.reply); reply_to(c, clients[i], job.reply)",
        (),
    ),
    Bug(
        "a snapshot goes to the wrong job",
        LUA + "shared/lib.lua",
        "call('SET', snapshot_key(c, id), data)",
        "redis.call('SET', snapshot_key(c, id), redis.call('GET', c.own .. 'last') or data)\n"
        "    redis.call('SET', c.own .. 'last', data)",
        (),
    ),
    Bug(
        "leases are not renewed",
        LUA + "worker/renew.lua",
        "variadic('ZADD', c.leases, renewed)",
        "local _ = 0",
        (),
    ),
    Bug(
        "two lead at once",
        LUA + "scheduler/lead.lua",
        "if stands and not goes_on then",
        "if false then",
        (),
    ),
    Bug(
        "the journal misses claims",
        LUA + "worker/claim.lua",
        "note(c, 'claim', id, number, claim.worker, '')",
        "local _ = 0",
        (),
    ),
    Bug(
        "a slice is charged twice",
        LUA + "shared/quota.lua",
        "base_tokens + tokens",
        "base_tokens + 2 * tokens",
        (),
    ),
    Bug(
        "what has ended stays live",
        LUA + "worker/finish.lua",
        "variadic('HDEL', c.live, ids)",
        "local _ = 0",
        (),
    ),
    Bug(
        "cancelled jobs keep their deadline",
        LUA + "shared/lib.lua",
        "c.parked, c.deadlines, c.scores",
        "c.parked, c.scores",
        (),
    ),
    Bug(
        "poison is tried for ever",
        LUA + "scheduler/reclaim.lua",
        "losses >= max_losses",
        "false",
        ("poison",),
    ),
    Bug(
        "a context entry is written twice",
        LUA + "worker/context.lua",
        "if redis.call('HGET', at.op, 'applied') then",
        "if false then",
        ("messages",),
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a bug."""

    bug: Bug
    rules: Counter[str]
    wall_s: float
    runs: int

    @property
    def is_found(self) -> bool:
        """Whether the checker saw it."""
        return bool(self.rules)


def broken_copy(bug: Bug | None, folder: Path) -> Path:
    """Copy the packages, with the bug in them; return where they are.

    Raises:
        ValueError: the text is not there: the bug is out of date.
    """
    for package in (*PACKAGES, "migrations"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    if bug is not None:
        path = folder / bug.file
        source = path.read_text()
        if bug.old not in source:
            raise ValueError(f"out of date: {bug.name}: {bug.old!r} is not in {bug.file}")
        path.write_text(source.replace(bug.old, bug.new, 1))
    return folder


def chaos_with(bug: Bug | None, seed: int, *, length_s: float = LENGTH_S) -> Outcome:
    """Run a short chaos against the kernel with the bug."""
    with tempfile.TemporaryDirectory(prefix="aios-seeded-") as name:
        folder = Path(name)
        (folder / "tree").mkdir()
        tree = broken_copy(bug, folder / "tree")
        path = ":".join(str(tree / package) for package in PACKAGES)
        groups = ("kill", "stop", "messages", "hold", "clock") if bug is None else bug.groups
        wish = Wish(length_s, seed, groups, clients=2, gap_s=1.5, patience_s=25.0, wait_s=20.0)
        return run_chaos(wish, folder, {**environment(), "PYTHONPATH": path})


def judge(bug: Bug) -> Verdict:
    """Run chaos until it finds the bug, a few times at most."""
    began = time.monotonic()
    rules: Counter[str] = Counter()
    for run in range(1, TRIES + 1):
        rules = Counter(one.rule for one in chaos_with(bug, SEED + run).broken)
        if rules:
            break
    return Verdict(bug, rules, time.monotonic() - began, run)


def main(words: Sequence[str]) -> int:
    """Judge all bugs that match; return the exit code."""
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    whole = chaos_with(None, SEED)
    print(f"no bug: {len(whole.stories)} syscalls, {len(whole.broken)} promises broken", flush=True)
    found = 0
    for bug in chosen:
        verdict = judge(bug)
        found += verdict.is_found
        by = ", ".join(f"{rule} ({count})" for rule, count in verdict.rules.most_common(3))
        state = "found" if verdict.is_found else "MISSED"
        print(
            f"{state:7}{bug.name:38}{verdict.wall_s:6.0f} s, run {verdict.runs}: {by}", flush=True
        )
    print(f"{found} of {len(chosen)} bugs found")
    return 0 if chosen and found == len(chosen) and not whole.broken else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
