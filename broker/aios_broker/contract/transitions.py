"""The one table of state changes. Every change of a syscall's state is one of these events.

    submit                  claim                    finish
      ──▶ queued ──────────────────▶ running ──────────────────▶ finished | failed
            ▲  ▲   reclaim, release     │ suspend
            │  └────────────────────────┤ ──▶ suspended ──claim──▶ running
            │ release                   │ hold
            ├────────────── held ◀──────┤
            │ unpark                    │ park
            └───────────── parked ◀─────┘          cancel, from any state that is not terminal

    `move` takes what waits (queued, suspended) to another core's queue; its state is the same.
`reclaim` puts a job back whose worker died; `fail` is the end that no worker wrote (deadline,
poison, deleted by a stock tool). Each Redis function appends its events to the journal.
"""

from typing import Literal

from aios_broker.contract.syscall import State

Event = Literal[
    "submit",
    "adopt",
    "claim",
    "move",
    "suspend",
    "finish",
    "fail",
    "cancel",
    "reclaim",
    "hold",
    "release",
    "park",
    "unpark",
]

TERMINAL: frozenset[State] = frozenset({"finished", "failed", "cancelled"})

_WAITING: tuple[State | None, ...] = ("queued", "suspended")
_ALIVE: tuple[State | None, ...] = ("queued", "suspended", "running", "held", "parked")

_OUTSIDE: tuple[State | None, ...] = (None, "finished", "failed", "cancelled")

# event -> (states it may come from, state it leads to). None, of a state: the kernel did not know
# it yet; of where it leads: it is what it was.
# An id may come again: a stock tool requeues what has ended (`adopt`, as for foreign jobs), and
# a submit finds nothing left of an id whose reply has expired.
TABLE: dict[Event, tuple[tuple[State | None, ...], State | None]] = {
    "submit": (_OUTSIDE, "queued"),
    "adopt": (_OUTSIDE, "queued"),
    # held, parked: a stock tool put it back into the queue
    "claim": ((*_WAITING, "held", "parked"), "running"),
    "move": (_WAITING, None),
    "suspend": (("running",), "suspended"),
    "finish": (("running",), "finished"),
    "fail": (_ALIVE, "failed"),
    "cancel": (_ALIVE, "cancelled"),
    "reclaim": (("running",), "queued"),
    "hold": (("queued", "suspended", "running"), "held"),
    "release": (("held",), "queued"),
    "park": (("running",), "parked"),
    "unpark": (("parked",), "queued"),
}


def after(state: State | None, event: Event) -> State:
    """Return the state that `event` leads to; raise ValueError where the table has no arrow."""
    sources, target = TABLE[event]
    if state not in sources:
        raise ValueError(f"no transition {event!r} from {state!r}")
    return target or state or "queued"
