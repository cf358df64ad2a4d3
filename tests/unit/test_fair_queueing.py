"""Turns by cost: nobody gets less than its share, however much the others want."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aios_broker.fair_queueing import HolderTurns, Turns
from aios_broker.places import Holder

MOST = 8_000.0
ANN, BOB, EVE = Holder("acme", "ann"), Holder("acme", "bob"), Holder("evil", "eve")


def serve(turns: HolderTurns, wanted: dict[Holder, float], times: int) -> list[Holder]:
    """Serve holders who always want more, each of them one cost; return who had the turns."""
    had = []
    for _ in range(times):
        holder = turns.next(wanted)
        turns.serve(holder, wanted[holder])
        had.append(holder)
    return had


def test_who_comes_new_is_next_but_has_nothing_in_hand() -> None:
    turns: Turns[str] = Turns()
    for _ in range(100):
        assert turns.next({"eve": 10.0}) == "eve"
        turns.serve("eve", 10.0)
    had = []
    for _ in range(6):
        had.append(turns.next({"eve": 10.0, "ann": 9.0}))
        turns.serve(had[-1], 10.0 if had[-1] == "eve" else 9.0)
    assert had == ["ann", "eve", "ann", "eve", "ann", "eve"]


def test_what_came_beside_anothers_turn_counts() -> None:
    turns: Turns[str] = Turns()
    turns.next({"ann": 4.0, "eve": 5.0})
    turns.charge("ann", 4.0)
    assert turns.next({"ann": 4.0, "eve": 5.0}) == "eve"


def test_names_that_are_gone_are_forgotten() -> None:
    turns = HolderTurns()
    for number in range(3_000):
        holder = Holder(f"t{number}", "a")
        assert turns.next({holder: 1.0, EVE: 9.0}) in {holder, EVE}
        turns.serve(holder, 1.0)
    assert len(turns._agents) < 300
    assert len(turns._tenants._ends) < 300


def test_a_tenants_agents_share_its_turns() -> None:
    had = serve(HolderTurns(), {ANN: 10.0, BOB: 10.0, EVE: 10.0}, 40)
    assert abs(had.count(ANN) - had.count(BOB)) <= 1
    assert abs(had.count(EVE) - 20) <= 1


@given(st.lists(st.floats(1.0, MOST), min_size=2, max_size=6), st.integers(0, 300))
def test_each_tenant_has_its_share_of_the_cost(costs: list[float], late: int) -> None:
    """The last tenant comes late: from then on all get the same, to a turn or two."""
    turns = HolderTurns()
    wanted = {Holder(f"t{place}", "a"): cost for place, cost in enumerate(costs)}
    *first, last = wanted
    serve(turns, {each: wanted[each] for each in first}, late)
    got = dict.fromkeys(wanted, 0.0)
    for holder in serve(turns, wanted, 400):
        got[holder] += wanted[holder]
    assert max(got.values()) - min(got.values()) <= 2.1 * max(costs)
    assert last in got


@given(st.integers(1, 40), st.floats(500.0, MOST))
def test_little_hardly_waits_for_much(others: int, cost: float) -> None:
    """Who wants a tenth of what the others want is next or next but one, while its share lasts."""
    turns = HolderTurns()
    flood = {Holder(f"evil{each}", "eve"): cost for each in range(others)}
    serve(turns, flood, 3 * others)
    for _ in range(5):
        had = serve(turns, {**flood, ANN: cost / 10}, 2)
        assert ANN in had


@given(st.integers(2, 60), st.integers(0, 200))
def test_who_wants_little_of_what_many_want_much_of_is_next(others: int, turns_before: int) -> None:
    """Whenever it comes: not behind one turn of each of the others."""
    turns: Turns[str] = Turns()
    flood = {f"evil{each}": 1_000.0 for each in range(others)}
    for _ in range(turns_before):
        turns.serve(turns.next(flood), 1_000.0)
    had = []
    while "ann" not in had:
        had.append(turns.next({**flood, "ann": 10.0}))
        turns.serve(had[-1], 10.0 if had[-1] == "ann" else 1_000.0)
    assert len(had) <= 3


def test_one_name_after_another_keeps_nobody_waiting_for_ever() -> None:
    turns: Turns[str] = Turns()
    for number in range(100):
        if turns.next({f"t{number}": 1.0, "eve": 9.0}) == "eve":
            return
        turns.serve(f"t{number}", 1.0)
    raise AssertionError("eve had no turn")
