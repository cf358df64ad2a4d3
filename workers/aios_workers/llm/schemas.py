"""JSON schemas as trees: what the engine that holds answers to them is asked, and what it cannot.

Keywords are told from names by where they stand: a property that is called `enum` or `$ref` is a
property. What is rewritten here only narrows a schema: whatever the result allows, it allows too.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeGuard

Schema = Mapping[str, object]

_ONE = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_LIST = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_LEAST = ("minimum", "exclusiveMinimum")
_MOST = ("maximum", "exclusiveMaximum")
BOUNDS = (*_LEAST, *_MOST)
_LIMITED_ELSEWHERE = frozenset({"$ref", "allOf", "anyOf", "const", "enum", "oneOf"})

MOST_CHARACTERS = 16_384  # of a string that says nothing of its length
MOST_NUMBER = 10**18  # of a number that says nothing of its size; a double has it exactly
LEAST_STEP = 1e-9  # of such a number's decimals
# Without `\\u`: the engine takes a name that is written so for none of those that are declared.
_ESCAPES = 'nrbtf\\"'
# What can be written with `\\u` alone, in a schema's text: such characters, and patterns of them.
_CONTROL = re.compile(r"\\u00[01]|\x7f|\\\\(?:x[017{]|u00[017]|u\{|p\{?C|[Pacv0])|\[:")
_DAY = (
    "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])"
    "|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = (
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_LABEL = "[A-Za-z0-9]{1,15}(-[A-Za-z0-9]{1,15}){0,2}"
_PART = "[A-Za-z0-9_+]{1,20}"
# Formats of which the engine writes what is none: a 29th of February in any year, a second 60, an
# address of 100 characters before its `@`.
_FORMATS = {
    "date": f"^{_DAY}$",
    "date-time": f"^{_DAY}T{_TIME}$",
    "time": f"^{_TIME}$",
    "email": f"^{_PART}([.-]{_PART}){{0,2}}@({_LABEL}\\.){{1,3}}[A-Za-z]{{2,15}}$",
    "hostname": f"^({_LABEL}\\.){{0,3}}{_LABEL}$",
}


def subschemas(schema: object) -> Iterator[Schema]:
    """Yield a schema and all schemas within it, whatever is none left out."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for keyword, value in schema.items():
        for each in _inner(keyword, value):
            yield from subschemas(each)


def _inner(keyword: str, value: object) -> Iterator[object]:
    if keyword in _NAMED and isinstance(value, Mapping):
        yield from value.values()
    elif keyword in _LIST and isinstance(value, list | tuple):
        yield from value
    elif keyword in _ONE:
        yield value


def rewritten(schema: object, change: Callable[[dict[str, object]], dict[str, object]]) -> object:
    """Return a schema with each of the schemas in it changed, the innermost first."""
    if not isinstance(schema, Mapping):
        return schema
    return change({key: _rewritten(key, value, change) for key, value in schema.items()})


def _rewritten(
    keyword: str, value: object, change: Callable[[dict[str, object]], dict[str, object]]
) -> object:
    if keyword in _NAMED and isinstance(value, Mapping):
        return {name: rewritten(each, change) for name, each in value.items()}
    if keyword in _LIST and isinstance(value, list | tuple):
        return [rewritten(each, change) for each in value]
    return rewritten(value, change) if keyword in _ONE else value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of a schema is a number: what is true or false is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# References.


def moved(schema: Schema, root: str, name: str) -> object:
    """Return a schema that stands within another, at `root`, and refers to itself as before.

    One that names itself, or a place in it, keeps its references: they count from its name, which
    is `name` where it has none.
    """
    names = ("$id", "$anchor", "$dynamicAnchor")
    if any(key in each for each in subschemas(schema) for key in names):
        return {"$id": name, **schema}

    def lead(node: dict[str, object]) -> dict[str, object]:
        target = node.get("$ref")
        if isinstance(target, str) and target.startswith("#"):
            return {**node, "$ref": root + target[1:]}
        return node

    return rewritten(schema, lead)


def refers(schema: object) -> bool:
    """Whether a schema refers to something, or can be referred to by a name."""
    keywords = ("$ref", "$dynamicRef", "$id", "$anchor", "$dynamicAnchor")
    return any(key in each for each in subschemas(schema) for key in keywords)


# What the engine is asked.


def narrowed(schema: object) -> object:
    """Return a schema whose answers the engine gets right, and which end."""
    found = rewritten(schema, _narrowed)
    if not isinstance(found, dict):
        return found
    escapes = {} if _has_control_characters(schema) else {"json_allowed_escapes": _ESCAPES}
    style = {**_style(found.get("x-guidance")), **escapes, "lenient": False}
    return {**found, "x-guidance": style}


def _style(told: object) -> dict[str, object]:
    """Return what a schema may tell the engine of its own: where blanks are, not what is kept."""
    if not isinstance(told, Mapping):
        return {}
    marks = {"item_separator": ",", "key_separator": ":"}
    found: dict[str, object] = {
        key: told[key] for key, mark in marks.items() if str(told.get(key)).strip() == mark
    }
    if isinstance(told.get("whitespace_flexible"), bool):
        found["whitespace_flexible"] = told["whitespace_flexible"]
    return found


