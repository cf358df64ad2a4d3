"""`@tool`: a function stays what it is, and says what it is as a tool."""

import pytest

from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.tools import MARK, ParallelLimits, RunLimits
from aios_broker.tool_catalogue import settings_of
from aios_sdk import tool
from aios_sdk.requests import tool_call_body


@tool
def add(a: int, b: int) -> int:
    return a + b


@tool(
    name="acme/wipe",
    destructive=True,
    locks=["file:{path}"],
    parallel=ParallelLimits(tool=2),
    limits=RunLimits(timeout_s=5),
)
def wipe(path: str) -> str:
    return path


def test_the_function_stays_what_it_is() -> None:
    assert add(1, 2) == 3
    assert wipe("/a") == "/a"


def test_a_call_names_a_function_by_its_name_as_a_tool() -> None:
    assert tool_call_body(add, {"a": 1})["tool"] == "local/add"
    assert tool_call_body(wipe)["tool"] == "acme/wipe"
    assert tool_call_body("me/other", {"a": 1}) == {
        "type": "tool.call",
        "tool": "me/other",
        "arguments": {"a": 1},
        "version": None,
    }


def test_a_function_that_is_no_tool_is_refused() -> None:
    with pytest.raises(InvalidSyscall, match="no tool"):
        tool_call_body(len)


def test_what_it_says_is_what_the_registry_reads() -> None:
    settings = settings_of(getattr(wipe, MARK))

    assert settings.destructive
    assert settings.parallel.tool == 2
    assert settings.limits.timeout_s == 5
    assert tuple(settings.locks) == ("file:{path}",)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "add"},
        {"name": "a/b/c"},
        {"wings": 2},
        {"limits": {"timeout_s": 0}},
        {"limits": {"memory_bytes": 1}},
        {"locks": "gpu0"},
        {"idempotent": "yes"},
    ],
)
def test_what_is_wrong_is_refused_where_it_is_written(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        tool(**settings)(named)  # type: ignore[call-overload]


def named() -> None:
    """Nothing but its name is asked for."""


def test_a_function_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="name of a tool"):
        tool(lambda: None)
    assert tool(named) is named
