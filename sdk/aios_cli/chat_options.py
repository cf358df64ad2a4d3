"""The options of `aios submit` that say how an answer is to be made.

They are the fields of `LlmChat`, with the descriptions, ranges and defaults that stand there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import inspect

from aios_broker.contract.llm import LlmChat

Fields = dict[str, object]
Click = Callable[[Callable[..., Any]], Callable[..., Any]]
Number = inspect.IntType | inspect.FloatType

# What `aios submit` takes in another way: PROMPT, --stream, and one option per form.
TAKEN_OTHERWISE = frozenset({"messages", "stream", "format"})


class JsonOrFile(click.ParamType[object]):
    """JSON on the command line, or `@` and the path of a file with it."""

    name = "json"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Return what the JSON says."""
        try:
            text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
            return msgspec.json.decode(text)
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            self.fail(f"{error}", param, ctx)


JSON = functools.partial(click.option, type=JsonOrFile(), metavar="JSON|@FILE")
_FORMS: tuple[Click, ...] = (
    JSON("--schema", help="The answer is JSON that this schema allows; {} is any object."),
    click.option("--regex", metavar="PATTERN", help="The answer matches it."),
    click.option("--grammar", metavar="LARK", help="The answer is a sentence of it."),
)


def with_chat_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed((*map(_option, _fields()), *_FORMS)):
        command = option(command)
    return command


def take_chat_fields(given: Fields) -> Fields:
    """Take the options out of what a command was given; return the fields of the body."""
    fields = {field.name: given.pop(field.name) for field in _fields()}
    forms = {
        "json": ("json_schema", given.pop("schema")),
        "regex": ("pattern", given.pop("regex")),
        "grammar": ("grammar", given.pop("grammar")),
    }
    wanted = [
        {"type": kind, name: value} for kind, (name, value) in forms.items() if value is not None
    ]
    if len(wanted) > 1:
        raise click.UsageError("one of --schema, --regex and --grammar, not several")
    if wanted and wanted[0] == {"type": "json", "json_schema": {}}:
        wanted = [{"type": "json"}]
    fields["format"] = wanted[0] if wanted else None
    return {name: value for name, value in fields.items() if _is_given(value)}


def _is_given(value: object) -> bool:
    """Whether the command line says it; 0 is something said."""
    return value is not None and value is not False and value != ()


def _fields() -> Iterator[inspect.Field]:
    kind = inspect.type_info(LlmChat)
    assert isinstance(kind, inspect.StructType)
    return (field for field in kind.fields if field.name not in TAKEN_OTHERWISE)


def _option(field: inspect.Field) -> Click:
    """Return the option of a field; a value is checked where the syscall is built."""
    flag, (kind, description) = f"--{field.name.replace('_', '-')}", _told(field.type)
    sentence = f"{description}."
    match kind:
        case inspect.BoolType():
            return click.option(flag, is_flag=True, help=sentence)
        case inspect.IntType() | inspect.FloatType():
            whole = isinstance(kind, inspect.IntType)
            shown = f"[{_range(kind)}{_default(field)}]"
            return click.option(
                flag,
                type=int if whole else float,
                metavar="N" if whole else "X",
                help=f"{description} {shown}",
            )
        case inspect.VarTupleType(item_type=inspect.StrType()):
            return click.option(flag, multiple=True, metavar="TEXT", help=sentence)
        case inspect.LiteralType(values=values):
            return click.option(flag, metavar="|".join(map(str, values)), help=sentence)
        case inspect.StrType():
            return click.option(flag, metavar="TEXT", help=sentence)
        case _:
            return JSON(flag, help=sentence)


def _told(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """Return a field's type, without None, and its description."""
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return _told(inner)[0], str((extra or {}).get("description", ""))
        case inspect.UnionType(types=types):
            first, *others = (each for each in types if not isinstance(each, inspect.NoneType))
            return (inspect.StrType(), "") if others else _told(first)
        case _:
            return kind, ""


def _range(kind: Number) -> str:
    """Return what a number may be: `0 to 2`, `over 0 to 1`."""
    least = f"{kind.ge:g}" if kind.ge is not None else f"over {kind.gt:g}"
    most = kind.le
    return f"{least} to {'2^63 - 1' if most == 2**63 - 1 else f'{most:,}'.removesuffix('.0')}"


def _default(field: inspect.Field) -> str:
    return "" if field.default is None else f"; default {field.default:g}"
