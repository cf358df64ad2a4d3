"""The transition table: every arrow, and nothing but the arrows."""

import re
from itertools import product
from typing import get_args

import pytest

from aios_broker.contract import transitions
from aios_broker.contract.syscall import State
from aios_broker.contract.transitions import TABLE, TERMINAL, Event, after

STATES: tuple[State | None, ...] = (None, *get_args(State))
EVENTS: tuple[Event, ...] = get_args(Event)
ARROWS = [
    (source, event, target) for event, (sources, target) in TABLE.items() for source in sources
]
NO_ARROWS = [
    (state, event) for state, event in product(STATES, EVENTS) if state not in TABLE[event][0]
]


@pytest.mark.parametrize(("source", "event", "target"), ARROWS)
def test_an_arrow_leads_where_the_table_says(source: State, event: Event, target: State) -> None:
    assert after(source, event) == (target or source)


@pytest.mark.parametrize(("state", "event"), NO_ARROWS)
def test_there_is_no_other_arrow(state: State | None, event: Event) -> None:
    with pytest.raises(ValueError, match=f"no transition '{event}' from {state!r}"):
        after(state, event)


def test_every_event_is_in_the_table_and_no_arrow_is_there_twice() -> None:
    assert set(TABLE) == set(EVENTS)
    assert len(ARROWS) == len(set(ARROWS))


def test_what_has_ended_begins_only_as_something_new() -> None:
    leaving = {event for source, event, _ in ARROWS if source in TERMINAL}

    assert leaving == {"submit", "adopt"}
    assert all(TABLE[event][1] == "queued" for event in leaving)


def test_from_every_state_an_end_can_be_reached() -> None:
    reached: set[State | None] = set(TERMINAL)
    while more := {source for source, _, target in ARROWS if target in reached} - reached:
        reached |= more

    assert reached == set(STATES)


def test_only_what_runs_can_yield_finish_or_lose_its_worker() -> None:
    for event in ("suspend", "finish", "reclaim"):
        assert TABLE[event][0] == ("running",)


def test_the_picture_names_every_state_and_event_that_a_syscall_goes_through() -> None:
    picture = (transitions.__doc__ or "").partition("\n\n")[2]
    words = set(re.findall(r"[a-z]+", picture))

    # `adopt` is submit for jobs of stock tools.
    assert (set(EVENTS) | set(get_args(State))) - words <= {"adopt", "cancelled"}
