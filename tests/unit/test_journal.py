"""The journal as it is read: lines to transitions, transitions to syscalls, and what is odd."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.transitions import TERMINAL
from aios_broker.ledger.fold import SyscallRow, fold
from aios_broker.ledger.journal import (
    Entry,
    JobUse,
    Position,
    Transition,
    kept_entry,
    parse_entry,
    read_entry,
    read_use,
)

METADATA = '{"agent":"ada","kind":"llm.chat","program":"p1","tenant":"acme"}'


def entry(*lines: str, at_ms: int = 1_700_000_000_000, seq: int = 0) -> list[object]:
    return [f"{at_ms}-{seq}".encode(), [b"q", b"llm", b"t", "\n".join(lines).encode()]]


def line(
    event: str, job_id: str = "j1", attempt: str = "1", who: str = "w", detail: str = ""
) -> str:
    return "\t".join((event, job_id, attempt, who, detail))


def entered(*lines: str) -> tuple[dict[str, SyscallRow], list[Transition]]:
    rows: dict[str, SyscallRow] = {}
    return rows, list(kept(rows, entry(*lines)).transitions())


def kept(rows: dict[str, SyscallRow], told: list[object]) -> Entry:
    """Enter what the journal tells; return it as it is read back from the ledger."""
    parsed = parse_entry(told)
    assert parsed is not None
    return kept_entry(parsed.position, parsed.module, parsed.text, fold(rows, parsed).anomalies)


def test_a_life_with_a_suspension() -> None:
    rows, transitions = entered(
        line("submit", attempt="", who="client", detail=METADATA),
        line("claim", attempt="1", who="w1"),
        line("suspend", attempt="1", who="w1", detail="64,500"),
        line("claim", attempt="2", who="w2"),
        line("finish", attempt="2", who="w2", detail="80,620"),
    )
    row = rows["j1"]
    assert (row.module, row.agent, row.program, row.tenant, row.kind) == (
        "llm",
        "ada",
        "p1",
        "acme",
        "llm.chat",
    )
    assert (row.state, row.attempts, row.slices, row.suspensions) == ("finished", 2, 2, 1)
    assert (row.tokens, row.ran_ms, row.worker, row.error_code) == (80, 620, "w2", None)
    assert row.submitted_at == row.started_at == row.ended_at == transitions[0].at
    assert not any(transition.anomaly for transition in transitions)
    assert [transition.ordinal for transition in transitions] == [0, 1, 2, 3, 4]


def test_one_that_moves_to_another_core_waits_as_before() -> None:
    moved = line("move", attempt="0", who="", detail="big twin")
    begun = (line("submit", attempt="", detail=METADATA), moved)
    assert entered(*begun)[0]["j1"].state == "queued"
    rows, transitions = entered(*begun, line("claim"), line("suspend", detail="64,500"), moved)
    row = rows["j1"]
    assert (row.state, row.slices, row.suspensions, row.tokens) == ("suspended", 1, 1, 64)
    assert not any(transition.anomaly for transition in transitions)


def test_the_error_of_a_worker_and_of_the_kernel() -> None:
    rows, _ = entered(
        line("submit", detail=METADATA),
        line("claim"),
        line("fail", detail="5,40,core-error"),
        line("submit", "j2", detail=METADATA),
        line("fail", "j2", detail="deadline-exceeded"),
        line("submit", "j3", detail=METADATA),
        line("cancel", "j3", detail="cancelled"),
    )
    assert (rows["j1"].error_code, rows["j1"].tokens) == ("core-error", 5)
    assert (rows["j2"].error_code, rows["j2"].slices) == ("deadline-exceeded", 0)
    assert (rows["j3"].error_code, rows["j3"].state) == ("cancelled", "cancelled")


def test_what_ended_stays_ended() -> None:
    rows, transitions = entered(
        line("submit", detail=METADATA),
        line("claim"),
        line("finish", detail="1,1"),
        line("fail", detail="worker-lost"),
    )
    assert [transition.anomaly for transition in transitions] == [False, False, False, True]
    assert (rows["j1"].state, rows["j1"].error_code) == ("finished", None)


def test_a_journal_that_lost_its_beginning_is_followed() -> None:
    rows, transitions = entered(line("finish", detail="7,70"))
    assert transitions[0].anomaly
    assert (rows["j1"].state, rows["j1"].tokens) == ("finished", 7)
    assert rows["j1"].agent == "?"


def test_an_id_that_comes_again_begins_a_new_life() -> None:
    rows, transitions = entered(
        line("submit", detail=METADATA),
        line("claim"),
        line("fail", detail="9,90,module-error"),
        line("submit", detail=METADATA),
    )
    row = rows["j1"]
    assert not any(transition.anomaly for transition in transitions)
    assert (row.state, row.ended_at, row.error_code, row.tokens) == ("queued", None, None, 0)


def test_an_event_of_a_newer_release_is_kept_and_marked() -> None:
    rows, transitions = entered(line("submit", detail=METADATA), line("teleport"))
    assert [transition.anomaly for transition in transitions] == [False, True]
    assert rows["j1"].state == "queued"


def test_tabs_in_the_detail_belong_to_it() -> None:
    _, [transition] = entered(line("cancel", detail="a\tb"))
    assert transition.detail == "a\tb"


def test_what_is_too_long_is_cut_and_kept_so() -> None:
    long = line("submit", "j" * 600, detail="d" * 5000)
    parsed = parse_entry(entry(line("claim"), long, "nonsense" * 100))
    assert parsed is not None
    again = kept_entry(parsed.position, parsed.module, parsed.text, parsed.anomalies)
    assert again == parsed
    assert (len(parsed), parsed.anomalies) == (3, [2])
    _, cut, odd = parsed.transitions()
    assert (len(cut.job_id), len(cut.detail), cut.anomaly) == (512, 4096, False)
    assert (len(odd.event), odd.job_id, odd.anomaly) == (512, "", True)


def test_an_attempt_that_is_no_small_number_cannot_be_read() -> None:
    for attempt in ("many", "-1", "9999999999", "1.0", "\u00b2"):
        _, [transition] = entered(line("claim", attempt=attempt))
        assert (transition.attempt, transition.anomaly) == (None, True), attempt


def test_an_entry_names_all_whose_syscalls_it_speaks_of() -> None:
    parsed = parse_entry(entry(line("submit", detail=METADATA), line("claim", "j2")))
    assert parsed is not None
    rows: dict[str, SyscallRow] = {}
    assert set(fold(rows, parsed).names.split()) == {"ada", "p1", "acme", "?", "main", "default"}
    later = parse_entry(entry(line("claim"), line("finish"), at_ms=5))
    assert later is not None
    assert set(fold(rows, later).names.split()) == {"ada", "p1", "acme"}
    assert rows["j1"].entries == "1700000000000-0 5-0"  # once each


def test_positions_are_ordered_as_numbers() -> None:
    assert Position.parse("5-10") > Position.parse(b"5-9")
    assert str(Position.parse("5-10")) == "5-10"


def test_use_is_read_where_there_is_one() -> None:
    assert read_use("64,500") == JobUse(64, 500)
    assert read_use("64,500,core-error") == JobUse(64, 500, "core-error")
    assert read_use("64,500,qwen,210000,USD") == JobUse(64, 500, "", "qwen", 210_000, "USD")
    assert read_use("64,500,qwen,0,,core-error") == JobUse(64, 500, "core-error", "qwen", 0, "")
    assert read_use("cancelled") == JobUse(code="cancelled")
    assert read_use("1.5,2") == JobUse(code="1.5,2")
    assert read_use("") == JobUse()


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_whatever_stands_in_a_journal_is_kept_line_by_line_and_fit_for_postgres(
    lines: list[bytes],
) -> None:
    data = b"\n".join(lines)
    rows: dict[str, SyscallRow] = {}
    told: list[object] = [b"1-0", [b"q", b"llm\x00", b"t", data]]
    transitions = list(kept(rows, told).transitions())
    assert [msgspec.structs.replace(each, anomaly=False) for each in transitions] == [
        msgspec.structs.replace(each, anomaly=False) for each in read_entry(told)
    ]
    assert len(transitions) == data.count(b"\n") + 1
    for transition in transitions:
        for text in (transition.event, transition.job_id, transition.who, transition.detail):
            assert "\x00" not in text
            text.encode()
    for row in rows.values():
        assert (row.ended_at is not None) == (row.state in TERMINAL)


@given(
    st.lists(
        st.sampled_from(
            [
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
            ]
        ),
        max_size=30,
    )
)
def test_books_agree_with_themselves_whatever_the_order_of_events(events: list[str]) -> None:
    rows, _ = entered(
        *(line(event, detail=METADATA if event == "submit" else "") for event in events)
    )
    for row in rows.values():
        assert (row.ended_at is not None) == (row.state in TERMINAL)
        assert row.suspensions <= row.slices + events.count("suspend")
        assert (row.error_code is not None) == (row.state in ("failed", "cancelled"))
