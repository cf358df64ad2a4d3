"""Forms: what a schema allows and the engine gets right is kept, the rest is refused by keyword."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings

from aios_broker.contract.llm import Tool
from aios_workers.llm.constraint import Compiler, narrowed_constraint, verdict_of
from aios_workers.llm.core import Constraint
from aios_workers.llm.cores.simulated import simulated_model as vocabulary
from aios_workers.llm.schemas import moved, without_nul
from aios_workers.llm.tools import call_schema
from aios_workers.llm.validation import Validators
from tests.schema_strategies import KEYWORDS, schemas

COMPILER = Compiler(vocabulary.constraint_pieces(), (vocabulary.END_ID,), tuple)


def constraint_of(schema: object) -> Constraint:
    return Constraint("json", json.dumps(schema))


def walked(schema: object, seed: int, limit: int = 400) -> str | None:
    """Return what a random writer, cut and gone on with, makes of a schema; None: nothing whole."""
    draws, ids = random.Random(seed), list[int]()
    constraint = constraint_of(schema)
    matcher = COMPILER.start(constraint)
    while not matcher.must_end and len(ids) < limit:
        choices = matcher.allowed().nonzero()[0].tolist()
        if vocabulary.END_ID in choices and (len(choices) == 1 or draws.random() < 0.4):
            break
        choices = [each for each in choices if each != vocabulary.END_ID]
        ids.append(draws.choice([each for each in choices if each < 127] or choices))
        if draws.random() < 0.02:
            matcher = COMPILER.start(constraint, ids)
        else:
            matcher.add(ids[-1])
    return vocabulary.decode(ids).decode() if matcher.may_end else None


REFUSED: list[tuple[object, str]] = [
    ({"type": "string", "pattern": "^[\\x00-\\x1f]{2}$"}, "pattern"),
    ({"type": "string", "pattern": '^[\\W--["]]$'}, "pattern"),
    ({"type": "string", "pattern": "a(?!b)"}, "pattern"),
    ({"type": "integer", "minimum": 10**18 + 1, "maximum": 10**18 + 9}, "minimum"),
    ({"enum": [1, 2**53 + 1]}, "enum"),
    ({"const": {"deep": [2**53 + 1]}}, "const"),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-10}, "exclusiveMinimum"),
    ({"type": "number", "exclusiveMaximum": 0, "minimum": -1e-10}, "exclusiveMaximum"),
    (
        {"type": "number", "allOf": [{"exclusiveMinimum": 0}, {"maximum": 1e-10}]},
        "minimum",
    ),
    ({"properties": {"a": {"const": "\x0b"}}}, "additionalProperties"),
    ({"patternProperties": {"^[\\x00-\\x1f]": {}}}, "additionalProperties"),
    ({"enum": []}, "enum"),
    ({"type": []}, "type"),
    ({"type": "integer", "multipleOf": 0}, "multipleOf"),
    ({"const": 10**400}, "const"),
    ({"$schema": "https://example.org/dialect", "type": "boolean"}, "$schema"),
    ({"properties": {"n": {"$ref": "#"}}, "required": ["n"], "type": "object"}, "$ref"),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    ({"type": "array", "minContains": 2}, "minContains"),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames"),
    ({"type": ["string", "integer"], "if": {"type": "string"}, "else": {}}, "if"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
    ({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, "oneOf"),
    ({"oneOf": [{"pattern": "^a"}, {"pattern": "b$"}]}, "oneOf"),
    (
        {
            "oneOf": [
                {"type": "integer", "minimum": 0, "maximum": 3},
                {"type": "integer", "minimum": 2, "maximum": 5},
            ],
            "x-guidance": {"coerce_one_of": True},
        },
        "oneOf",
    ),
    ({"type": "string", "pattern": "(?<=a)b"}, "pattern"),
    ({"type": "string", "pattern": "(a)\\1"}, "pattern"),
    ({"type": "string", "pattern": "^[[:alpha:]]{1,3}$"}, "pattern"),
    ({"type": "string", "pattern": "^[a-z&&[^b]]{1,4}$"}, "pattern"),
    ({"type": "object", "additionalProperties": {}, "minProperties": 3}, "minProperties"),
    (
        {
            "type": "object",
            "properties": {"score": {"type": "integer", "multipleOf": 5}},
            "patternProperties": {"^score$": {"type": "integer"}},
            "additionalProperties": False,
        },
        "patternProperties",
    ),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"type": "string"}, "then": {"minLength": 3}}, "then"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "array", "contains": {"type": "string"}}, "contains"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x"}}}, "$dynamicRef"),
    ({"$ref": "https://example.org/elsewhere"}, "$ref"),
    ({"$ref": "file:///etc/hostname"}, "$ref"),
    ({"type": "string", "format": "phone-number"}, "format"),
    ({"type": "array", "items": [{"type": "string"}]}, "items"),
    ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf"),
]


@pytest.mark.parametrize(("schema", "keyword"), REFUSED)
def test_what_the_engine_would_not_keep_is_refused_by_its_keyword(
    schema: object, keyword: str
) -> None:
    assert keyword in verdict_of(constraint_of(schema))


KEPT: list[object] = [
    {"type": "string", "pattern": '^[^"]{1,4}$'},
    {"type": "string", "pattern": "^[^\\\\\"']{1,4}$"},
    {"type": "string", "pattern": '^\\p{Lu}[^,"]*$', "maxLength": 9},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "email"},
    {"type": "string", "format": "hostname"},
    {"type": "array", "uniqueItems": False, "maxItems": 2, "items": {"type": "boolean"}},
    {
        "type": "object",
        "properties": {'a"\\b': {"const": 'c"'}},
        "required": ['a"\\b'],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"enum": {"$ref": "#/$defs/u"}},
        "required": ["enum"],
        "additionalProperties": False,
        "$defs": {"u": {"enum": ["C", "F"]}},
    },
    {"enum": list(range(2_000))},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    {"type": "number", "exclusiveMaximum": 0, "minimum": -0.5},
    {"type": "number", "exclusiveMinimum": 0, "allOf": [{"maximum": 0.25}]},
    {"type": "number", "anyOf": [{"exclusiveMinimum": 0}], "maximum": 0.5},
    {"type": "integer", "anyOf": [{"exclusiveMinimum": 0}], "maximum": 5},
    {"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 2},
    {"type": "number", "multipleOf": 0.3, "minimum": -2, "maximum": 2},
    {"type": "integer", "multipleOf": 2.5, "minimum": 0, "maximum": 20},
    {"enum": [1, 1.0, True]},
    {"const": 1e22},
    {"const": "\x00\x1f\x7f"},
    {"enum": ["a", "abc"], "minLength": 2},
    {"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": {"type": "integer", "maximum": 5}}},
    {
        "patternProperties": {"^[^b]": {"const": 0}},
        "additionalProperties": {"const": 1},
        "type": "object",
        "maxProperties": 3,
    },
    {
        "type": "array",
        "items": {"const": 1},
        "maxItems": 2,
        "x-guidance": {"item_separator": "; "},
    },
    {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "integer",
        "minimum": 3,
        "exclusiveMinimum": True,
        "maximum": 9,
    },
    {"type": "integer", "multipleOf": 7, "minimum": -30, "maximum": 30},
    {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
]


@pytest.mark.parametrize("schema", KEPT)
def test_what_is_kept_is_kept_by_every_answer(schema: object) -> None:
    assert verdict_of(constraint_of(schema)) == ""
    texts = [text for seed in range(40) if (text := walked(schema, seed)) is not None]
    assert texts
    validators = Validators()
    assert [validators.wrong(json.dumps(schema), each) for each in texts] == [None] * len(texts)


def check(schema: dict[str, object], seeds: int) -> None:
    """Each answer that ends has the form, or its keyword is named before anything runs."""
    said = verdict_of(constraint_of(schema))
    if said:
        assert any(each in said for each in KEYWORDS) or "no text satisfies it" in said, said
        return
    validators = Validators()
    for seed in range(seeds):
        text = walked(schema, seed)
        if text is not None:
            assert validators.wrong(json.dumps(schema), text) is None, text


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas())
def test_a_random_schema_is_kept_or_refused_by_its_keyword(schema: dict[str, object]) -> None:
    check(schema, seeds=3)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas())
def test_300_random_schemas_are_kept_or_refused(schema: dict[str, object]) -> None:
    check(schema, seeds=10)


def test_numbers_and_strings_without_bounds_end() -> None:
    asked = json.loads(narrowed_constraint(constraint_of({"type": "string"})).source)
    assert asked.pop("x-guidance")
    assert asked == {"type": "string", "maxLength": 16_384}
    for schema in ({"type": "number"}, {"type": "number", "minimum": 0, "maximum": 1}):
        matcher = COMPILER.start(constraint_of(schema), tuple(b"0.123456789"))
        assert matcher.must_end
    whole = COMPILER.start(constraint_of({"type": "integer"}), tuple(b"1" * 18))
    assert set(whole.allowed().nonzero()[0].tolist()) == {vocabulary.END_ID}


@pytest.mark.parametrize(
    ("schema", "begun"),
    [
        (
            {
                "type": "object",
                "properties": {"a": {"const": 1}},
                "required": ["a"],
                "additionalProperties": {"const": 0},
            },
            '{"a": 1, "\\',
        ),
        (
            {
                "type": "object",
                "patternProperties": {"^a": {"const": 1}},
                "additionalProperties": {"const": 0},
            },
            '{"\\',
        ),
    ],
)
def test_no_name_is_written_with_an_escape_that_hides_it(schema: object, begun: str) -> None:
    r"""`"\u0061"` is the name `a`, and its value what is declared for `a`."""
    matcher = COMPILER.start(constraint_of(schema), tuple(begun.encode()))
    allowed = {chr(each) for each in matcher.allowed().nonzero()[0].tolist()}
    assert allowed == set('nrbtf\\"')


def test_a_negated_class_loses_nul_and_nothing_else() -> None:
    assert without_nul("^[^a]$") == "^[^\\x00a]$"
    assert without_nul("\\[^a]") == "\\[^a]"
    assert without_nul("[a[^b]") == "[a[^b]"
    assert without_nul("[\\]^]|[^x]") == "[\\]^]|[^\\x00x]"


def test_a_schema_within_another_refers_as_before() -> None:
    named = {"$defs": {"p": {"$anchor": "pp", "type": "boolean"}}, "$ref": "#pp"}
    assert moved(named, "#/$defs/t", "urn:t") == {"$id": "urn:t", **named}
    data = {"properties": {"$ref": {"$ref": "#/$defs/u"}}, "default": {"$ref": "#/x"}}
    assert moved(data, "#/$defs/t", "urn:t") == {
        "properties": {"$ref": {"$ref": "#/$defs/t/$defs/u"}},
        "default": {"$ref": "#/x"},
    }


@pytest.mark.parametrize("name", ["unit", "default", "enum", "const", "examples", "properties"])
def test_a_property_may_have_the_name_of_a_keyword_in_a_tool_as_in_a_form(name: str) -> None:
    arguments = {
        "$defs": {"Unit": {"enum": ["C", "F"]}, "more": {"$ref": "#"}},
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/Unit"}, "again": {"$ref": "#/$defs/more"}},
        "required": [name],
        "additionalProperties": False,
    }
    for extra in ({}, {"$id": "https://example.org/t.json"}):
        tools = [Tool("t", "", {**arguments, **extra}), Tool("u", "", arguments)]
        schema = call_schema(tools)
        assert verdict_of(constraint_of(schema)) == ""
        call = {"name": "t", "arguments": {name: "C", "again": {name: "F"}}}
        text = json.dumps(call)
        assert COMPILER.start(constraint_of(schema), tuple(text.encode())).must_end
        assert Validators().wrong(json.dumps(schema), text) is None


def test_a_validator_fetches_nothing_and_is_not_kept_busy() -> None:
    validators = Validators()
    backtracks = json.dumps({"type": "string", "pattern": "^(a+)+$"})
    assert "pattern" in str(validators.wrong(backtracks, json.dumps("a" * 50_000 + "b")))
    with pytest.raises(ValueError, match="fetch"):
        validators.of('{"$ref": "http://127.0.0.1:9/x"}')
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    assert validators.wrong('{"properties": {"a": {"$ref": "#"}}}', deep) is not None
