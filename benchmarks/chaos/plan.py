"""What a launched process is to do to itself, and when: pure data, carried by one variable.

A crash point is a triple: the Nth time of a step (a function of ours, another Redis command, or a
transaction of Postgres), and a moment of it. `before`: nothing was sent. `sent`: the server has
done it, and the process never hears so. `after`: the process heard, and has acted on it until it
next waits.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

VARIABLE = "CHAOS_PLAN"

Moment = Literal["before", "sent", "after"]
Action = Literal["kill", "stall", "drop"]
MOMENTS: tuple[Moment, ...] = ("before", "sent", "after")

BEGIN, COMMIT = "pg:begin", "pg:commit"  # steps that are transactions of Postgres
PG_STEPS = (BEGIN, COMMIT)


class Point(Struct, frozen=True):
    """One crash point and what happens there: die, stand still, or lose the connection."""

    step: str
    moment: Moment
    action: Action = "kill"
    nth: int = 1  # counted from 1, in this life of the process
    stall_s: float = 0.0


class Plan(Struct, frozen=True):
    """All that a launched process does to itself."""

    points: tuple[Point, ...] = ()
    clock_step_s: float = 0.0  # its wall clock jumps by this, to and fro, ...
    clock_period_s: float = 5.0  # ... this often
    late_finish: float = 0.0  # share of finishes and pauses that are sent again ...
    late_after_s: float = 5.0  # ... so much later, when the lease has moved on
    poison: bool = False  # an echo that asks for it harms the process
    memory_bytes: int = 0  # of address space; 0: no limit

    def encode(self) -> str:
        """Return the value of the variable."""
        return msgspec.json.encode(self).decode()


def read_plan(text: str | None) -> Plan:
    """Read the variable; no variable, no plan."""
    return msgspec.json.decode(text, type=Plan) if text else Plan()
