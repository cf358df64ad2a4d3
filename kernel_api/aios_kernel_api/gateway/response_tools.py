"""The tools of a Responses request as the model is shown them, and as its calls name them. Pure.

A tool of free text (`custom`) is shown as a function with one argument. A tool of a namespace is
shown under a name that has both. A tool that OpenAI's servers would run is refused: nobody would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import Tool
from aios_kernel_api.gateway.functions import tool_of
from aios_kernel_api.gateway.items import CUSTOM_ARGUMENT, Json, converted, full_name

_FREE_TEXT: Json = {
    "type": "object",
    "properties": {CUSTOM_ARGUMENT: {"type": "string"}},
    "required": [CUSTOM_ARGUMENT],
    "additionalProperties": False,
}


class FunctionTool(Struct, frozen=True):
    """A function, as a request has it."""

    name: str
    parameters: Json | None = None
    description: str | None = None


class TextFormat(Struct, frozen=True):
    """What the text of a custom tool is to be."""

    type: str
    syntax: str | None = None
    definition: str | None = None


class CustomTool(Struct, frozen=True):
    """A tool that takes free text."""

    name: str
    description: str | None = None
    format: TextFormat | None = None


class Namespace(Struct, frozen=True):
    """Tools under a name of their own."""

    name: str
    tools: list[Json]
    description: str | None = None


class ToolChoice(Struct, frozen=True):
    """A choice that is more than a word."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: str = "auto"
    tools: list[Json] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Known:
    """What a name that the model calls stands for."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


@dataclass(frozen=True, slots=True)
class Toolset:
    """The tools of a request: as the kernel takes them, and what their names stand for."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    names: Mapping[str, Known] = field(default_factory=dict)


def toolset_of(tools: Sequence[Json], choice: str | Json | None) -> Toolset:
    """Return the tools of a request.

    Raises:
        InvalidSyscall: a tool, or a choice, that is not served here.
    """
    found: dict[str, tuple[Tool, Known]] = {}
    for place, raw in enumerate(tools):
        for tool, known in _read(raw, f"tools[{place}]", None):
            if tool.name in found:
                raise InvalidSyscall(
                    f"two tools have the name {tool.name!r}",
                    field=f"tools[{place}].name",
                    remedy="name each tool once",
                )
            found[tool.name] = tool, known
    wanted, among = _chosen(choice)
    if among is not None:
        found = {name: each for name, each in found.items() if name in among}
    return Toolset(
        tuple(tool for tool, _ in found.values()),
        wanted,
        {name: known for name, (_, known) in found.items()},
    )


def _read(raw: Json, at: str, namespace: str | None) -> list[tuple[Tool, Known]]:
    kind = raw.get("type")
    if kind == "function":
        function = converted(raw, FunctionTool, at)
        name = full_name(function.name, namespace)
        tool = tool_of(name, function.description or "", function.parameters or {})
        return [(tool, Known(function.name, namespace))]
    if kind == "custom":
        custom = converted(raw, CustomTool, at)
        tool = tool_of(full_name(custom.name, namespace), _in_words(custom), _FREE_TEXT)
        return [(tool, Known(custom.name, namespace, is_custom=True))]
    if kind == "namespace" and namespace is None:
        space = converted(raw, Namespace, at)
        return [
            each
            for place, inner in enumerate(space.tools)
            for each in _read(inner, f"{at}.tools[{place}]", space.name)
        ]
    raise InvalidSyscall(
        f"a tool of type {kind!r} is run by OpenAI's servers: here nobody would run it",
        field=f"{at}.type",
        remedy="offer a function that your agent runs, or leave it out",
    )


def _in_words(custom: CustomTool) -> str:
    """Return the description of a tool of free text; its grammar is shown, and not held."""
    words = [custom.description or ""]
    form = custom.format
    if form is not None and form.definition:
        words.append(f"`{CUSTOM_ARGUMENT}` is written by this grammar ({form.syntax}):")
        words.append(form.definition)
    return "\n\n".join(each for each in words if each)


def _chosen(choice: str | Json | None) -> tuple[str, frozenset[str] | None]:
    """Return the kernel's choice, and the names that alone may be called; None: all."""
    if choice is None or isinstance(choice, str):
        return _word(choice or "auto"), None
    asked = converted(choice, ToolChoice, "tool_choice")
    if asked.type in ("function", "custom") and asked.name:
        return full_name(asked.name, asked.namespace), None
    if asked.type == "allowed_tools":
        among = (converted(each, ToolChoice, "tool_choice.tools") for each in asked.tools)
        names = frozenset(full_name(each.name, each.namespace) for each in among if each.name)
        return _word(asked.mode), names
    raise InvalidSyscall(
        f"a choice of type {asked.type!r} is not served here",
        field="tool_choice.type",
        remedy="use function, custom or allowed_tools",
    )


def _word(choice: str) -> str:
    if choice in ("auto", "none", "required"):
        return choice
    raise InvalidSyscall(
        f"there is no choice {choice[:64]!r}",
        field="tool_choice",
        remedy="use auto, none, required or a tool",
    )


def free_text(arguments: str) -> str:
    """Return what a custom tool is called with: the one argument, or all of them as they are."""
    try:
        value = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    text = value.get(CUSTOM_ARGUMENT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments
