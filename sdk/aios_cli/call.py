"""One syscall from the command line: its options, built, sent, waited for, cancelled, shown.

Options and arguments are fields of a contract's struct: their types, ranges and defaults stand
there, and the kernel's own check judges what was given.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import click
import msgspec
from msgspec import inspect

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import Cancelled, from_wire
from aios_broker.contract.json_text import DuplicateKey, refuse_duplicate_keys
from aios_broker.contract.reply import Reply
from aios_broker.contract.syscall import Syscall, decode_syscall
from aios_cli.session import Operator, exit_code_of
from aios_cli.tables import say, show_json
from aios_cli.text import read_stdin

Fields = dict[str, object]
Number = inspect.IntType | inspect.FloatType


class JsonOrFile(click.ParamType[object]):
    """JSON on the command line, or `@` and the path of a file with it."""

    name = "json"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Return what the JSON says."""
        try:
            text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
            refuse_duplicate_keys(text)
            return msgspec.json.decode(text)
        except (OSError, DuplicateKey, ValueError, RecursionError) as error:
            self.fail(f"{error}", param, ctx)


def fields_of(struct: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    """Return the fields of a struct by name."""
    kind = inspect.type_info(struct)
    assert isinstance(kind, inspect.StructType)
    return {field.name: field for field in kind.fields}


def given(values: Mapping[str, object]) -> Fields:
    """Leave out what the command line does not say: the contract has the defaults.

    0 is something said.
    """
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != ()
    }


def argument_of(field: inspect.Field) -> click.Argument:
    """Return a field as an argument without a flag; one with a default may be left out."""
    whole = isinstance(_told(field.type)[0], inspect.IntType)
    return click.Argument([field.name], required=field.required, type=int if whole else str)


def option_of(
    field: inspect.Field, help_text: str = "", flags: tuple[str, ...] = ()
) -> click.Option:
    """Return a field as an option; its words are those of the contract where it has some."""
    kind, description = _told(field.type)
    name, words = field.name, help_text or description
    many = isinstance(kind, inspect.VarTupleType) and not isinstance(
        kind.item_type, inspect.StructType
    )
    flag = f"--{(name.removesuffix('s') if many else name).replace('_', '-')}"
    declared = [*(flags or (flag,)), name]
    match kind:
        case inspect.BoolType():
            return click.Option(declared, is_flag=True, help=f"{words}.")
        case inspect.IntType() | inspect.FloatType():
            whole = isinstance(kind, inspect.IntType)
            return click.Option(
                declared,
                type=int if whole else float,
                metavar="N" if whole else "X",
                help=f"{words} [{_range(kind)}{_default(field)}]",
            )
        case inspect.VarTupleType() if many:
            return click.Option(declared, multiple=True, metavar=_metavar(kind), help=f"{words}.")
        case inspect.StrType() | inspect.LiteralType():
            return click.Option(declared, metavar=_metavar(kind), help=f"{words}.")
        case _:
            return json_option(declared, f"{words}.")


def json_option(declared: list[str], help_text: str) -> click.Option:
    """Return an option that takes JSON, or a file with it."""
    return click.Option(declared, type=JsonOrFile(), metavar="JSON|@FILE", help=help_text)


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


def _metavar(kind: inspect.Type) -> str:
    """Return what may be said: a text, or one of a few words."""
    if isinstance(kind, inspect.VarTupleType):
        return _metavar(_told(kind.item_type)[0])
    return "|".join(map(str, kind.values)) if isinstance(kind, inspect.LiteralType) else "TEXT"


def _range(kind: Number) -> str:
    """Return what a number may be: `0 to 2`, `over 0 to 1`, `1 or more`."""
    least = _shown(kind.ge) if kind.ge is not None else f"over {_shown(kind.gt)}"
    return f"{least} or more" if kind.le is None else f"{least} to {_shown(kind.le)}"


def _default(field: inspect.Field) -> str:
    said = isinstance(field.default, int | float)
    return f"; default {_shown(field.default)}" if said else ""


def _shown(number: float | None) -> str:
    return "2^63 - 1" if number == 2**63 - 1 else f"{number:,}".removesuffix(".0")


def checked(fields: Fields) -> Syscall:
    """Return the syscall of these fields; those that are not given have the contract's defaults.

    Raises:
        InvalidSyscall: a value out of its range; `field` names it.
        UnknownModule: a tool that is not built.
    """
    return decode_syscall(msgspec.json.encode(given(fields)))


def text_or_stdin(text: str) -> str:
    """Return a text; `-` reads it from standard input."""
    return read_stdin() if text == "-" else text


async def ask(
    operator: Operator, syscall: Syscall, hear: Callable[[Pending], Awaitable[Reply]]
) -> Reply:
    """Submit and wait as `hear` does; who is interrupted cancels the syscall."""
    async with operator.client() as client:
        try:
            return await hear(client.submit(syscall))
        except asyncio.CancelledError:
            error = Cancelled("its caller went away (Ctrl-C)", syscall_id=syscall.id)
            await operator.control.cancel([syscall.id], error, module=syscall.module)
            say(f"\ncancelled {syscall.id}", err=True)
            raise


def conclude(reply: Reply, show: Callable[[Reply], None], *, as_json: bool) -> None:
    """Show the reply, and end with the exit code of its error."""
    error = None if reply.error is None else from_wire(reply.error)
    if as_json:
        show_json(reply)
        raise SystemExit(exit_code_of(error) if error is not None else 0)
    if error is not None:
        raise error
    show(reply)
