"""Which fault comes when: a function of the seed, known before the kernel starts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

GROUPS = ("kill", "stop", "restart", "messages", "clock", "poison", "hold")
WORKERS = ("llm-1", "llm-2", "tool-1", "tool-2")
SCHEDULERS = ("scheduler", "standby")
SERVERS = ("redis", "postgres")
CLIENT = "client"
QUIET_S = 3.0  # at the end: what was struck last is set going again

LEASE_S = 1.5  # of workers: short, so that many run out
SCHEDULER_LEASE_S = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One strike."""

    at_s: float  # since the load began
    kind: str  # kill, stop, restart, hold
    victim: str  # name of a process; client-N; a module's queue for hold
    for_s: float = 0.0  # of a stop, or a hold


# How often each victim of a group is struck, in shares.
KILLS = (*WORKERS, *WORKERS, *SCHEDULERS, CLIENT, CLIENT, *SERVERS)
STOPS: tuple[tuple[str, float, float], ...] = (
    *((worker, 0.2 * LEASE_S, 0.8 * LEASE_S) for worker in WORKERS),  # shorter than the lease ...
    *((worker, 1.5 * LEASE_S, 3.0 * LEASE_S) for worker in WORKERS),  # ... and longer
    *((name, 0.2, 0.8 * SCHEDULER_LEASE_S) for name in SCHEDULERS),
    *((name, 1.5 * SCHEDULER_LEASE_S, 3.0) for name in SCHEDULERS),
    (CLIENT, 0.5, 6.0),
    ("redis", 0.2, 2.0),
    ("postgres", 0.5, 3.0),
)


def schedule(
    seed: int, length_s: float, groups: Sequence[str], *, gap_s: float, clients: int
) -> list[Fault]:
    """Return the faults of a run, in order.

    Args:
        seed: Of all choices.
        length_s: Of the load.
        groups: Those of GROUPS that are struck by a schedule: kill, stop, restart, hold.
        gap_s: Between two faults, on average.
        clients: How many client processes there are to strike.
    """
    dice = random.Random(f"schedule/{seed}")
    struck = [group for group in groups if group in ("kill", "stop", "restart", "hold")]
    weights = {"kill": 5, "stop": 4, "restart": 1, "hold": 2}
    faults: list[Fault] = []
    at_s = dice.uniform(0.5, 1.0) * gap_s
    while struck and at_s < length_s - QUIET_S:
        [group] = dice.choices(struck, [weights[one] for one in struck])
        faults.append(_fault(dice, group, at_s, clients))
        at_s += dice.uniform(0.4, 1.6) * gap_s
    return faults


def _fault(dice: random.Random, group: str, at_s: float, clients: int) -> Fault:
    for_s = 0.0
    match group:
        case "kill":
            victim = dice.choice(KILLS)
        case "stop":
            victim, shortest_s, longest_s = dice.choice(STOPS)
            for_s = dice.uniform(shortest_s, longest_s)
        case "restart":
            victim = dice.choice((*WORKERS, *SCHEDULERS))
        case _:
            victim, for_s = dice.choice(("llm", "tool")), dice.uniform(0.2, 2.0)
    if victim == CLIENT:
        victim = f"{CLIENT}-{dice.randrange(clients) + 1}"
    return Fault(at_s, group, victim, for_s)
