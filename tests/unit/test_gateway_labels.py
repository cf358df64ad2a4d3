"""What a request says of itself: its program and its tree, nice, deadline, key."""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.names import Name
from aios_kernel_api.gateway.labels import MAIN, Labels, Trees, labels_of, under

ADA = "acme ada"


def labels(
    headers: Mapping[str, str] | None = None,
    trees: Trees | None = None,
    whose: str = ADA,
    *,
    metadata: Mapping[str, object] | None = None,
    known_program: str | None = None,
    priority: int | None = None,
) -> Labels:
    return labels_of(
        headers or {},
        trees or Trees(),
        whose,
        metadata=metadata,
        known_program=known_program,
        priority=priority,
    )


def test_a_request_that_says_nothing_is_of_the_main_program() -> None:
    assert labels() == Labels(MAIN, 0, 600.0, None)


def test_the_header_goes_before_metadata_before_the_route_before_the_session() -> None:
    session = {"session-id": "s"}
    assert labels(session).program == "s"
    assert labels(session, known_program="k").program == "k"
    assert labels(session, known_program="k", metadata={"program": "m"}).program == "m"
    header = {**session, "x-aios-program": "h"}
    assert labels(header, known_program="k", metadata={"program": "m"}).program == "h"


def test_a_program_stands_under_the_parent_that_it_names() -> None:
    both = {"x-aios-program": "b", "x-aios-parent-program": "a"}
    assert labels(both).program == "a/b"
    assert labels({**both, "x-aios-program": "a/b"}).program == "a/b"
    assert labels(metadata={"program": "b", "parent_program": "a"}).program == "a/b"


def test_claude_codes_agents_stand_under_their_session() -> None:
    trees = Trees()
    root = {"x-claude-code-session-id": "S"}
    child = {**root, "x-claude-code-agent-id": "A"}
    grandchild = {**child, "x-claude-code-agent-id": "B", "x-claude-code-parent-agent-id": "A"}
    assert labels(root, trees).program == "S"
    assert labels(child, trees).program == "S/A"
    assert labels(grandchild, trees).program == "S/A/B"
    # One whose parent was not seen, and one of another session with the same names.
    assert labels(grandchild).program == "S/A/B"
    other = {**grandchild, "x-claude-code-session-id": "T"}
    assert labels(other, trees).program == "T/A/B"


def test_opencodes_sessions_stand_where_their_parent_stands() -> None:
    trees = Trees()
    assert labels({"x-session-id": "P"}, trees).program == "P"
    assert labels({"x-session-id": "C", "x-parent-session-id": "P"}, trees).program == "P/C"
    assert labels({"x-session-id": "G", "x-parent-session-id": "C"}, trees).program == "P/C/G"
    assert labels({"x-session-id": "C"}, trees).program == "P/C"
    # Another agent's sessions are met by nobody else.
    assert labels({"x-session-id": "C"}, trees, "acme bob").program == "C"


def test_a_session_that_cannot_be_a_name_becomes_a_digest() -> None:
    odd = labels({"session-id": "a b/c\n" * 40}).program
    assert odd == labels({"session-id": "a b/c\n" * 40}).program
    assert msgspec.convert(odd, Name) == odd
    assert "/" not in odd


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=6))
def test_whatever_sessions_say_the_program_has_a_name(chain: list[str]) -> None:
    trees, parent = Trees(), ""
    roots = set()
    for name in chain:
        program = labels({"x-session-id": name, "x-parent-session-id": parent}, trees).program
        assert msgspec.convert(program, Name) == program
        roots.add(program.partition("/")[0])
        parent = name
    if len(set(chain)) == len(chain):
        assert len(roots) == 1


def test_a_deep_tree_keeps_its_root() -> None:
    name = "root"
    for number in range(20):
        name = under(name, f"child-{number:03}")
        assert len(name) <= 128
        assert name.startswith("root/")


@pytest.mark.parametrize("name", ["a b", "x" * 129, "a\r\nb", "ü"])
def test_a_program_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        labels({"x-aios-program": name})
    assert caught.value.field == "x-aios-program"
    with pytest.raises(InvalidSyscall) as caught:
        labels(metadata={"program": name})
    assert caught.value.field == "metadata.program"


def test_metadata_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidSyscall):
        labels(metadata={"program": 7})


def test_nice_and_deadline_and_key() -> None:
    found = labels({"x-aios-nice": "5", "x-aios-deadline-s": "2.5", "idempotency-key": "k"})
    assert found == Labels(MAIN, 5, 2.5, "k")
    assert labels(priority=-3).nice == -3
    assert labels({"x-aios-nice": "5"}, priority=-3).nice == 5


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-aios-nice", "20"),
        ("x-aios-nice", "1.5"),
        ("x-aios-nice", "\uff11"),
        ("x-aios-deadline-s", "0"),
        ("x-aios-deadline-s", "-1"),
        ("x-aios-deadline-s", "nan"),
        ("x-aios-deadline-s", "86401"),
        ("idempotency-key", ""),
        ("idempotency-key", "k" * 257),
    ],
)
def test_labels_out_of_range_are_refused_by_their_header(header: str, value: str) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        labels({header: value})
    assert caught.value.field == header


def test_a_priority_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidSyscall) as caught:
        labels(priority=100)
    assert caught.value.field == "priority"
