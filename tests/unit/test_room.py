"""One tenant has no more of the memory for bodies and answers than it leaves free."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import QueueFull
from aios_kernel_api.room import OpenAnswers, Room

STEPS = st.lists(st.tuples(st.sampled_from(("acme", "globex", "umbra")), st.integers(1, 40)))


@given(STEPS)
def test_who_holds_nothing_finds_some_and_all_have_a_bound(steps: list[tuple[str, int]]) -> None:
    room, held = Room(100), dict.fromkeys(("acme", "globex", "umbra"), 0)
    for tenant, size_bytes in steps:
        if room.has(tenant, size_bytes):
            room.add(tenant, size_bytes)
            held[tenant] += size_bytes
        assert room.taken_bytes == sum(held.values()) <= 100
        assert max(held.values()) <= 50
        assert room.has("newcomer", 100 // 16), "of three that take all they can, an eighth is left"


def test_what_a_request_held_is_free_when_it_ends() -> None:
    room = Room(100)
    with room.take("acme") as share:
        share.grow(40)
        with room.take("globex") as other:
            other.grow(20)
        assert not share.fits(11)
        with pytest.raises(QueueFull):
            share.grow(11)
    assert room.free_bytes == 100


def test_the_answer_that_nobody_has_read_for_the_longest_makes_room() -> None:
    answers = OpenAnswers(Room(100))
    cut: list[str] = []
    with (
        answers.one("acme", 20, lambda: cut.append("first")) as first,
        answers.one("acme", 20, lambda: cut.append("second")) as second,
        answers.one("globex", 20, lambda: cut.append("other")),
    ):
        assert first.is_read()
        with answers.one("acme", 20, lambda: cut.append("third")):
            assert cut == ["second"]
            assert not second.is_read()
            assert first.is_read()
            assert answers.room.taken_bytes == 60
    assert answers.room.taken_bytes == 0
    with answers.one("acme", 90, lambda: cut.append("large")):  # the only one: it is sent
        assert cut == ["second"]
