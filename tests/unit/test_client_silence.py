"""How often a client asks for what it waits for: seldom, and never too late for the reply."""

import itertools

from aios_broker.client.pending import Pending, to_ask_for
from aios_broker.contract.syscall import Syscall, ToolEcho, new_id

RECHECK_S = 5.0
LONGEST_S = 30.0
TICK_S = 1.0


def accepted(count: int) -> list[Pending]:
    found = [
        Pending(call.id, call, 0.0)
        for call in (Syscall(id=new_id(), agent="ada", body=ToolEcho("")) for _ in range(count))
    ]
    for pending in found:
        pending.send()
        pending.accept(0.0)
    return found


def watch(known: list[Pending], ticks: int) -> dict[str, list[float]]:
    """Return when each was asked for, by a kernel that has each of them and no news."""
    asked: dict[str, list[float]] = {pending.id: [0.0] for pending in known}
    for tick in range(1, ticks + 1):
        at_s = tick * TICK_S
        for pending in to_ask_for(known, at_s, recheck_s=RECHECK_S, longest_s=LONGEST_S):
            pending.accept(at_s)
            asked[pending.id].append(at_s)
    return asked


async def test_thousands_that_wait_are_asked_for_less_and_less_often() -> None:
    asked = watch(accepted(2000), ticks=600)
    first = min(times[1] for times in asked.values())
    assert first == RECHECK_S
    assert all(
        later - before <= LONGEST_S + TICK_S
        for times in asked.values()
        for before, later in itertools.pairwise(times)
    )
    assert all(600 - times[-1] <= LONGEST_S for times in asked.values())
    # Two early ones, then one in LONGEST_S; and at each tick one that stands for all.
    assert sum(len(times) - 1 for times in asked.values()) <= 2000 * (600 / LONGEST_S + 3) + 600


async def test_one_of_those_that_are_silent_is_asked_for_at_each_tick() -> None:
    known = accepted(50)
    for pending in known:
        pending.asks = 10
    assert to_ask_for(known, RECHECK_S - 0.1, recheck_s=RECHECK_S, longest_s=LONGEST_S) == []
    known[7].heard_at_s = -1.0
    assert to_ask_for(known, RECHECK_S, recheck_s=RECHECK_S, longest_s=LONGEST_S) == [known[7]]


async def test_news_bring_back_the_first_pause() -> None:
    [pending] = known = accepted(1)
    watch(known, ticks=100)
    assert pending.asks > 1
    pending.withdraw()
    assert pending.asks == 0
