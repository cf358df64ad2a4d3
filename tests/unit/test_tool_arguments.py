"""The arguments of a tool: all faults at once with their paths; nothing is lost by a change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import (
    Fault,
    InvalidArguments,
    InvalidSyscall,
    ToolUnavailable,
    from_wire,
)
from aios_broker.contract.ids import Ids
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import Syscall, decode_syscall, encode_syscall, new_id
from aios_broker.contract.tools import (
    MAX_ARGUMENT_BYTES,
    MAX_ARGUMENT_LEVELS,
    ToolCard,
    ToolRun,
)
from aios_sdk.requests import Options, build_syscall, tool_call_body
from aios_workers.modules.tool.arguments import ArgumentChecker, compiled

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["count", "point"],
    "additionalProperties": False,
    "properties": {
        "count": {"type": "integer", "minimum": 3},
        "ratio": {"type": "number"},
        "sure": {"type": "boolean"},
        "name": {"type": "string", "maxLength": 5},
        "either": {"type": ["string", "integer"]},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "point": {"$ref": "#/$defs/point"},
        "counts": {"type": "array", "items": {"type": "integer"}},
        "first": {"prefixItems": [{"type": "integer"}, {"type": "string"}]},
        "kind": {"enum": ["1", "2"]},
    },
    "$defs": {
        "point": {
            "type": "object",
            "required": ["x"],
            "properties": {"x": {"type": "number"}, "next": {"$ref": "#/$defs/point"}},
        }
    },
}
GOOD: dict[str, Any] = {"count": 3, "point": {"x": 1.5}}
IDS = Ids(b"secret", Owner("default", "ann"))
CARD = ToolCard(name="me/tool", version="0" * 12, parameters=SCHEMA)


def checked(**arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    return ArgumentChecker().checked(CARD, {**GOOD, **arguments})


def faults(**arguments: Any) -> dict[str, Fault]:  # noqa: ANN401
    with pytest.raises(InvalidArguments) as caught:
        checked(**arguments)
    return {fault.path: fault for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("given_", "taken"),
    [
        ({"count": "17"}, {"count": 17}),
        ({"count": 17.0}, {"count": 17}),
        ({"ratio": "2.5"}, {"ratio": 2.5}),
        ({"ratio": "-3"}, {"ratio": -3}),
        ({"sure": "true"}, {"sure": True}),
        ({"maybe": "4"}, {"maybe": 4}),
        ({"counts": ["1", 2, 3.0]}, {"counts": [1, 2, 3]}),
        ({"first": ["1", "2"]}, {"first": [1, "2"]}),
        ({"point": {"x": "1.5", "next": {"x": "2"}}}, {"point": {"x": 1.5, "next": {"x": 2}}}),
        # Where a text would do it stays one.
        ({"either": "5"}, {"either": "5"}),
        ({"name": "5"}, {"name": "5"}),
        ({"kind": "1"}, {"kind": "1"}),
    ],
)
def test_what_says_exactly_that_is_taken_for_it(
    given_: dict[str, Any], taken: dict[str, Any]
) -> None:
    found = checked(**given_)
    for name, value in taken.items():
        assert found[name] == value
        assert json.dumps(found[name]) == json.dumps(value)  # 3, not 3.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("count", each) for each in ("03", " 3", "3 ", "3.0", "1e2", "+3", "", "٣", True, None)),
        *(("count", each) for each in (3.5, [3], {"a": 3})),
        *(("ratio", each) for each in ("2.50", "1e5", "nan", "Infinity", ".5", "5.", True)),
        *(("sure", each) for each in ("True", "yes", "1", 1, 0)),
        *(("name", each) for each in (5, True, None)),
    ],
)
def test_nothing_else_is_changed(name: str, value: object) -> None:
    assert set(faults(**{name: value})) == {f"/{name}"}


def test_all_faults_are_told_at_once_each_with_its_path_and_an_example() -> None:
    found = faults(
        count=1, point={"x": "a", "next": {}}, name="too long", maybe="x", counts=[1, "b"], more=1
    )

    assert set(found) == {
        *("/count", "/point/x", "/point/next/x", "/name", "/maybe", "/counts/1", "/more"),
    }
    assert found["/count"].example == 3
    assert found["/maybe"].fault == "is none of integer, null"
    assert "count, ratio" in found["/more"].fault


def test_the_message_alone_is_enough_to_repair_a_call() -> None:
    with pytest.raises(InvalidArguments) as caught:
        ArgumentChecker().checked(CARD, {"count": "x"})

    assert "me/tool does not take these arguments" in str(caught.value)
    assert '- /count: "x" is not of type "integer"; for example 3' in str(caught.value)
    assert "- /point: is missing; for example {'x': 1.5}" in str(caught.value)


def test_the_faults_survive_the_wire() -> None:
    with pytest.raises(InvalidArguments) as caught:
        ArgumentChecker().checked(CARD, {"count": "x"})
    error = caught.value

    assert from_wire(error.to_wire()).faults == error.faults


def test_a_huge_text_is_not_repeated_in_the_message() -> None:
    with pytest.raises(InvalidArguments) as caught:
        checked(name="x" * 500_000)

    assert len(str(caught.value)) < 2_000


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["1", "-2", "0.5", "true", "false", "3.0", "1e3", "007"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "next", "count", "name"]), inner, max_size=3)
    ),
    max_leaves=8,
)
some_arguments = st.dictionaries(st.sampled_from([*SCHEMA["properties"], "more"]), values)


@given(some_arguments)
def test_whatever_comes_out_is_allowed_and_says_what_came_in(arguments: dict[str, Any]) -> None:
    validator = jsonschema_rs.Draft202012Validator(SCHEMA)
    try:
        taken = ArgumentChecker().checked(CARD, arguments)
    except InvalidArguments:
        assert not validator.is_valid(arguments)
        return
    assert validator.is_valid(taken)
    assert same(taken, arguments)
    if validator.is_valid(arguments):
        assert taken == arguments


def same(taken: object, given_: object) -> bool:
    """Whether one value says what the other does: a text may have become what it spells."""
    if isinstance(taken, dict) and isinstance(given_, dict):
        return taken.keys() == given_.keys() and all(
            same(each, given_[name]) for name, each in taken.items()
        )
    if isinstance(taken, list) and isinstance(given_, list):
        return len(taken) == len(given_) and all(map(same, taken, given_))
    if isinstance(given_, str) and not isinstance(taken, str):
        return json.dumps(taken) == given_
    return (type(taken) is type(given_) and taken == given_) or taken == given_


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "sequence"},
        {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"properties": {"a": {"pattern": "("}}},
    ],
)
def test_a_schema_that_is_none_is_refused_and_nothing_is_fetched(schema: dict[str, Any]) -> None:
    with pytest.raises(ToolUnavailable, match="2020-12"):
        compiled(schema)


def test_a_schema_reads_no_file_of_the_machine(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"type": "object"}')
    with pytest.raises(ToolUnavailable, match="2020-12"):
        compiled({"$ref": other.as_uri()})


def deep(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"a": "x" * MAX_ARGUMENT_BYTES}, "bytes"),
        (deep(MAX_ARGUMENT_LEVELS), "levels"),
        ({"a": [1, {"b": 10**30}]}, "64 bits"),
        ({"a": -(2**63) - 1}, "64 bits"),
    ],
)
def test_what_no_tool_could_take_is_refused_at_the_first_border(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSyscall, match=words) as caught:
        build_syscall(Options("ann"), tool_call_body("me/add", arguments), IDS)
    assert caught.value.field == "body.arguments"
    data = msgspec.json.encode(
        {
            "id": new_id(),
            "agent": "ann",
            "body": {"type": "tool.call", "tool": "me/add", "arguments": arguments},
        }
    )
    with pytest.raises(InvalidSyscall, match=words):
        decode_syscall(data)


def test_what_is_as_large_as_it_may_be_goes_through() -> None:
    body = ToolRun("me/add", {"a": 2**64 - 1, "b": deep(MAX_ARGUMENT_LEVELS - 2)})
    assert decode_syscall(encode_syscall(Syscall(new_id(), "ann", body))).body == body


def test_a_number_that_is_none_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidSyscall) as caught:
        encode_syscall(Syscall(new_id(), "ann", ToolRun("me/add", {"a": [1.0, math.nan]})))
    assert caught.value.field == "body.arguments.a.1"


@pytest.mark.parametrize("name", ["add", "me/", "/add", "me/add/x", "me add/x", "../add", "me/é"])
def test_what_is_no_name_of_a_tool_is_refused(name: str) -> None:
    with pytest.raises(InvalidSyscall, match="tool"):
        build_syscall(Options("ann"), tool_call_body(name), IDS)
