"""What a syscall needs: read, refused, and shown again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.needs import (
    KINDS,
    MAX_NEEDS,
    Need,
    checked_needs,
    core_of,
    known_needs,
    read_needs,
)
from aios_broker.contract.syscall import Syscall, ToolEcho

NAMES = st.from_regex(r"[A-Za-z0-9._:@/-]{1,20}", fullmatch=True)
NEEDS = st.builds(Need, st.sampled_from(KINDS), NAMES)


@pytest.mark.parametrize(
    ("needs", "field", "words"),
    [
        (["lock:a b"], "needs[0]", "names no lock"),
        (["tool:x", "gpu:1"], "needs[1]", "no need"),
        (["core:"], "needs[0]", "names no core"),
        (["lock:" + "x" * 129], "needs[0]", "names no lock"),
        (["tool"], "needs[0]", "names no tool"),
        (["core:a", "core:b"], "needs", "more than one core"),
        (["tool:x", "tool:x"], "needs", "twice"),
        ([f"tool:{n}" for n in range(MAX_NEEDS + 1)], "needs", f"limit is {MAX_NEEDS}"),
    ],
)
def test_bad_needs_are_refused_by_name(needs: list[str], field: str, words: str) -> None:
    with pytest.raises(InvalidSyscall, match=words) as caught:
        read_needs(needs)
    assert caught.value.field == field
    assert caught.value.remedy


@given(st.lists(NEEDS, max_size=MAX_NEEDS, unique=True))
def test_needs_come_back_as_they_were_written(needs: list[Need]) -> None:
    texts = [str(need) for need in needs]
    assert known_needs(" ".join(texts)) == tuple(needs)
    if sum(need.kind == "core" for need in needs) <= 1:
        assert read_needs(texts) == checked_needs(needs) == tuple(needs)


def test_a_record_of_another_release_says_what_it_can() -> None:
    assert known_needs("gpu:1 core:small lock: tool:a") == (
        Need("core", "small"),
        Need("tool", "a"),
    )
    assert known_needs("") == ()


def test_a_chat_needs_the_core_that_it_names_and_an_echo_needs_nothing() -> None:
    chat = Syscall("0" * 32, "ada", LlmChat((Message("user", "hi"),), core="small"))
    assert chat.needs == (Need("core", "small"),)
    assert core_of(chat.needs) == "small"
    assert Syscall("0" * 32, "ada", ToolEcho("x")).needs == ()
    assert core_of(()) == ""
