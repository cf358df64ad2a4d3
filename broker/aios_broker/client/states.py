"""The states of a submission as its client knows it, and what leads from one to the next. Pure.

    built ──send──▶ sent ──acknowledge──▶ accepted ──reply──▶ ended
                     ▲                      │   ▲
                     │                    forget└── acknowledge ── asked (attached to by id)
                     └──send── forgotten ◀──┘

From each state that is not final a submission can also be answered (`reply`: the kernel's own
word, which may overtake its acknowledgement) or given up (`lose`: this client left, or the kernel
stayed away; it may run). `refuse` is the kernel's word that nothing runs.
"""

from __future__ import annotations

from typing import Literal

State = Literal["built", "sent", "asked", "accepted", "forgotten", "refused", "lost", "ended"]
Cause = Literal["send", "acknowledge", "forget", "refuse", "lose", "reply"]

ARROWS: dict[tuple[State, Cause], State] = {
    ("built", "send"): "sent",
    ("built", "refuse"): "refused",
    ("built", "lose"): "refused",  # never sent: it cannot run
    ("built", "reply"): "ended",  # another client's, of the same id
    ("sent", "send"): "sent",  # no answer came: once more
    ("sent", "acknowledge"): "accepted",
    ("sent", "refuse"): "refused",
    ("sent", "lose"): "lost",
    ("sent", "reply"): "ended",
    ("asked", "acknowledge"): "accepted",
    ("asked", "refuse"): "refused",  # the kernel knows no such syscall
    ("asked", "lose"): "lost",
    ("asked", "reply"): "ended",
    ("accepted", "acknowledge"): "accepted",  # asked for again: it is still there
    ("accepted", "forget"): "forgotten",
    ("accepted", "lose"): "lost",
    ("accepted", "reply"): "ended",
    ("forgotten", "send"): "sent",
    ("forgotten", "lose"): "lost",
    ("forgotten", "reply"): "ended",
}
FINAL: frozenset[State] = frozenset(("refused", "lost", "ended"))


def after(state: State, cause: Cause) -> State:
    """Return the state that `cause` leads to.

    Raises:
        AssertionError: no arrow leads from there: a fault of the client's own.
    """
    following = ARROWS.get((state, cause))
    if following is None:
        raise AssertionError(f"a submission that is {state} cannot {cause}")
    return following
