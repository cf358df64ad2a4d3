"""The figures of the scale benchmark and its budgets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

MEBIBYTE = 1024 * 1024
MEMORY_BUDGET_BYTES = 1024 * MEBIBYTE
DECISION_BUDGET_MS = 1.0


class Memory(Struct, frozen=True):
    """By process, in bytes; pages that are shared count in proportion (PSS)."""

    by_process: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """All processes together."""
        return sum(self.by_process.values())


class Quantiles(Struct, frozen=True):
    """Of times in ms."""

    p50: float
    p99: float
    longest: float


class Decisions(Struct, frozen=True):
    """Ticks of a scheduler under one policy, with arrivals and claims between them."""

    ticks: int
    wall: Quantiles  # from the first question to Redis to its last answer
    python: Quantiles  # of this process's time
    redis: Quantiles  # of Redis' own thread, submissions and claims not included
    submit: Quantiles  # of ARRIVALS syscalls in one step, at this depth
    claim: Quantiles  # of as many, at this depth
    piece: Quantiles  # of a sweep: the wall time of one bounded step
    piece_redis: Quantiles
    sweep_s: float  # the whole queue, from the change of the policy on
    sweep_pieces: int

    def line(self, policy: str) -> str:
        """Return it in a line."""
        return (
            f"{policy:<9}decision p50 {self.wall.p50:.2f} ms, p99 {self.wall.p99:.2f} ms "
            f"(python {self.python.p50:.2f}, redis {self.redis.p50:.2f}); "
            f"submit {self.submit.p50:.2f} ms, claim {self.claim.p50:.2f} ms; "
            f"sweep {self.sweep_pieces} pieces in {self.sweep_s:.1f} s, redis at most "
            f"{self.piece_redis.longest:.1f} ms each"
        )


class Budget(Struct, frozen=True):
    """A promise and what was measured."""

    what: str
    limit: float
    figure: float
    met: bool


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return p50, p99 and the longest, by nearest rank; zeros where there are none."""
    ordered = sorted(values)
    if not ordered:
        return Quantiles(0.0, 0.0, 0.0)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)]
    return Quantiles(round(at[0], 3), round(at[1], 3), round(ordered[-1], 3))


def budgets_of(memory: Memory, decisions: Mapping[str, Decisions]) -> list[Budget]:
    """Return the promises about scale: the slowest policy counts."""
    p50 = max(one.wall.p50 for one in decisions.values())
    p99 = max(one.wall.p99 for one in decisions.values())
    total = memory.total_bytes / MEBIBYTE
    return [
        Budget("decision, p50, ms", DECISION_BUDGET_MS, p50, p50 <= DECISION_BUDGET_MS),
        Budget("decision, p99, ms", DECISION_BUDGET_MS, p99, p99 <= DECISION_BUDGET_MS),
        Budget(
            "memory of all kernel processes, MiB",
            MEMORY_BUDGET_BYTES / MEBIBYTE,
            round(total, 1),
            total * MEBIBYTE <= MEMORY_BUDGET_BYTES,
        ),
    ]
