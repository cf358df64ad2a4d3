"""Finished answers against their JSON schemas, by a validator that had no part in making them.

A pattern is matched in linear time or so many steps, and nothing is fetched. Run as a program it
validates in children, for schemas whose validation may take long (not `quick`): alternatives within
alternatives double with each level of the answer. The library is loaded with the first schema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from aios_broker.process.bounded import serve
from aios_workers.llm.schemas import BOUNDS, Schema, is_number, subschemas

if TYPE_CHECKING:
    from jsonschema_rs import FancyRegexOptions, RegexOptions, Validator

REMEMBERED = 64
MOST_PATTERN_BYTES = 1 << 20  # of one that is compiled
MOST_BACKTRACKS = 100_000  # of one match
MOST_PROBED = 32  # schemas of numbers, and properties beside patterns
MOST_QUICK = 1 << 24  # characters of a schema times those of an answer: 0.1 s at most
_LEAST_TEXT = 1 << 10  # characters: the schema has to be compiled for any
# What may take long whatever its length: it recurs, compares each with each, or compiles much.
_SLOW = ('"$ref"', '"$dynamicRef"', '"$recursiveRef"', '"pattern', '"uniqueItems"')


def quick(schema: str, text: str) -> bool:
    """Whether to validate a text takes no long time, however the schema and the text are made.

    Without references each value of the text meets each part of the schema once at most.
    """
    if len(schema) * max(len(text), _LEAST_TEXT) > MOST_QUICK:
        return False
    return not any(word in schema for word in _SLOW)


def validator_of(schema: object) -> Validator:
    """Return a validator of a schema.

    Raises:
        ValueError: it is none, or refers to what it does not contain; the message says where.
    """
    import jsonschema_rs  # noqa: PLC0415 - 14 MB that only forms need

    linear = jsonschema_rs.RegexOptions(size_limit=MOST_PATTERN_BYTES)
    try:
        return _compiled(schema, linear)
    except ValueError:  # a remote core may know patterns that need backtracking
        fancy = jsonschema_rs.FancyRegexOptions(
            backtrack_limit=MOST_BACKTRACKS, size_limit=MOST_PATTERN_BYTES
        )
        return _compiled(schema, fancy)


def _compiled(schema: object, patterns: RegexOptions | FancyRegexOptions) -> Validator:
    import jsonschema_rs  # noqa: PLC0415

    if not isinstance(schema, dict | bool):
        raise ValueError("a schema is an object or a boolean")
    try:
        return jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            ignore_unknown_formats=True,
            offline=True,
            pattern_options=patterns,
        )
    except jsonschema_rs.ReferencingError as error:
        raise ValueError(f"$ref: {error}") from error
    except jsonschema_rs.ValidationError as error:
        of_dialect = error.message.startswith("Unknown meta-schema")
        where = "/".join(map(str, error.instance_path)) or ("$schema" if of_dialect else "")
        raise ValueError(f"{where}: {error.message}" if where else error.message) from error


def found_wrong(validator: Validator, text: str) -> str | None:
    """Return why a text is not JSON of a schema; None: it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    return wrong_value(validator, value)


def wrong_value(validator: Validator, value: object) -> str | None:
    """Return by which keyword, and where, a value breaks a schema; None: by none."""
    try:
        error = next(validator.iter_errors(value), None)
    except ValueError as deep:  # the library's own limit
        return str(deep)
    if error is None:
        return None
    where = "/".join(map(str, error.instance_path))
    keyword = next((key for key in reversed(error.schema_path) if isinstance(key, str)), "schema")
    return f"{keyword}: {error.message}" + (f" (at {where})" if where else "")


class Validators:
    """Validators of the schemas used last."""

    def __init__(self) -> None:
        self._known: dict[str, Validator] = {}  # the longest unused first

    def wrong(self, schema: str, text: str) -> str | None:
        """Return why a text is not JSON of this schema, which is text too; None: it is."""
        return found_wrong(self.of(schema), text)

    def of(self, schema: str) -> Validator:
        """Return the validator of a schema, which is text.

        Raises:
            ValueError: it is none.
        """
        validator = self._known.pop(schema, None) or validator_of(json.loads(schema))
        self._known[schema] = validator
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return validator


# What shows before anything runs that the engine takes a schema for another.


def number_probes(schema: object) -> Iterator[tuple[Schema, tuple[str, ...]]]:
    """Yield the schemas of numbers alone that are within, and texts near their bounds."""
    seen: list[Schema] = []
    for node in subschemas(schema):
        keys = [key for key in (*BOUNDS, "multipleOf") if is_number(node.get(key))]
        kind = node.get("type", "number")
        if not keys or kind not in ("integer", "number") or len(seen) >= MOST_PROBED:
            continue
        alone = {"type": kind, **{key: node[key] for key in keys}}
        if alone not in seen:
            seen.append(alone)
            yield alone, tuple(_near([alone[key] for key in keys]))


def _near(bounds: list[object]) -> list[str]:
    texts = ["0", "-0", "0.0", "-0.0", "1", "-1"]
    for bound in bounds:
        if isinstance(bound, int) or (isinstance(bound, float) and bound.is_integer()):
            whole = int(bound)
            texts += [str(whole - 1), str(whole), f"{whole}.0", str(whole + 1)]
        else:
            texts.append(json.dumps(bound))
    return texts


def overlapping(schema: object) -> str | None:
    """Return which pattern of names fits one that is declared beside it; None: no such pattern.

    The engine holds the declared one to its own schema alone, or finds no way on.
    """
    for node in subschemas(schema):
        patterns, names = node.get("patternProperties"), node.get("properties")
        if not isinstance(patterns, dict):
            continue
        declared = [*(names if isinstance(names, dict) else ()), *_required(node)]
        for pattern in patterns:
            fits = validator_of({"type": "string", "pattern": pattern})
            name = next((each for each in declared if fits.is_valid(each)), None)
            if name is not None:
                return f"patternProperties: {pattern!r} fits {name!r}, which is declared beside it"
    return None


def _required(node: Schema) -> list[str]:
    names = node.get("required")
    return [each for each in names if isinstance(each, str)] if isinstance(names, list) else []


class Request(msgspec.Struct, frozen=True):
    """What the program is asked."""

    schema: str
    text: str | None = None  # None: whether it is a schema at all


def _work(request: bytes) -> bytes:
    """Return why a text is not of its schema, or the schema is none; empty: all is well."""
    asked = msgspec.json.decode(request, type=Request)
    try:
        validator = validator_of(json.loads(asked.schema))
    except ValueError as error:
        return str(error).encode()
    why = None if asked.text is None else found_wrong(validator, asked.text)
    return (why or "").encode("utf-8", "replace")


if __name__ == "__main__":
    validator_of({})  # what is imported here the children have
    sys.exit(serve(_work))
