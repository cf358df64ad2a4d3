"""Tools: how they are shown to a model, what its answer must be then, how calls are read. Pure.

A call is written `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. With a choice of
`required`, or of one tool, the whole answer is that JSON object without the marks. A core whose
template knows tools shows them itself; for the others this module writes a section into the
system message and turns calls and their results in the conversation into text.

What walks a JSON value (templates, encoders, the compiler of forms) calls itself for each level:
beyond a limit that all of them bear it is refused, not walked.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from aios_broker.contract.llm import LlmChat, Message, Tool, ToolCall
from aios_broker.contract.syscall import is_nested_deeper
from aios_workers.llm.core import Constraint, Core

MAX_DEPTH = 100  # llguidance reads 128; a tool's schema stands in one of its own


def is_too_deep(value: object) -> bool:
    """Whether a value has more than MAX_DEPTH levels of lists and objects."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return False
    return True


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
MAX_CALLS = 16  # of one answer that may be a message, too
_BLANKS = re.compile(r"\s*")

_SECTION = """# Tools

You may call these functions. Each line is one: its name, what it does, and the JSON schema of its
arguments.

{tools}

{how}"""
_HOW_AUTO = (
    "To call one, let your answer be nothing but "
    f'{CALL_BEGIN}{{"name": <its name>, "arguments": <a JSON object>}}{CALL_END}. '
    "Otherwise answer in plain text."
)
_HOW_FORCED = (
    'Answer with one call and nothing else: {"name": <its name>, "arguments": <a JSON object>}.'
)
# A schema inside of a grammar says itself what goes without saying for one that stands alone: no
# blanks to get lost in, no keyword that is passed over.
_JSON_STYLE = {
    "x-guidance": {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "lenient": False,
    }
}
# Keywords of a JSON schema whose values are data, in which "$ref" means nothing.
_DATA = frozenset({"const", "enum", "default", "examples"})


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one chat that may be called, and how."""

    tools: tuple[Tool, ...]
    forced: bool  # the answer is a call, not a message

    @property
    def marker(self) -> str:
        """What begins the part of an answer that is calls; empty: it is all one call."""
        return "" if self.forced else CALL_BEGIN


class _Call(Struct, forbid_unknown_fields=True):
    name: str
    arguments: msgspec.Raw


_decoder = msgspec.json.Decoder(_Call)
_any_json = json.JSONDecoder()


def toolbox_of(body: LlmChat) -> Toolbox | None:
    """Return the tools that an answer may call; None: it is a message whatever happens."""
    if not body.tools or body.tool_choice == "none":
        return None
    if body.tool_choice in ("auto", "required"):
        return Toolbox(tuple(body.tools), body.tool_choice == "required")
    named = tuple(each for each in body.tools if each.name == body.tool_choice)
    return Toolbox(named, forced=True)


# What the answer must be.


def constraint_of(toolbox: Toolbox) -> Constraint:
    """Return what keeps every answer well-formed: one call, or a message or calls."""
    schema = call_schema(toolbox.tools)
    source = _dumped(schema)
    if toolbox.forced:
        return Constraint("json", source)
    return Constraint("grammar", calls_grammar(_dumped({**schema, **_JSON_STYLE})), source)


def calls_grammar(schema: str) -> str:
    """Return the grammar of a message, or of a message and calls of this schema (as text)."""
    plain = unmarked_pattern(CALL_BEGIN)
    return "\n".join(
        (
            "start: MESSAGE | OPENING body END more",
            f"more: (NEXT body END){{0,{MAX_CALLS - 1}}}",
            f"MESSAGE: /{plain}/",
            f"OPENING: /{plain}{re.escape(CALL_BEGIN)}/",
            f'NEXT: "{CALL_BEGIN}"',
            f'END: "{CALL_END}"',
            f"body: %json {schema}",
        )
    )


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of these tools."""
    definitions: dict[str, Any] = {}
    calls = [_one_call(each, f"tool{number}", definitions) for number, each in enumerate(tools)]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def _one_call(tool: Tool, key: str, definitions: dict[str, Any]) -> dict[str, Any]:
    arguments = parameters_of(tool)
    moved = _moved(arguments, f"#/$defs/{key}")
    if moved != arguments:  # it refers to parts of itself, which have moved
        definitions[key] = moved
        arguments = {"$ref": f"#/$defs/{key}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def parameters_of(tool: Tool) -> dict[str, Any]:
    """Return the schema of a tool's arguments: always of an object."""
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.parameters}


def _moved(schema: Any, root: str) -> Any:  # noqa: ANN401 - any JSON
    """Return a schema whose references to its own root lead to `root`."""
    if isinstance(schema, list):
        return [_moved(each, root) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: root + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in _DATA
        else _moved(value, root)
        for key, value in schema.items()
    }


def unmarked_pattern(marker: str) -> str:
    """Return the regular expression of all texts without the marker in them.

    The marker's first character stands nowhere else in it: whatever does not go on as the marker
    does is either the beginning of another try or an end of all tries.
    """
    first = re.escape(marker[0])
    begun = "|".join(re.escape(marker[:size]) for size in range(1, len(marker)))
    given_up = "|".join(
        f"{re.escape(marker[:size])}[^{first}{re.escape(marker[size])}]"
        for size in range(1, len(marker))
    )
    pattern = f"([^{first}]|({begun})*({given_up}))*({begun})*"
    return pattern.replace("/", r"\/")


# How they are shown.


def prompt_ids(core: Core, messages: Sequence[Message], toolbox: Toolbox | None) -> tuple[int, ...]:
    """Return the prompt of a conversation in which these tools may be called."""
    if core.info.capabilities.tools_template:
        return core.render(messages, toolbox.tools if toolbox is not None else ())
    return core.render(in_words(messages, toolbox))


def in_words(messages: Sequence[Message], toolbox: Toolbox | None) -> tuple[Message, ...]:
    """Return a conversation as a model can read it whose template knows no tools."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    turns = [_worded(message, names) for message in messages]
    if toolbox is not None:
        section = _section(toolbox)
        if turns and turns[0].role == "system":
            turns[0] = msgspec.structs.replace(turns[0], content=f"{turns[0].content}\n\n{section}")
        else:
            turns.insert(0, Message("system", section))
    return tuple(turns)


def _section(toolbox: Toolbox) -> str:
    lines = [
        json.dumps(
            {
                "name": each.name,
                **({"description": each.description} if each.description else {}),
                "arguments": parameters_of(each),
            },
            ensure_ascii=False,
        )
        for each in toolbox.tools
    ]
    how = _HOW_FORCED if toolbox.forced else _HOW_AUTO
    return _SECTION.format(tools="\n".join(lines), how=how)


def _worded(message: Message, names: Mapping[str, str]) -> Message:
    if message.tool_calls:
        calls = "".join(map(_worded_call, message.tool_calls))
        return msgspec.structs.replace(message, content=message.content + calls, tool_calls=())
    if message.role == "tool" and message.tool_call_id in names:
        content = json.dumps(
            {"name": names[message.tool_call_id], "content": message.content}, ensure_ascii=False
        )
        return msgspec.structs.replace(message, content=content, tool_call_id="")
    return message


def _worded_call(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'{CALL_BEGIN}{{"name": {name}, "arguments": {call.arguments}}}{CALL_END}'


# How calls are read.


def read_calls(
    text: str, toolbox: Toolbox, *, syscall_id: str, choice: int
) -> tuple[str, tuple[ToolCall, ...]]:
    """Return the message of an answer and its calls; without calls it is all message.

    What stands behind the first call is not part of the message. A call that is cut off, or that
    names no tool, is not one.
    """
    message, bodies = ("", [text]) if toolbox.forced else _marked(text)
    known = {each.name for each in toolbox.tools}
    found = [call for call in map(_read, bodies) if call is not None and call.name in known]
    calls = tuple(
        ToolCall(_call_id(syscall_id, choice, number), each.name, bytes(each.arguments).decode())
        for number, each in enumerate(found)
    )
    return (message, calls) if calls else (text, ())


def _marked(text: str) -> tuple[str, list[str]]:
    """Return what stands before the first mark, and what stands between marks.

    Marks in the strings of an argument are text.
    """
    bodies = []
    at = text.find(CALL_BEGIN)
    message = text if at < 0 else text[:at]
    while at >= 0:
        start = at + len(CALL_BEGIN)
        read_to = _value_end(text, start)
        end = text.find(CALL_END, read_to)
        at = text.find(CALL_BEGIN, read_to)
        if end >= 0 and not 0 <= at < end:
            bodies.append(text[start:end])
    return message, bodies


def _value_end(text: str, start: int) -> int:
    """Return where the JSON value ends that begins here; without one that can be read, here."""
    blanks = _BLANKS.match(text, start)
    try:
        end = _any_json.raw_decode(text, blanks.end() if blanks else start)[1]
    except (ValueError, RecursionError):
        return start
    return start if is_nested_deeper(text[start:end], MAX_DEPTH) else end


def _read(body: str) -> _Call | None:
    if is_nested_deeper(body, MAX_DEPTH):
        return None
    try:
        call = _decoder.decode(body)
    except (msgspec.DecodeError, ValueError):
        return None
    return call if bytes(call.arguments).startswith(b"{") else None


def _call_id(syscall_id: str, choice: int, number: int) -> str:
    """Return the id of a call: the same whenever the syscall runs again."""
    material = f"{syscall_id}.call.{choice}.{number}".encode()
    return f"call_{hashlib.blake2b(material, digest_size=12).hexdigest()}"
