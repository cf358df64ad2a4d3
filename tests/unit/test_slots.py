"""What runs in each slot is followed, whatever is seen and whatever is missed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.transitions import TABLE
from aios_broker.ledger.history import HistoryEvent
from aios_broker.ledger.journal import Position, Transition
from aios_broker.queues.records import JobMetadata, JobView
from aios_broker.views.slots import KEPT_CHANGES, WINDOW_MS, Slice, SlotHistory

ADA = JobMetadata("ada", "llm.chat", "paper")


def event(
    ms: int, name: str, job: str = "one", attempt: int = 1, detail: str = "", width: int = 1
) -> HistoryEvent:
    change = Transition(Position(ms), 0, "llm", name, job, attempt, "w1", detail, Position(ms).at)
    return HistoryEvent(change, JobMetadata("ada", "llm.chat", "paper", width=width))


def running(job_id: str, tokens: int = 0, attempt: int = 1) -> JobView:
    return JobView(
        job_id,
        "llm",
        "running",
        ADA,
        (),
        "w1",
        attempt,
        0,
        0,
        0,
        tokens,
        0.0,
        0.0,
        0.0,
        None,
        None,
        None,
    )


def entered(*events: HistoryEvent) -> SlotHistory:
    slots = SlotHistory("llm")
    slots.enter(events)
    return slots


def shown(slots: SlotHistory, place: int = 0) -> list[Slice]:
    return sorted(slots.since(place).slices, key=lambda each: each.number)


def test_a_slice_is_told_when_it_begins_and_again_when_it_ends() -> None:
    slots = entered(event(100, "submit"), event(120, "claim"))
    [begun] = shown(slots)
    place = slots.since(0).place
    assert (begun.begins_ms, begun.ends_ms, begun.lanes, begun.goes_on) == (120, None, (0,), False)

    slots.enter([event(150, "suspend", detail="64,25,small,0,EUR"), event(170, "claim", attempt=2)])
    ended, again = shown(slots, place)
    assert (ended.number, ended.ends_ms, ended.ended_by) == (begun.number, 150, "suspend")
    assert (ended.tokens, ended.ran_ms, ended.core) == (64, 25, "small")
    assert (again.begins_ms, again.goes_on) == (170, True)
    slots.enter([event(200, "finish", attempt=2, detail="80,50,small,0,EUR")])
    assert shown(slots)[-1].tokens == 16
    assert slots.tokens == 80
    assert shown(slots, slots.since(0).place) == []


def test_what_runs_at_a_time_has_lanes_of_its_own() -> None:
    slots = entered(
        event(1, "claim", "a"),
        event(2, "claim", "b", width=2),
        event(3, "finish", "a"),
        event(4, "claim", "c"),
        event(5, "claim", "d"),
    )
    assert {each.job_id: each.lanes for each in shown(slots)} == {
        "a": (0,),
        "b": (1, 2),
        "c": (0,),
        "d": (3,),
    }


def test_what_the_queue_says_twice_is_believed() -> None:
    slots = entered(event(100, "claim", "gone"))
    slots.compare([running("unseen", tokens=500)], 1_000)
    assert [each.job_id for each in shown(slots) if each.ends_ms is None] == ["gone"]

    slots.compare([running("unseen", tokens=500)], 2_000)
    gone, unseen = shown(slots)
    assert (gone.ends_ms, gone.ended_by) == (2_000, "unheard")
    assert (unseen.begins_ms, unseen.ends_ms) == (0, None)
    slots.compare([running("unseen", tokens=530)], 3_000)
    assert slots.tokens == 30, "what it used before anybody looked is no news"
    assert shown(slots)[-1].tokens == 30


def test_what_is_old_or_too_much_is_not_kept_and_what_runs_is() -> None:
    slots = entered(event(1, "claim", "long"))
    place = slots.since(0).place
    for number in range(KEPT_CHANGES):
        slots.enter([event(10, "claim", f"{number}"), event(11, "finish", f"{number}")])
    changed = slots.since(place)
    assert (len(changed.slices), changed.left_out > 0) == (KEPT_CHANGES // 2, True)
    assert "long" in {each.job_id for each in shown(slots)}

    slots.compare([running("long")], WINDOW_MS + 100)
    assert [each.job_id for each in shown(slots)] == ["long"]


@given(
    st.lists(
        st.tuples(st.sampled_from(list(TABLE)), st.sampled_from("abc"), st.integers(0, 9)),
        max_size=40,
    ),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_who_looks_on_knows_what_who_comes_now_is_told(
    told: list[tuple[str, str, int]], looks: list[int]
) -> None:
    slots, place, seen = SlotHistory("llm"), 0, dict[int, Slice]()
    for at, (name, job, used) in enumerate(told):
        detail = f"{used},{used}" if name in ("suspend", "finish", "fail") else ""
        slots.enter([event(at, name, job, detail=detail)])
        if at in looks:
            changed = slots.since(place)
            place = changed.place
            seen |= {each.number: each for each in changed.slices}
    seen |= {each.number: each for each in slots.since(place).slices}

    told_now = {each.number: each for each in slots.since(0).slices}
    assert seen.keys() >= told_now.keys()
    assert {n: each.ends_ms for n, each in told_now.items()} == {
        n: seen[n].ends_ms for n in told_now
    }
    busy = [each for each in told_now.values() if each.ends_ms is None]
    taken = [lane for each in busy for lane in each.lanes]
    assert len(taken) == len(set(taken)), "two slices in one slot"