def _has_control_characters(schema: object) -> bool:
    return _CONTROL.search(json.dumps(schema, ensure_ascii=False)) is not None


def _narrowed(node: dict[str, object]) -> dict[str, object]:
    if node.get("uniqueItems") is False:
        del node["uniqueItems"]  # it says nothing
    if isinstance(node.get("pattern"), str):
        node["pattern"] = without_nul(str(node["pattern"]))
    patterns = node.get("patternProperties")
    if isinstance(patterns, dict):
        node["patternProperties"] = {without_nul(key): each for key, each in patterns.items()}
    _lead_off_zero(node)
    kept = _FORMATS.get(str(node.get("format")))
    if kept is not None:
        del node["format"]
        others = node.get("allOf", [])
        node["allOf"] = [*(others if isinstance(others, list) else [others]), {"pattern": kept}]
    if _LIMITED_ELSEWHERE.isdisjoint(node):
        _limit(node)
    return node


def _lead_off_zero(node: dict[str, object]) -> None:
    """The engine would write the 0 that is excluded, below a bound that is less than 1 from it."""
    step = 1 if node.get("type") == "integer" else LEAST_STEP
    for excluded, bound, others, sign in (
        ("exclusiveMinimum", "minimum", _MOST, 1),
        ("exclusiveMaximum", "maximum", _LEAST, -1),
    ):
        if node.get(excluded) != 0 or node[excluded] is False:
            continue
        if all(sign * each > step for key in others if is_number(each := node.get(key))):
            own = node.get(bound)
            del node[excluded]
            node[bound] = sign * max(step, sign * own if is_number(own) else step)


def _limit(node: dict[str, object]) -> None:
    types = node.get("type")
    kinds = types if isinstance(types, list) else [types]
    if "string" in kinds and {"maxLength", "pattern", "format"}.isdisjoint(node):
        least = node.get("minLength")
        node["maxLength"] = max(MOST_CHARACTERS, least if isinstance(least, int) else 0)
    if "integer" in kinds or "number" in kinds:
        _limit_number(node, is_whole="number" not in kinds)


def _limit_number(node: dict[str, object], *, is_whole: bool) -> None:
    bounds = [value for key in BOUNDS if is_number(value := node.get(key))]
    if any(abs(each) >= MOST_NUMBER for each in bounds):
        return
    if not any(key in node for key in _LEAST):
        node["minimum"] = -MOST_NUMBER
    if not any(key in node for key in _MOST):
        node["maximum"] = MOST_NUMBER
    if not is_whole and "multipleOf" not in node and all(each == round(each, 6) for each in bounds):
        node["multipleOf"] = LEAST_STEP


def without_nul(pattern: str) -> str:
    r"""Return a pattern whose negated classes exclude NUL too.

    In a class that has all control characters the engine takes `\"` and `\\` for two more.
    """
    found: list[str] = []
    at, in_class = 0, False
    while at < len(pattern):
        size = 2 if pattern[at] == "\\" else 1
        found.append(pattern[at : at + size])
        if not in_class and pattern.startswith("[", at):
            in_class = True
            if pattern.startswith("[^", at):
                found.append("^\\x00")
                size = 2
        elif in_class and pattern[at] == "]":
            in_class = False
        at += size
    return "".join(found)


# What it cannot keep.


def unkept(schema: object) -> str | None:
    """Return what of a schema the engine would not keep, by its keyword; None: nothing is known."""
    for node in subschemas(schema):
        for rule in (_unkept_number, _unkept_count, _empty):
            why = rule(node)
            if why is not None:
                return why
    return _unkept_names(schema) if _has_control_characters(schema) else None


def _empty(node: Schema) -> str | None:
    keywords = ("anyOf", "enum", "oneOf", "type")
    found = next((each for each in keywords if node.get(each) == []), None)
    return found and f"{found}: an empty list allows nothing"


def _unkept_names(schema: object) -> str | None:
    """Names that are escaped are taken for others; here they must be allowed."""
    for node in subschemas(schema):
        named = [node.get(key) for key in ("properties", "patternProperties", "required")]
        if any(named) and node.get("additionalProperties") is not False:
            return (
                "additionalProperties: beside control characters, in values or patterns, other"
                " names cannot be told from those that are declared; make it false"
            )
    return None


def _unkept_number(node: Schema) -> str | None:
    for keyword in (*BOUNDS, "multipleOf", "const", "enum"):
        wrong = next(_inexact(node.get(keyword)), None)
        if wrong is not None:
            return f"{keyword}: {wrong} is beyond 2^53 and would be rounded"
    return None


def _inexact(value: object) -> Iterator[int]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _inexact(each)
    elif isinstance(value, list):
        for each in value:
            yield from _inexact(each)
    elif isinstance(value, int) and (abs(value) >= 1 << 1000 or int(float(value)) != value):
        yield value


def _unkept_count(node: Schema) -> str | None:
    """Keys that are not declared may be repeated, and are counted as often."""
    least, required = node.get("minProperties"), node.get("required")
    names = set(required) if isinstance(required, list) else set()
    is_open = node.get("additionalProperties") is not False or bool(node.get("patternProperties"))
    if isinstance(least, int | float) and is_open and least > len(names) + 1:
        return f"minProperties: {least} cannot be counted where other names may be repeated"
    return None
