"""What of a tool's schema an answer can be held to, and what is told of the rest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from aios_kernel_api.gateway.schemas import Schema, held, unheld

STRICT = {"x-guidance": {"lenient": False}}
ODD: list[tuple[Schema, str]] = [
    ({"type": "object", "propertyNames": {"type": "string"}}, "propertyNames"),
    ({"type": "array", "uniqueItems": True, "items": {"type": "integer"}}, "uniqueItems"),
    ({"not": {"type": "null"}}, "not"),
    ({"type": "string", "pattern": "^(?!x).*$"}, "pattern"),
    ({"type": "string", "pattern": "(?<=a)b"}, "pattern"),
    ({"type": "string", "format": "regex"}, "format"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, "oneOf"),
    ({"type": "object", "contains": {}}, "contains"),
]


def is_held(schema: Schema) -> bool:
    whole = {"type": "object", "properties": {"a": schema}, **STRICT}
    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(whole)))


@pytest.mark.parametrize(("schema", "name"), ODD)
def test_what_cannot_be_held_is_left_out_and_told(schema: Schema, name: str) -> None:
    rest, left_out = held({"type": "object", "properties": {"a": schema, "b": schema}})
    assert left_out == (name,)
    inner = rest["properties"]["a"]  # type: ignore[index]
    assert is_held(inner)
    assert unheld("tools", [schema, None, schema]) == (f"tools.{name}",)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "date-time"},
        {"type": "string", "pattern": "^(?:a|b)$", "minLength": 1},
        {"anyOf": [{"type": "null"}, {"type": "integer", "maximum": 3}]},
        {"const": {"not": 1}, "default": {"if": 2}},
        {"type": "object", "properties": {"not": {"type": "null"}, "format": {"type": "string"}}},
    ],
)
def test_what_can_be_held_stays_as_it_is(schema: Schema) -> None:
    assert held(schema) == (schema, ())
    assert is_held(schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["not", "format", "pattern", "oneOf", "properties", "enum", "items"])
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["not", "format", "properties", "oneOf", "x"]), json_values))
def test_no_schema_breaks_it_and_what_is_left_is_held_already(schema: Schema) -> None:
    rest, _ = held(schema)
    assert held(rest) == (rest, ())
