"""Exchanges bring a queue into the order of its scores, whatever its pieces and limits."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aios_broker.queues.order import Exchange
from aios_broker.scheduler.sweep import Arrangement

queues = st.lists(st.integers(0, 9), max_size=60)  # scores, many of them alike


def arranged(scores: Sequence[int | None], piece: int) -> tuple[list[str], Arrangement, list[str]]:
    """Return the queue, its arrangement, and how it is to stand in the end."""
    ids = [f"job-{number}" for number in range(len(scores))]
    known = {i: float(s) for i, s in zip(ids, scores, strict=True) if s is not None}
    arrangement = Arrangement()
    for start in range(0, len(ids), piece):
        arrangement.read(ids[start : start + piece], known)
    return ids, arrangement, sorted(ids, key=lambda i: known.get(i, float("inf")))


def make(queue: list[str], pairs: list[Exchange]) -> None:
    for pair in pairs:
        assert (queue[pair.place], queue[pair.other_place]) == (pair.job_id, pair.other_id)
        queue[pair.place], queue[pair.other_place] = pair.other_id, pair.job_id


@given(
    st.lists(st.none() | st.integers(0, 9), max_size=60),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_all_exchanges_together_sort_the_queue(
    scores: list[int | None], piece: int, most: int, look_at: int
) -> None:
    queue, arrangement, wanted = arranged(scores, piece)
    steps, goes_on = 0, True
    while goes_on:
        pairs, goes_on = arrangement.exchanges(most, look_at=look_at)
        assert len(pairs) <= most
        make(queue, pairs)
        steps += 1
        assert steps <= len(queue) + 1
    assert queue == wanted  # equal scores keep their order, those without one stand last


@given(queues)
def test_a_queue_in_order_needs_no_exchange(scores: list[int]) -> None:
    _, arrangement, _ = arranged(sorted(scores), 7)
    assert arrangement.exchanges(1000, look_at=1000) == ([], False)


def test_the_head_is_right_first() -> None:
    queue, arrangement, wanted = arranged([5, 4, 3, 2, 1, 0], 6)
    pairs, goes_on = arrangement.exchanges(2, look_at=100)
    make(queue, pairs)
    assert goes_on
    assert queue[:2] == wanted[:2]


def test_what_is_read_twice_counts_once() -> None:
    arrangement = Arrangement()
    arrangement.read(["a", "b"], {"a": 2.0, "b": 1.0})
    arrangement.read(["b", "c"], {"b": 1.0, "c": 0.0})
    assert len(arrangement) == 3
    assert arrangement.last == "c"
    assert arrangement.exchanges(9, look_at=9) == ([Exchange(0, "a", 2, "c")], False)
