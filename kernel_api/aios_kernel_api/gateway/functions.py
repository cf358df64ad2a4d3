"""Tools and forms of answers, as OpenAI's API has them, for the contract's chat."""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import JsonFormat, Tool, ToolCall
from aios_kernel_api.gateway.schemas import held

Schema = dict[str, object]
Choice = str  # auto, none, required, or a tool's name


class Function(Struct, frozen=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class FunctionTool(Struct, frozen=True):
    """A tool; those of type `function` are served."""

    type: str
    function: Function | None = None


class FunctionName(Struct, frozen=True):
    """A function, named."""

    name: str


class NamedChoice(Struct, frozen=True):
    """The one tool that is to be called."""

    type: str
    function: FunctionName | None = None


class CalledFunction(Struct, frozen=True):
    """A function as it was called. `arguments` is JSON."""

    name: str
    arguments: str = ""


class Called(Struct, frozen=True):
    """A call of an earlier turn."""

    id: str
    function: CalledFunction | None = None
    type: str = "function"


class JsonSchema(Struct, frozen=True):
    """The schema of an answer."""

    name: str = ""
    schema: Schema | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct, frozen=True):
    """What form an answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def tools_of(tools: Sequence[FunctionTool] | None) -> tuple[Tool, ...]:
    """Return the functions of a request.

    Raises:
        InvalidSyscall: one is of another type: the kernel runs none of a provider's own tools.
    """
    found = []
    for number, tool in enumerate(tools or ()):
        if tool.function is None or tool.type != "function":
            raise not_a_function(tool.type, f"tools[{number}].type")
        function = tool.function
        found.append(tool_of(function.name, function.description or "", function.parameters or {}))
    return tuple(found)


def tool_of(name: str, description: str, parameters: Mapping[str, object]) -> Tool:
    """Return a function as the contract has it, with what its arguments can be held to."""
    return Tool(name, description, held(parameters)[0])


def not_a_function(kind: str, field: str) -> InvalidSyscall:
    """Return the error of a tool that is none of its agent's own."""
    return InvalidSyscall(
        f"tools of type {kind[:64]!r} are not served",
        field=field,
        remedy="give a function, and run it in the agent",
    )


def choice_of(choice: str | NamedChoice | None) -> Choice:
    """Return which tools may or must be called.

    Raises:
        InvalidSyscall: it names none.
    """
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice in ("auto", "none", "required"):
            return choice
        raise InvalidSyscall(
            f"{choice[:64]!r} is no choice of tools",
            field="tool_choice",
            remedy="use auto, none, required, or an object that names a function",
        )
    if choice.function is None or choice.type != "function":
        raise InvalidSyscall(
            f"a choice of type {choice.type[:64]!r} is not served",
            field="tool_choice.type",
            remedy="use auto, none, required, or an object that names a function",
        )
    return choice.function.name


def calls_of(calls: Sequence[Called] | None, field: str) -> tuple[ToolCall, ...]:
    """Return the calls of an earlier turn.

    Raises:
        InvalidSyscall: one is no call of a function, or its arguments are no JSON.
    """
    found = []
    for number, call in enumerate(calls or ()):
        if call.function is None or call.type != "function":
            raise not_a_function(call.type, f"{field}[{number}].type")
        found.append(ToolCall(call.id, call.function.name, call.function.arguments or "{}"))
    return tuple(found)


def format_of(wanted: ResponseFormat | None) -> JsonFormat | None:
    """Return the form of an answer; None: text."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonFormat()
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidSyscall(
            "a json_schema is asked for, and none is there",
            field="response_format.json_schema.schema",
            remedy="give one, or ask for json_object",
        )
    return JsonFormat(dict(wanted.json_schema.schema))
