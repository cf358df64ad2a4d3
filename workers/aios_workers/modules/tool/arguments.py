"""The arguments of a call against the schema of its tool: all faults at once, or what is run.

Two things are taken for what they say: a text that is exactly a number or a truth value where one
of these is asked for and no text would do, and a whole number that is written with a `.0`. Nothing
else is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aios_broker.contract.errors import Fault, InvalidArguments, ToolUnavailable
from aios_broker.contract.tools import ToolCard

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator

REMEMBERED = 256  # compiled schemas, one per version of a tool
MOST_FAULTS = 50
MOST_SAID = 300  # characters of one fault: the message repeats the value
MOST_REFERENCES = 32  # that lead from one schema to the next
MOST_PATTERN_BYTES = 1 << 20
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+\Z")
_TRUTH = {"true": True, "false": False}
_BY_TYPE: dict[str, object] = {
    "string": "text",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}

Schema = Mapping[str, Any]


class ArgumentChecker:
    """Checks arguments; what it has compiled it remembers."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Validator] = {}  # the longest unused first

    def checked(self, card: ToolCard, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the tool is given them.

        Raises:
            InvalidArguments: Its schema does not allow them; `faults` has each fault.
            ToolUnavailable: Its schema is none.
        """
        validator = self.validator(card)
        taken = coerced(arguments, card.parameters, card.parameters)
        assert isinstance(taken, dict)
        found = validator.iter_errors(taken)
        faults: list[Fault] = []
        for error in found:
            faults.extend(_faults_of(error, card.parameters))
            if len(faults) >= MOST_FAULTS:
                break
        if faults:
            raise invalid_arguments(card.name, faults[:MOST_FAULTS])
        return taken

    def validator(self, card: ToolCard) -> Validator:
        """Return what checks the arguments of a version of a tool.

        Raises:
            ToolUnavailable: Its schema is none.
        """
        key = (card.name, card.version)
        validator = self._known.pop(key, None) or compiled(card.parameters)
        self._known[key] = validator
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return validator


def compiled(schema: Schema) -> Validator:
    """Return a validator of a schema of Draft 2020-12.

    Raises:
        ToolUnavailable: It is none, or refers to what it does not contain.
    """
    import jsonschema_rs  # noqa: PLC0415 - 14 MB that only tools and forms need

    try:
        return jsonschema_rs.Draft202012Validator(
            dict(schema),
            validate_formats=True,
            ignore_unknown_formats=True,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=MOST_PATTERN_BYTES),
        )
    except (jsonschema_rs.ReferencingError, jsonschema_rs.ValidationError, ValueError) as error:
        raise ToolUnavailable(
            f"its schema is none of Draft 2020-12: {error}"[:MOST_SAID],
            field="parameters",
            remedy="correct it",
        ) from error


def invalid_arguments(tool: str, faults: Sequence[Fault]) -> InvalidArguments:
    """Return the error with all faults: in its message, too, for a model that reads only that."""
    lines = []
    for each in faults:
        example = "" if each.example is None else f"; for example {each.example!r}"
        lines.append(f"- {each.path or 'the arguments'}: {each.fault}{example}")
    error = InvalidArguments(
        f"{tool} does not take these arguments:\n" + "\n".join(lines),
        field="body.arguments",
        remedy="correct each of them and call again",
    )
    error.faults = tuple(faults)
    return error


# What is taken for what it says.


def coerced(value: object, schema: object, root: Schema) -> object:
    """Return a value with what it has of numbers and truth values written as text, as these."""
    nodes = list(_alternatives(schema, root))
    if isinstance(value, dict):
        return {key: _coerced_in(each, key, nodes, root) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_coerced_at(each, at, nodes, root) for at, each in enumerate(value)]
    types = {kind for node in nodes for kind in _types(node)}
    if isinstance(value, str) and types and "string" not in types:
        return _said(value, types)
    if isinstance(value, float) and value.is_integer():
        is_whole = "integer" in types and "number" not in types
        return int(value) if is_whole and abs(value) < 1 << 53 else value
    return value


def _coerced_in(value: object, key: str, nodes: Sequence[Schema], root: Schema) -> object:
    for node in nodes:
        properties = node.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            return coerced(value, properties[key], root)
    others = next((node["additionalProperties"] for node in nodes if _has_others(node)), None)
    return value if others is None else coerced(value, others, root)


def _has_others(node: Schema) -> bool:
    return isinstance(node.get("additionalProperties"), Mapping)


def _coerced_at(value: object, at: int, nodes: Sequence[Schema], root: Schema) -> object:
    for node in nodes:
        first = node.get("prefixItems")
        if isinstance(first, list) and at < len(first):
            return coerced(value, first[at], root)
        if isinstance(node.get("items"), Mapping):
            return coerced(value, node["items"], root)
    return value


def _said(text: str, types: set[str]) -> object:
    if {"integer", "number"} & types and _INTEGER.match(text):
        return int(text)
    if "number" in types and _NUMBER.match(text) and repr(float(text)) == text:
        return float(text)
    return _TRUTH.get(text, text) if "boolean" in types else text


def _alternatives(schema: object, root: Schema, depth: int = 0) -> Iterator[Schema]:
    """Yield the schemas that stand for a value: itself, what it refers to, its alternatives."""
    if not isinstance(schema, Mapping) or depth > MOST_REFERENCES:
        return
    yield schema
    if isinstance(schema.get("$ref"), str):
        yield from _alternatives(pointed(root, schema["$ref"]), root, depth + 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        for each in schema[keyword] if isinstance(schema.get(keyword), list) else ():
            yield from _alternatives(each, root, depth + 1)


def _types(node: Schema) -> tuple[str, ...]:
    """Return the types that a schema names, those of its constants included."""
    kind = node.get("type")
    if isinstance(kind, str):
        return (kind,)
    if isinstance(kind, list):
        return tuple(map(str, kind))
    constants = node.get("enum", [node["const"]] if "const" in node else [])
    return ("string",) if any(isinstance(each, str) for each in constants) else ()


def pointed(root: object, reference: str) -> object:
    """Return what a reference such as `#/$defs/Point` leads to; None: nothing within."""
    if not reference.startswith("#"):
        return None
    found = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            return None
    return found


# What is wrong, and an example of what would be right.


def _faults_of(error: ValidationError, root: Schema) -> Iterator[Fault]:
    """Yield a fault for each thing that an error of the validator is about."""
    path = _pointer(error.instance_path)
    above = _at(root, error.schema_path[:-1])
    keyword = error.schema_path[-1] if error.schema_path else ""
    kind = error.kind.as_dict()
    if keyword == "required" and "property" in kind:
        name = str(kind["property"]).strip('"')
        properties = above.get("properties")
        of_it = properties.get(name) if isinstance(properties, Mapping) else None
        yield Fault(f"{path}{_pointer([name])}", "is missing", example_of(of_it, root))
    elif keyword == "additionalProperties" and "unexpected" in kind:
        known = ", ".join(above.get("properties", {})) or "none"
        for name in kind["unexpected"]:
            yield Fault(f"{path}{_pointer([str(name)])}", f"is not known; there are: {known}")
    elif keyword in ("anyOf", "oneOf"):
        types = sorted({each for node in _alternatives(above, root) for each in _types(node)})
        said = f"is none of {', '.join(types)}" if types else error.message
        yield Fault(path, said[:MOST_SAID], example_of(above, root))
    else:
        yield Fault(path, _shortened(error.message), example_of(above, root))


def _shortened(message: str) -> str:
    half = MOST_SAID // 2
    return message if len(message) <= MOST_SAID else f"{message[:half]}...{message[-half:]}"


def _pointer(path: Sequence[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _at(root: Schema, path: Sequence[str | int]) -> Schema:
    found = pointed(root, f"#{_pointer(path)}")
    return found if isinstance(found, Mapping) else {}


def example_of(schema: object, root: Schema, depth: int = 0) -> object:
    """Return a value that a schema may well allow; None: nothing is known of one."""
    if not isinstance(schema, Mapping) or depth > MOST_REFERENCES:
        return None
    for keyword in ("examples", "enum"):
        if isinstance(schema.get(keyword), list) and schema[keyword]:
            return schema[keyword][0]
    for keyword in ("const", "default"):
        if schema.get(keyword) is not None:
            return schema[keyword]
    if isinstance(schema.get("$ref"), str):
        return example_of(pointed(root, schema["$ref"]), root, depth + 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        for each in schema[keyword] if isinstance(schema.get(keyword), list) else ():
            if (found := example_of(each, root, depth + 1)) is not None:
                return found
    return _example_by_type(schema, root, depth)


def _example_by_type(schema: Schema, root: Schema, depth: int) -> object:
    kind = next(iter(_types(schema)), "object" if "properties" in schema else "")
    if kind in ("integer", "number"):
        return _number_within(schema, kind)
    if kind == "string":
        short = str(_BY_TYPE["string"])[: schema.get("maxLength", 4)]
        return None if "pattern" in schema or "format" in schema else short
    if kind == "array":
        inner = example_of(schema.get("items"), root, depth + 1)
        return [] if inner is None else [inner]
    if kind == "object":
        names = schema.get("required", [])
        properties = schema.get("properties", {})
        return {name: example_of(properties.get(name), root, depth + 1) for name in names}
    return _BY_TYPE.get(kind)


def _number_within(schema: Schema, kind: str) -> object:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is None and (above := schema.get("exclusiveMinimum")) is not None:
        least = above + 1
    usual = _BY_TYPE[kind]
    if least is not None and least > 1:
        return least
    return most if most is not None and most < 1 else usual
