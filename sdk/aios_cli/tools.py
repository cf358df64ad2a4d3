"""`aios tools`: the tools that a kernel has, shown, added, removed, tried out, called."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path

import click
from msgspec import Struct

from aios_broker.config import environment
from aios_broker.contract import tools as contract
from aios_broker.contract.errors import InvalidConfig, ToolUnavailable
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import new_id
from aios_broker.contract.tools import ToolCard, ToolEntry, ToolResult
from aios_broker.tool_catalogue import FOLDER_FILE, tools_path
from aios_cli.call import JsonOrFile
from aios_cli.results import show_result
from aios_cli.session import EXIT_CODES, command, current_config
from aios_cli.state_modules import Operation, commands_of
from aios_cli.tables import say, show_json
from aios_local.tools_file import ToolsFile
from aios_workers.modules.tool.arguments import ArgumentChecker, example_of
from aios_workers.modules.tool.kernel_tool_entries import is_kernel_tool, with_kernel_tools
from aios_workers.modules.tool.opening import (
    open_egress,
    open_registry,
    sandbox_kind,
    told_of,
    work_folder,
)
from aios_workers.modules.tool.processes import ToolProcesses
from aios_workers.modules.tool.running import ToolCall, ToolProgram

OWN = "local"  # before the name of a tool that has none
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_ARGUMENTS = click.Argument(["arguments"], type=JsonOrFile(), required=False)


class Added(Struct, frozen=True):
    """A tool that was added, as it was loaded."""

    file: str
    card: ToolCard


class Tested(Struct, frozen=True):
    """A tool that was loaded here, and what a call of it returned, if it was called."""

    card: ToolCard
    result: ToolResult | None = None


def _show_added(added: Added) -> None:
    say(f"tool {added.card.name} (version {added.card.version}) is in {added.file}")
    example = json.dumps(example_of(added.card.parameters, added.card.parameters))
    say(f"call it: aios tools call {added.card.name} '{example}'")


def _show_tested(tested: Tested) -> None:
    if tested.result is not None:
        show_result(tested.result)
    else:
        show_json(tested.card)


@command(_show_added)
@click.argument("what", metavar="MODULE:FUNCTION|FOLDER|NAME")
@click.option("--name", metavar="ORG/NAME", help="Its name; else that of @tool, or local/FUNCTION.")
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the module is imported from; else the working directory.",
)
@click.option("--replace", is_flag=True, help="Also where a tool of this name is there.")
def add(what: str, name: str | None, path: Path | None, *, replace: bool) -> Added:
    """Add a tool: a function of a module, or a folder with a tool.toml.

    One that comes with the kernel, and was switched off, is switched on.

    It is loaded first, in a process of its own: one that cannot be loaded is not added.

    \b
    Examples:
      aios tools add mymodule:add
      aios tools add mymodule:add --name acme/add --path ~/project
      aios tools add ./report --name acme/report
    """  # noqa: D301 - \b keeps click from wrapping
    if is_kernel_tool(what):
        file = _file()
        file.switch(what, on=True)
        return Added(str(file.path), asyncio.run(_tested(what, file, None)).card)
    entry = _entry_of(what, path)
    found = asyncio.run(_loaded(name or _usual_name(what), entry))
    called = name or found.marked or found.card.name
    file = _file()
    file.add(called, entry, replace=replace)
    if called != found.card.name:
        found = asyncio.run(_loaded(called, entry))
    return Added(str(file.path), found.card)


def _show_removed(name: str) -> None:
    is_off = is_kernel_tool(name)
    say(f"tool {name} is switched off" if is_off else f"tool {name} is removed")


@command(_show_removed)
@click.argument("name")
def remove(name: str) -> str:
    """Take a tool out of the file; a running kernel forgets it within seconds.

    One that comes with the kernel is switched off; `aios tools add` with its name switches it on.

    \b
    Examples:
      aios tools remove local/add
      aios tools remove aios/shell
    """  # noqa: D301 - \b keeps click from wrapping
    if is_kernel_tool(name):
        _file().switch(name, on=False)
    else:
        _file().remove(name)
    return name


@command(_show_tested)
@click.argument("name")
@click.argument("arguments", type=JsonOrFile(), required=False)
def test(name: str, arguments: object) -> Tested:
    """Load a tool here, without a kernel, and print its card; with ARGUMENTS also call it.

    \b
    Examples:
      aios tools test local/add
      aios tools test local/add '{"a": 1, "b": 2}'
    """  # noqa: D301 - \b keeps click from wrapping
    if arguments is not None and not isinstance(arguments, dict):
        raise click.UsageError("ARGUMENTS is a JSON object")
    return asyncio.run(_tested(name, _file(), arguments))


async def _loaded(name: str, entry: ToolEntry) -> ToolProgram:
    config = current_config()
    with work_folder() as folder:
        path = tools_path(config.state_dir, config.tools)
        registry = open_registry(path, config.state_dir, environment(), folder)
        return await registry.described(name, entry)


def _entry_in(file: ToolsFile, name: str) -> ToolEntry:
    catalogue = with_kernel_tools(file.read())
    for where in (name, "tools.toml"):
        if where in catalogue.problems:
            raise catalogue.problems[where]
    if name in catalogue.off:
        raise InvalidConfig(
            f"{name} is switched off",
            field="NAME",
            remedy=f"`aios tools add {name}` switches it on",
        )
    if name not in catalogue.tools:
        raise InvalidConfig(
            f"there is no tool {name!r}",
            field="NAME",
            remedy=f"use of {', '.join(catalogue.tools)}, or add one with `aios tools add`",
        )
    return catalogue.tools[name]


async def _tested(name: str, file: ToolsFile, arguments: Mapping[str, object] | None) -> Tested:
    config = current_config()
    entry = _entry_in(file, name)
    with work_folder() as folder:
        path = tools_path(config.state_dir, config.tools)
        registry = open_registry(path, config.state_dir, environment(), folder)
        program = await registry.described(name, entry)
        if arguments is None:
            return Tested(program.card)
        taken = ArgumentChecker().checked(program.card, arguments)
        egress = open_egress(folder, config.state_dir, lambda: None)
        told = told_of(environment())
        if program.card.files:
            raise ToolUnavailable(
                f"{name} reads files of an agent's storage, which only a kernel has",
                field="NAME",
                remedy=f"`aios up`, and `aios tools call {name}`",
            )
        goes_without = sandbox_kind(environment()) == "none"
        runner = ToolProcesses(
            folder / "calls", registry.sandbox, told, egress, without_sandbox=goes_without
        )
        try:
            call = ToolCall(new_id(), Owner("default", "cli"), taken)
            result = await runner.run(program, call, lambda _: None)
        finally:
            await runner.close()
            await egress.log.close()
        return Tested(program.card, result)


def _file() -> ToolsFile:
    config = current_config()
    return ToolsFile(tools_path(config.state_dir, config.tools))


def _entry_of(what: str, path: Path | None) -> ToolEntry:
    folder = Path(what).expanduser()
    if (folder / FOLDER_FILE).is_file():
        return ToolEntry(folder=str(folder.absolute()))
    if not _FUNCTION.match(what):
        raise ToolUnavailable(
            f"{what!r} is neither MODULE:FUNCTION nor a folder with a {FOLDER_FILE}",
            field="what",
            remedy="such as mymodule:add",
        )
    return ToolEntry(function=what, path=str((path or Path()).absolute()))


def _usual_name(what: str) -> str:
    folder = Path(what).expanduser()
    own = folder.absolute().name if folder.is_dir() else what.partition(":")[2]
    return f"{OWN}/{own}"


_OPERATIONS = {
    "list": Operation(
        contract.ToolList,
        "List the tools of the kernel.",
        words={
            "query": "With these words in its name or description",
            "parameters": "With schemas",
        },
    ),
    "show": Operation(contract.ToolShow, "Show all that is known of a tool.", ("tool",)),
    "call": Operation(
        contract.ToolRun,
        "Call a tool with ARGUMENTS, a JSON object or @FILE.",
        ("tool",),
        words={"version": "Only this version of it"},
        others=(_ARGUMENTS,),
        stands_for=("arguments",),
    ),
}

tools = click.Group(
    "tools",
    [*commands_of(_OPERATIONS), add, remove, test],
    epilog=EXIT_CODES,
    help="""Show, change, test and call tools.

    A tool is a function of yours or a folder with a tool.toml. They stand in a file, tools.toml in
    the state directory; a running kernel follows it, and the files of each tool, within seconds.

    \b
    Examples:
      aios tools add mymodule:add
      aios tools call local/add '{"a": 1, "b": 2}'
      aios tools list
    """,
)
