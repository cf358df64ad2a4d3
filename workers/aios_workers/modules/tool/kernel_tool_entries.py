"""The tools that come with the kernel, as entries like those of `tools.toml`.

They are there without a line of that file; a table of theirs in it switches one off, or says what
holds for it here. Their code runs where all tools run (`kernel_tools/`), and what they are is read
off their `tool.toml`: no process is started to ask.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from msgspec.structs import replace

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.tools import KERNEL_TOOLS, ToolEntry, ToolSettings
from aios_broker.tool_catalogue import FILE_NAME, TABLE, ToolCatalogue
from aios_workers.modules.tool.process.loading import digests, files_below

ROOM = Path(__file__).with_name("kernel_tools")
FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "aios/calculator": "calculator",
        "aios/http_fetch": "http_fetch",
        "aios/python": "python",
        "aios/shell": "shell",
        "aios/sqlite": "sqlite",
        "aios/text_search": "text_search",
    }
)


def with_kernel_tools(catalogue: ToolCatalogue) -> ToolCatalogue:
    """Return what a file says, with the kernel's own tools as it leaves them.

    Where the file cannot be read at all they are not there either: it may have switched them off.
    """
    if FILE_NAME in catalogue.problems:
        return catalogue
    tools, problems = dict(catalogue.tools), dict(catalogue.problems)
    for name in [name for name in tools if name.startswith(KERNEL_TOOLS)]:
        if name not in FOLDERS:
            del tools[name]
            problems[name] = InvalidConfig(
                f"no tool {name!r} comes with the kernel",
                field=f"{TABLE}.{name}",
                remedy=f"there are {', '.join(FOLDERS)}",
            )
    for name, folder in FOLDERS.items():
        if name not in catalogue.off and name not in problems:
            tools[name] = replace(tools.get(name, ToolEntry()), folder=str(ROOM / folder))
    return ToolCatalogue(tools, catalogue.off, problems)


def is_kernel_tool(name: str) -> bool:
    """Whether a tool comes with the kernel."""
    return name in FOLDERS


def kernel_content() -> list[list[str]]:
    """Return what the kernel's tools are made of, as their processes tell it."""
    return digests(files_below(str(ROOM.resolve())))


def as_set(settings: ToolSettings, entry: ToolEntry) -> ToolSettings:
    """Return the settings of a tool with the operator's in place of its own."""
    given = {
        name: value
        for name in ("limits", "network", "secrets")
        if (value := getattr(entry, name)) is not None
    }
    return replace(settings, **given) if given else settings
