"""Schemas of tools as cores can hold answers to them. Pure.

Coding agents send schemas with keywords that no grammar can hold an answer to, and take it for
granted that arguments may not follow them: those keywords are left out, and named in the answer.
"""

import re
from collections.abc import Iterable, Mapping

Schema = dict[str, object]

_UNHELD = frozenset(
    {
        "contains",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
_FORMATS = frozenset(
    {
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "time",
        "uri",
        "uuid",
    }
)
_SAYS_NOTHING = frozenset({"$comment", "$id", "$schema"})
_DATA = frozenset({"const", "default", "enum", "examples"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
_LOOKS_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])")


def held(schema: Mapping[str, object]) -> tuple[Schema, tuple[str, ...]]:
    """Return a schema that answers can be held to, and the keywords that are not in it any more."""
    left_out: dict[str, None] = {}
    return _held(schema, left_out), tuple(left_out)


def unheld(path: str, schemas: Iterable[object]) -> tuple[str, ...]:
    """Return the paths of what schemas of tools ask for and do not get, each once."""
    names = (name for each in schemas if isinstance(each, Mapping) for name in held(each)[1])
    return tuple(dict.fromkeys(f"{path}.{name}" for name in names))


def _held(schema: Mapping[str, object], left_out: dict[str, None]) -> Schema:
    found: Schema = {}
    for name, value in schema.items():
        if name in _SAYS_NOTHING:
            continue
        if name in _UNHELD or _is_odd(name, value):
            left_out[name] = None
        elif name in _DATA:
            found[name] = value
        elif name in _NAMED and isinstance(value, Mapping):
            found[name] = {key: _inner(each, left_out) for key, each in value.items()}
        elif name == "oneOf" and "anyOf" not in schema:
            left_out[name] = None  # one of them or more: nobody counts
            found["anyOf"] = _inner(value, left_out)
        else:
            found[name] = _inner(value, left_out)
    return found


def _inner(value: object, left_out: dict[str, None]) -> object:
    if isinstance(value, Mapping):
        return _held(value, left_out)
    if isinstance(value, list):
        return [_inner(each, left_out) for each in value]
    return value


def _is_odd(name: str, value: object) -> bool:
    """Tell whether a keyword is held, but not with this value."""
    if name == "format":
        return not isinstance(value, str) or value not in _FORMATS
    return name == "pattern" and isinstance(value, str) and bool(_LOOKS_AROUND.search(value))
