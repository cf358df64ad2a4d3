"""Tools: how they are shown to a model, what its answer must be then, how calls are read. Pure.

A call is written as the model's family writes it (`chat/calls.py`). With a choice of `required`, or
of one tool, the whole answer is one call as a JSON object, without marks. A core whose template
knows tools shows them itself; for the others this module writes a section into the system message
and turns calls and their results in the conversation into text, as Hermes models write them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from aios_broker.contract.llm import JsonFormat, LlmChat, Message, Tool, ToolCall
from aios_workers.llm.chat.calls import (
    HERMES,
    CallFormat,
    CallSchemas,
    ReadCall,
    calls_grammar,
    form_or_calls_grammar,
    formed_or_calls,
    parted,
    read_object,
    thought_line,
)
from aios_workers.llm.chat.reasoning import ReasoningTags
from aios_workers.llm.chat.tags import call_tags
from aios_workers.llm.core import Capabilities, Constraint, Core
from aios_workers.llm.schemas import moved, refers

CALL_BEGIN, CALL_END = HERMES.call_begin, HERMES.call_end

_SECTION = """# Tools

You may call these functions. Each line is one: its name, what it does, and the JSON schema of its
arguments.

{tools}

{how}"""
_HOW_AUTO = (
    "To call one, let your answer be nothing but "
    f'{CALL_BEGIN}{{"name": <its name>, "arguments": <a JSON object>}}{CALL_END}. '
    "Otherwise answer in "
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


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one chat that may be called, and how."""

    tools: tuple[Tool, ...]
    forced: bool  # the answer is a call, not a message
    call_format: CallFormat = HERMES
    form: str | None = None  # the JSON schema of a message, as text; None: it is any text

    @property
    def may_be_bare(self) -> bool:
        """Whether a call may lack its marks; beside a form it could not be told from a message."""
        return self.call_format.may_be_bare and self.form is None


def toolbox_of(body: LlmChat, core: Capabilities | None = None) -> Toolbox | None:
    """Return the tools that an answer may call; None: it is a message whatever happens."""
    call_format = (core.call_format if core is not None else None) or HERMES
    if not body.tools or body.tool_choice == "none":
        return None
    if body.tool_choice == "auto":
        return Toolbox(tuple(body.tools), False, call_format, _form_of(body))
    if body.tool_choice == "required":
        return Toolbox(tuple(body.tools), True, call_format)
    named = tuple(each for each in body.tools if each.name == body.tool_choice)
    return Toolbox(named, forced=True, call_format=call_format)


def _form_of(body: LlmChat) -> str | None:
    if not isinstance(body.format, JsonFormat):
        return None
    schema = body.format.json_schema
    return _dumped({**({"type": "object"} if schema is None else schema), **_JSON_STYLE})


# What the answer must be.


def constraint_of(
    toolbox: Toolbox, reasoning: ReasoningTags | None = None, *, opened: bool = False
) -> Constraint:
    """Return what keeps every answer well-formed: one call, or a message or calls.

    Where a message has a form, it is that or calls. `reasoning`: the model may think first;
    `opened`: it does so already.
    """
    call_format = toolbox.call_format
    schema = call_schema(toolbox.tools, call_format.arguments)
    source = _dumped(schema)
    if toolbox.forced:
        return Constraint("json", source)
    arguments = tuple(
        (each.name, _dumped({**parameters_of(each), **_JSON_STYLE})) for each in toolbox.tools
    )
    schemas = CallSchemas(_dumped({**schema, **_JSON_STYLE}), arguments)
    if toolbox.form is not None:
        return Constraint("grammar", form_or_calls_grammar(call_format, schemas, toolbox.form))
    thought = "" if reasoning is None else "THOUGHT " if opened else "THOUGHT? "
    begin = "" if reasoning is None or opened else reasoning.begin
    grammar = calls_grammar(call_format, schemas, thought, begin)
    if reasoning is not None:
        line = thought_line(reasoning.end, begin)
        grammar = f"{line}\n{grammar}"
    bare = not call_format.marker
    tags = () if bare and reasoning is not None else call_tags(call_format, schemas)
    return Constraint("grammar", grammar, tags, call_format.marker)


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def call_schema(tools: Sequence[Tool], arguments_key: str = "arguments") -> dict[str, Any]:
    """Return the JSON schema of a call of one of these tools."""
    definitions: dict[str, Any] = {}
    calls = [
        _one_call(each, arguments_key, f"tool{number}", definitions)
        for number, each in enumerate(tools)
    ]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def _one_call(
    tool: Tool, arguments_key: str, key: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    arguments = parameters_of(tool)
    if refers(arguments):  # to parts of itself, which move
        definitions[key] = moved(arguments, f"#/$defs/{key}", f"urn:aios:{key}")
        arguments = {"$ref": f"#/$defs/{key}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, arguments_key: arguments},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def parameters_of(tool: Tool) -> dict[str, Any]:
    """Return the schema of a tool's arguments: always of an object."""
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.parameters}


# How they are shown.


def prompt_ids(core: Core, messages: Sequence[Message], toolbox: Toolbox | None) -> tuple[int, ...]:
    """Return the prompt of a conversation in which these tools may be called."""
    if core.info.capabilities.call_format is not None:
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
    otherwise = "plain text." if toolbox.form is None else "JSON."
    how = _HOW_FORCED if toolbox.forced else _HOW_AUTO + otherwise
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
    message, found = _parts_of(text, toolbox)
    known = {each.name for each in toolbox.tools}
    calls = tuple(
        ToolCall(_call_id(syscall_id, choice, number), each.name, each.arguments)
        for number, each in enumerate(each for each in found if each.name in known)
    )
    return (message, calls) if calls else (text, ())


def _parts_of(text: str, toolbox: Toolbox) -> tuple[str, list[ReadCall]]:
    if toolbox.forced:
        call = read_object(text)
        return "", [] if call is None else [call]
    read = parted if toolbox.form is None else formed_or_calls
    return read(text, toolbox.call_format)


def _call_id(syscall_id: str, choice: int, number: int) -> str:
    """Return the id of a call: the same whenever the syscall runs again."""
    material = f"{syscall_id}.call.{choice}.{number}".encode()
    return f"call_{hashlib.blake2b(material, digest_size=12).hexdigest()}"
