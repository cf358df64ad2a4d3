"""What `help(me.memory.search)` says: the arguments of a verb, their types, ranges and defaults."""

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from types import UnionType
from typing import get_args

from msgspec import NODEFAULT, Struct
from msgspec import inspect as contract

from aios_broker.contract.syscall import Body, body_of_kind

LINE = 78


@cache
def help_text(path: str, build: Callable[..., object]) -> str:
    """Return the help of the verb at a path such as `memory.search`, built by `build`."""
    known = _contract_fields(path, build)
    listed = [_argument(parameter, known) for parameter in _parameters(build)]
    shape = ", ".join(
        f"{name}=..." if optional else name for name, optional in map(_shape, _parameters(build))
    )
    width = max((len(name) for name, _ in listed), default=0)
    lines = [f"  {name.ljust(width)}  {words}".rstrip() for name, words in listed]
    about = inspect.cleandoc(build.__doc__ or "")
    told = f"Arguments:\n{chr(10).join(lines)}" if lines else "It takes no arguments."
    stream = ", .stream(...)" if path == "llm.chat" else ""
    verbs = f"Also: me.{path}.start(...){stream}, .map([...])."
    return f"me.{path}({_cut(shape, LINE - len(path) - 5)})\n\n{about}\n\n{told}\n\n{verbs}"


def _cut(shape: str, room: int) -> str:
    return shape if len(shape) <= room else f"{shape[:room].rpartition(',')[0]}, ..."


def _parameters(build: Callable[..., object]) -> Iterator[inspect.Parameter]:
    """Yield the parameters of what builds a body; those of a TypedDict one by one."""
    for parameter in inspect.signature(build).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            yield parameter
            continue
        [fields] = get_args(parameter.annotation)
        for name, annotation in fields.__annotations__.items():
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=NODEFAULT, annotation=annotation
            )


def _shape(parameter: inspect.Parameter) -> tuple[str, bool]:
    return parameter.name, parameter.default is not inspect.Parameter.empty


def _contract_fields(path: str, build: Callable[..., object]) -> dict[str, contract.Field]:
    """Return the fields of the body that a verb sends, by name; none where it is no one kind's."""
    body = build if inspect.isclass(build) and issubclass(build, Struct) else body_of_kind(path)
    return {} if body is None else _fields(body)


def _fields(body: type[Body] | type[Struct]) -> dict[str, contract.Field]:
    kind = contract.type_info(body)
    assert isinstance(kind, contract.StructType)
    return {field.name: field for field in kind.fields}


def _argument(parameter: inspect.Parameter, known: dict[str, contract.Field]) -> tuple[str, str]:
    """Return an argument's name, and what it may be."""
    field = known.get(parameter.name)
    if field is None:
        words, default = inspect.formatannotation(parameter.annotation), parameter.default
    else:
        words, default = _words(field.type), field.default
        if parameter.default not in (NODEFAULT, inspect.Parameter.empty):
            default = parameter.default
    union = isinstance(parameter.annotation, UnionType)
    if union and str in get_args(parameter.annotation) and "str" not in words.split():
        words = f"str, or {words}"
    if default is None or not isinstance(default, bool | int | float | str):
        return parameter.name, words
    return parameter.name, f"{words} ({default!r} unless given)"


def _words(kind: contract.Type) -> str:
    """Return a type of the contract as people say it: `int, 1 to 100`, `a list of str`."""
    match kind:
        case contract.Metadata(type=inner, extra_json_schema=extra):
            said = (extra or {}).get("description")
            words = f"{_words(inner)}: {said}" if said else _words(inner)
        case contract.IntType() | contract.FloatType():
            words = " ".join(
                ["int" if isinstance(kind, contract.IntType) else "float", *_limits(kind)]
            )
        case contract.UnionType(types=types):
            some = [each for each in types if not isinstance(each, contract.NoneType)]
            words = " or ".join(map(_words, some))
            if len(some) < len(types):  # before what it means
                words = f"None or {words}"
        case contract.VarTupleType(item_type=item):
            words = f"a list of {_words(item)}"
        case contract.LiteralType(values=values):
            words = " or ".join(map(repr, values))
        case contract.StructType(cls=cls):
            words = cls.__name__
        case _:
            words = _PLAIN.get(type(kind), "any")
    return words


_PLAIN = {
    contract.StrType: "str",
    contract.BoolType: "bool",
    contract.DictType: "dict",
    contract.NoneType: "None",
}


def _limits(kind: contract.IntType | contract.FloatType) -> list[str]:
    named = (("over", kind.gt), ("from", kind.ge), ("to", kind.le), ("below", kind.lt))
    return [f"{words} {limit:,}" for words, limit in named if limit is not None]
