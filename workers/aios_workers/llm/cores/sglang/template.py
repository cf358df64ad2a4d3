"""A model's chat template, in a sandbox: messages and tools become the text of a prompt."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.tools import is_too_deep

CALL_MARK = "<tool_call>"  # how a model of the family that we read writes its calls


class ChatTemplate:
    """A compiled template, with the names that templates of the Hugging Face family expect."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise InvalidConfig(
                f"the model's chat template cannot be read: {error}",
                field="AIOS_SGLANG_TOKENIZER",
                remedy="point it at a folder with a template that works",
            ) from error
        self.shows_tools = "tools" in names and CALL_MARK in source
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        """Return the text of a conversation up to the start of the answer.

        Raises:
            InvalidSyscall: The template refuses these messages.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise InvalidSyscall(
                f"the model's chat template refuses these messages: {error}",
                field="body.messages",
                remedy="use roles in the order that the model knows",
            ) from error


def message_values(message: Message) -> dict[str, Any]:
    """Return a message as templates expect it: arguments of calls as values, not as text."""
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        values["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        values["tool_call_id"] = message.tool_call_id
    return values


def tool_values(tool: Tool) -> dict[str, Any]:
    """Return a tool as templates expect it."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _arguments(text: str) -> Any:  # noqa: ANN401  any JSON value
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text
    return text if is_too_deep(value) else value


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now(datetime.UTC).strftime(pattern)
