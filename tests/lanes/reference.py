"""Write the list of all options into docs/reference-cli.md, from click's own declarations.

`./aios python tests/lanes/reference.py` does it; a test holds the page to it.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from aios_cli.main import COMMANDS, cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference-cli.md"
HEADING = "## Every option\n"
COMMON = frozenset({"state_dir", "as_json"})
OF_AN_AGENT = frozenset({"as_agent", "as_program", "as_tenant", "as_deadline_s"})
INTRODUCTION = """
Made from the commands' declarations by `./aios python tests/lanes/reference.py`. Every command also
takes `--help` and `--state-dir DIRECTORY`; those of memory, files, groups and grants also `--agent
TEXT`, `--program TEXT`, `--tenant TEXT` and `--deadline-s FLOAT`: who asks, and for how long.
"""


def section() -> str:
    """Return the whole section: a line for each command."""
    context = click.Context(cli, info_name="aios")
    lines = [line for name in COMMANDS for line in lines_of(cli, name, context)]
    return "\n".join((HEADING + INTRODUCTION, *lines, ""))


def lines_of(group: click.Group, name: str, above: click.Context) -> Iterator[str]:
    """Yield a line for a command, or for each of a group's."""
    command = group.get_command(above, name)
    assert command is not None
    context = click.Context(command, parent=above, info_name=name)
    if isinstance(command, click.Group):
        for each in command.commands:
            yield from lines_of(command, each, context)
        if not command.invoke_without_command:
            return
    options = [option for option in command.params if isinstance(option, click.Option)]
    shown = [
        flags(option, context)
        for option in options
        if option.name not in OF_AN_AGENT | COMMON or option.opts == ["--json"]
    ]
    places = [option.make_metavar(context) for option in command.params if option not in options]
    yield f"- `{' '.join((context.command_path, *places))}`: {', '.join(shown) or 'none'}"


def flags(option: click.Option, context: click.Context) -> str:
    """Return an option as it is typed: `--limit N`, `--stream/--no-stream`, `--recursive`/`-r`."""
    typed = "/".join((*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    return f"`{typed}{value}`"


def written() -> str:
    """Return the page as it stands."""
    return PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    PAGE.write_text(written().partition(HEADING)[0] + section(), encoding="utf-8")
