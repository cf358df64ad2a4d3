"""Errors in the words of the command line: the option that was wrong, the command that helps.

The kernel names its operations and their fields (`storage.list`, `body.max_tokens`), whoever asked.
"""

import re
from collections.abc import Sequence
from functools import cache

import click

from aios_broker.contract.errors import KernelError
from aios_broker.contract.syscall import EXPECTED, KINDS

PROMPT_FIELDS = ("messages", "texts", "text")
OTHERS = {
    "access.register": "`aios agents register`",
    "access.revoke_token": "`aios agents revoke`",
    "access.approvals": "`aios approvals`",
    "access.approve": "`aios approve`",
    "access.deny": "`aios deny`",
    "access.audit": "`aios audit`",
}
FORM_OPTIONS = "--schema, --regex or --grammar"
_KIND = re.compile(
    rf"\b(?:{'|'.join(map(re.escape, sorted(KINDS, key=len, reverse=True)))})\b(?!=)"
)


def spoken(error: KernelError, command: click.Command, path: str) -> str:
    """Return what an error says to somebody who typed `path`, such as `aios memory add`."""
    field = option_of_field(error.field, command)
    remedy = error.remedy
    if remedy == EXPECTED:
        remedy = f"see `{path} --help`"
    text = f"{field}: {error.message}" if field else error.message
    return in_commands(f"{text} ({remedy})" if remedy else text)


def option_of_field(field: str | None, command: click.Command) -> str | None:
    """Return the option or argument that a field is given by; else the field's own name."""
    if field is None or not field.startswith("body."):
        return field
    if field == "body.type" and any(one.name == "tool" for one in command.params):
        return "--tool"
    name, _, rest = field.removeprefix("body.").replace("[", ".").partition(".")
    for one in command.params:
        if one.name == name and isinstance(one, click.Option):
            return " ".join([max(one.opts, key=len), *([rest.rstrip("]")] if rest else [])])
        if one.name == name or (one.name == "text" and name in PROMPT_FIELDS):
            return (one.metavar or str(one.name).upper()).strip("[]")
    return FORM_OPTIONS if name == "format" else field


def command_of(
    group: click.Group, context: click.Context, words: Sequence[str]
) -> tuple[click.Command, str]:
    """Return the command that words of the command line name, and its path."""
    command: click.Command = group
    path = context.command_path
    for word in words:
        if isinstance(command, click.Group) and word in command.list_commands(context):
            command = command.get_command(context, word) or command
            path += f" {word}"
    return command, path


def in_commands(text: str) -> str:
    """Return a text in which the kernel's operations are named by the commands that do them."""
    return _KIND.sub(lambda found: _commands().get(found[0], found[0]), text)


@cache
def _commands() -> dict[str, str]:
    # Only who has something to be told pays for the import.
    from aios_cli.state_modules import FILES, GRANTS, GROUPS, MEMORY  # noqa: PLC0415

    tables = {"memory": MEMORY, "files": FILES, "groups": GROUPS, "grants": GRANTS}
    found = {
        str(operation.body.__struct_config__.tag): f"`aios {group} {name}`"
        for group, table in tables.items()
        for name, operation in table.items()
    }
    contexts = (kind for kind in KINDS if kind.startswith("context."))
    return found | OTHERS | {kind: f"`me.{kind}()` of the SDK" for kind in contexts}
