"""The tools that this machine's kernel is to have: `tools.toml`, read and checked.

    [tools."local/add"]
    function = "mymodule:add"
    path = "/home/ada/project"

    [tools."acme/report"]
    folder = "/opt/tools/report"

The file lies in the state directory, or where AIOS_TOOLS says. A folder has a `tool.toml`, which
says where it begins and what holds for it. Tools whose names begin with `aios/` come with the
kernel: a table of theirs says what holds here (`enabled = false`, `network`, `limits`).
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from aios_broker.catalogue import file_stamp
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.tools import (
    KERNEL_TOOLS,
    TOOL_NAME_RULE,
    FolderSettings,
    ToolEntry,
    ToolName,
    ToolSettings,
)

FILE_NAME = "tools.toml"
FOLDER_FILE = "tool.toml"
TABLE = "tools"
MOST_FILE_BYTES = 1024 * 1024
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")


@dataclass(frozen=True, slots=True)
class ToolCatalogue:
    """What a file says: the tools that are described well, and what is wrong with the others."""

    tools: Mapping[str, ToolEntry] = field(default_factory=dict)
    off: frozenset[str] = frozenset()  # what the operator has switched off
    # By tool; what is wrong with the file as a whole stands under its own name.
    problems: Mapping[str, InvalidConfig] = field(default_factory=dict)


def tools_path(state_dir: Path, named: Path | None) -> Path:
    """Return where the file of a kernel lies, whether it is there or not."""
    return named or state_dir / FILE_NAME


def read_tools(path: Path) -> ToolCatalogue:
    """Return what a file says; one that is not there says nothing."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
        if len(data) > MOST_FILE_BYTES:
            return _unreadable(f"has more than {MOST_FILE_BYTES} bytes")
        return parse_tools(data.decode())
    except FileNotFoundError:
        return ToolCatalogue()
    except (OSError, UnicodeDecodeError) as error:
        return _unreadable(f"cannot be read: {error}")


def parse_tools(text: str) -> ToolCatalogue:
    """Return what the text of a file says."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return _unreadable(f"is no TOML: {error}")
    tables = data.pop(TABLE, {})
    if data or not isinstance(tables, dict):
        return _unreadable(f"{next(iter(data), TABLE)!r} is no tool")
    tools: dict[str, ToolEntry] = {}
    problems: dict[str, InvalidConfig] = {}
    for name, table in tables.items():
        try:
            tools[name] = entry_of_table(name, table)
        except InvalidConfig as error:
            problems[name] = error
    off = frozenset(name for name, entry in tools.items() if not entry.enabled)
    return ToolCatalogue({k: v for k, v in tools.items() if k not in off}, off, problems)


def entry_of_table(name: str, table: object) -> ToolEntry:
    """Return the tool that a table of the file describes.

    Raises:
        InvalidConfig: It will not do; `field` names the tool and the setting.
    """
    try:
        msgspec.convert(name, ToolName)
    except msgspec.ValidationError as error:
        raise InvalidConfig(
            f"{name!r} is no name of a tool", field=f"{TABLE}.{name}", remedy=TOOL_NAME_RULE
        ) from error
    try:
        entry = msgspec.convert(table, ToolEntry)
    except msgspec.ValidationError as error:
        raise _wrong(error, f"{TABLE}.{name}", "an entry") from error
    if name.startswith(KERNEL_TOOLS):
        if entry.function is not None or entry.folder is not None or entry.path is not None:
            raise InvalidConfig(
                f"{KERNEL_TOOLS} is of the tools that come with the kernel",
                field=f"{TABLE}.{name}",
                remedy="give a tool of yours another name; "
                "of these set `enabled`, `limits`, `network` or `secrets`",
            )
    elif (entry.function is None) == (entry.folder is None):
        raise InvalidConfig(
            "it is neither a function nor a folder, or both",
            field=f"{TABLE}.{name}",
            remedy="give `function` (with `path`), or `folder`",
        )
    for setting in ("path", "folder"):
        place = getattr(entry, setting)
        if place is not None and not Path(place).expanduser().is_absolute():
            raise InvalidConfig(
                f"{place!r} is no absolute path",
                field=f"{TABLE}.{name}.{setting}",
                remedy="begin it with /",
            )
    return entry


def read_folder(folder: Path) -> FolderSettings:
    """Return what the `tool.toml` of a folder says.

    Raises:
        InvalidConfig: It is not there, or wrong; `field` names the setting.
    """
    path = folder / FOLDER_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
        table = tomllib.loads(data[:MOST_FILE_BYTES].decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(
            f"{path} cannot be read: {error}", field=FOLDER_FILE, remedy="correct the file"
        ) from error
    try:
        return msgspec.convert(table, FolderSettings)
    except msgspec.ValidationError as error:
        raise _wrong(error, FOLDER_FILE, "a tool") from error


def settings_of(said: Mapping[str, object]) -> ToolSettings:
    """Return what a decorator says, its name left out.

    Raises:
        InvalidConfig: It will not do; `field` names the setting.
    """
    try:
        return msgspec.convert({k: v for k, v in said.items() if k != "name"}, ToolSettings)
    except msgspec.ValidationError as error:
        raise _wrong(error, "@tool", "a tool") from error


def _wrong(error: msgspec.ValidationError, where: str, what: str) -> InvalidConfig:
    message = str(error)
    at = _AT.search(message)
    setting = f".{at[1]}" if at and at[1] else ""
    remedy = "correct it"
    if unknown := _UNKNOWN.search(message):
        setting, remedy = f"{setting}.{unknown[1]}", "take it out"
        message = f"{what} has no setting {unknown[1]!r}"
    return InvalidConfig(_AT.sub("", message), field=f"{where}{setting}", remedy=remedy)


def _unreadable(why: str) -> ToolCatalogue:
    problem = InvalidConfig(
        why, field=FILE_NAME, remedy='give each tool a table [tools."ORG/NAME"]'
    )
    return ToolCatalogue(problems={FILE_NAME: problem})


__all__ = [
    "FILE_NAME",
    "TABLE",
    "ToolCatalogue",
    "file_stamp",
    "parse_tools",
    "read_folder",
    "read_tools",
    "settings_of",
    "tools_path",
]
