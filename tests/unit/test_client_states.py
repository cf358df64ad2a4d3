"""The table of a submission's states: each arrow by what the client does, and no other."""

from collections.abc import Callable
from typing import get_args

import pytest

from aios_broker.client.pending import ARROWS, FINAL, Cause, Pending, State
from aios_broker.contract.errors import Cancelled
from aios_broker.contract.reply import EchoResult, Reply, failure
from aios_broker.contract.syscall import Syscall, ToolEcho

ID = "0" * 32
STATES: tuple[State, ...] = get_args(State)
CAUSES: tuple[Cause, ...] = get_args(Cause)
WAYS: dict[State, tuple[Cause, ...]] = {
    "built": (),
    "asked": (),
    "sent": ("send",),
    "accepted": ("send", "acknowledge"),
    "forgotten": ("send", "acknowledge", "forget"),
    "refused": ("refuse",),
    "lost": ("send", "lose"),
    "ended": ("send", "reply"),
}


def steps(pending: Pending) -> dict[Cause, Callable[[], None]]:
    error = failure(ID, Cancelled("x"))
    return {
        "send": pending.send,
        "acknowledge": lambda: pending.accept(1.0),
        "forget": pending.withdraw,
        "refuse": lambda: pending.end(error, "refuse"),
        "lose": lambda: pending.end(error, "lose"),
        "reply": lambda: pending.end(Reply(ID, EchoResult("x"))),
    }


def one_that_is(state: State) -> Pending:
    syscall = None if state == "asked" else Syscall(ID, "writer", ToolEcho("x"))
    pending = Pending(ID, syscall, 0.0)
    for cause in WAYS[state]:
        steps(pending)[cause]()
    assert pending.state == state
    return pending


@pytest.mark.parametrize(("state", "cause"), ARROWS)
async def test_each_arrow_leads_where_the_table_says(state: State, cause: Cause) -> None:
    pending = one_that_is(state)
    steps(pending)[cause]()
    assert pending.state == ARROWS[state, cause]
    assert (pending.reply is not None) == (pending.state in FINAL)
    assert pending.accepted.done() == (not pending.is_on_its_way)
    assert pending.ended.done() == (pending.state in FINAL)


@pytest.mark.parametrize("state", STATES)
async def test_there_are_no_other_arrows(state: State) -> None:
    for cause in CAUSES:
        if (state, cause) in ARROWS:
            continue
        pending = one_that_is(state)
        before = pending.reply
        with pytest.raises(AssertionError, match=f"that is {state} cannot {cause}"):
            steps(pending)[cause]()
        assert pending.state == state
        assert pending.reply is before


def test_whoever_waits_comes_to_an_end() -> None:
    assert not [state for state, _ in ARROWS if state in FINAL]
    for state in set(STATES) - FINAL:
        assert ARROWS[state, "lose"] in FINAL
        assert ARROWS[state, "reply"] == "ended"
