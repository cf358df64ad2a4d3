"""What a syscall needs: read, refused, and shown again."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.syscall import (
    MAX_NEEDS,
    Need,
    NeedKind,
    Syscall,
    ToolEcho,
    checked_needs,
    core_of,
    known_needs,
)

NAMES = st.from_regex(r"[A-Za-z0-9._:@/-]{1,20}", fullmatch=True)
NEEDS = st.builds(Need, st.sampled_from(get_args(NeedKind)), NAMES)


@pytest.mark.parametrize("name", ["a b", "", "x" * 129])
def test_a_name_that_could_be_read_as_something_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidSyscall, match="names no lock") as caught:
        Need("lock", name)
    assert caught.value.field == "needs"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ([Need("core", "a"), Need("core", "b")], "more than one core"),
        ([Need("tool", "x"), Need("tool", "x")], "twice"),
        ([Need("tool", f"{n}") for n in range(MAX_NEEDS + 1)], f"limit is {MAX_NEEDS}"),
    ],
)
def test_needs_that_no_syscall_can_have_together_are_refused(needs: list[Need], words: str) -> None:
    with pytest.raises(InvalidSyscall, match=words) as caught:
        checked_needs(needs)
    assert caught.value.field == "needs"
    assert caught.value.remedy


@given(st.lists(NEEDS, max_size=MAX_NEEDS, unique=True))
def test_needs_come_back_as_they_were_written(needs: list[Need]) -> None:
    assert known_needs(" ".join(map(str, needs))) == tuple(needs)
    if sum(need.kind == "core" for need in needs) <= 1:
        assert checked_needs(needs) == tuple(needs)


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
