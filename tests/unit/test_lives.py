"""What a syscall did is told as stays that follow each other and add up."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.transitions import TABLE, TERMINAL
from aios_broker.ledger.fold import SyscallRow, fold
from aios_broker.ledger.history import HistoryEvent
from aios_broker.ledger.journal import Entry, Position, kept_entry
from aios_broker.ledger.lives import Life, lives_of
from aios_broker.queues.records import JobMetadata
from aios_broker.views.lanes import laid_out

ADA = JobMetadata("ada", "llm.chat", "paper/search")
DETAILS = {
    "submit": '{"agent":"ada","kind":"llm.chat","program":"paper/search"}',
    "adopt": '{"agent":"ada","kind":"llm.chat","program":"paper/search"}',
    "move": "one two",
}


def read(written: list[Entry]) -> list[Life]:
    return lives_of(HistoryEvent(one, ADA) for each in written for one in each.transitions())


def line(ms: int, event: str, attempt: int | str = "", who: str = "", detail: str = "") -> Entry:
    detail = detail or DETAILS.get(event, "")
    return kept_entry(Position(ms), "llm", f"{event}\tone\t{attempt}\t{who}\t{detail}", [])


LIFE = [
    line(100, "submit"),
    line(130, "claim", 1, "w1"),
    line(150, "suspend", 1, "w1", "64,18,small,500,EUR"),
    line(170, "move", 1),
    line(200, "claim", 2, "w2"),
    line(260, "park", 2, "w2", "70,70,small,600,EUR"),
    line(300, "unpark", 2),
    line(310, "claim", 3, "w1"),
    line(400, "fail", 3, "w1", "90,150,big,900,EUR,core-failed"),
]


def test_each_wait_and_each_slice_has_its_time_and_its_use() -> None:
    [life] = read(LIFE)

    assert [(stay.state, stay.begins_ms, stay.ends_ms) for stay in life.stays] == [
        ("queued", 100, 130),
        ("running", 130, 150),
        ("suspended", 150, 200),
        ("running", 200, 260),
        ("parked", 260, 300),
        ("queued", 300, 310),
        ("running", 310, 400),
    ]
    assert [
        (one.worker, one.attempt, one.core, one.tokens, one.ran_ms, one.cost_nano)
        for one in life.slices
    ] == [
        ("w1", 1, "small", 64, 18, 500),
        ("w2", 2, "small", 6, 52, 100),
        ("w1", 3, "big", 20, 80, 300),
    ]
    assert (life.state, life.error_code, life.ends_ms) == ("failed", "core-failed", 400)
    assert life.waited_ms(1000) == 300 - 20 - 60 - 90
    assert life.lasts_ms(1000) == 300


def test_what_comes_again_under_its_id_is_another_life() -> None:
    first, again = read([*LIFE, line(500, "submit"), line(510, "claim", 1, "w1")])

    assert (first.ends_ms, again.begins_ms, again.state) == (400, 500, "running")
    assert again.lasts_ms(600) == 100
    assert again.slices[0].lasts_ms(600) == 90


def test_a_beginning_that_was_forgotten_is_said() -> None:
    [life] = read(LIFE[4:])

    assert not life.is_whole
    assert life.begins_ms == 200
    assert [stay.state for stay in life.stays] == ["running", "parked", "queued", "running"]


USED = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda use: f"{use[0]},{use[1]}")


@st.composite
def written(draw: st.DrawFn) -> list[Entry]:
    """Anything that a journal may hold of one syscall, lawful or not."""
    found, ms = [], 1
    for event in draw(st.lists(st.sampled_from(list(TABLE)), max_size=12)):
        ms += draw(st.integers(0, 5))
        detail = DETAILS.get(event) or draw(USED)
        found.append(line(ms, event, draw(st.integers(1, 4)), "w", detail))
    return found


@given(written())
def test_stays_add_up_to_the_row_that_the_ledger_has(found: list[Entry]) -> None:
    rows: dict[str, SyscallRow] = {}
    for each in found:
        fold(rows, each)
    lives = read(found)

    for life in lives:
        for one, following in pairwise(life.stays):
            assert one.ends_ms == following.begins_ms
        if life.stays:
            assert life.stays[0].begins_ms == life.begins_ms
            assert life.stays[-1].ends_ms == life.ends_ms
        now_ms = 1_000
        assert sum(stay.lasts_ms(now_ms) for stay in life.stays) == (
            life.lasts_ms(now_ms) if life.stays else 0
        )
    if not rows:
        return
    row, last = rows["one"], lives[-1]
    assert last.state == row.state
    # What a stock tool requeues has the counters of the life before.
    first = max((n for n, life in enumerate(lives) if life.changes[0].event == "submit"), default=0)
    counted = lives[first:]
    if counted[0].is_whole:
        stays = [stay for life in counted for stay in life.stays]
        assert sum(stay.tokens for stay in stays) == row.tokens
        assert sum(stay.ran_ms for stay in stays) == row.ran_ms
        ended = [stay for stay in stays if stay.is_slice and stay.ends_ms is not None]
        assert len(ended) == row.slices
    assert (last.state in TERMINAL) == (last.ends_ms is not None)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(1, 3)), max_size=30))
def test_no_span_covers_another_in_its_lane(drawn: list[tuple[int, int, int]]) -> None:
    spans = [(begins, begins + lasts, width) for begins, lasts, width in drawn]
    lanes = laid_out(spans)

    assert [len(each) for each in lanes] == [width for *_, width in spans]
    for at, (begins, ends, _) in enumerate(spans):
        for other in range(at):
            if max(begins, spans[other][0]) < min(ends, spans[other][1]):
                assert not set(lanes[at]) & set(lanes[other])
    # As few as the most that run at a time, where each takes one.
    if spans and all(width == 1 for *_, width in spans) and all(b < e for b, e, _ in spans):
        most = max(sum(b <= at < e for b, e, _ in spans) for at in range(30))
        assert 1 + max(lane for (lane,) in lanes) == most
