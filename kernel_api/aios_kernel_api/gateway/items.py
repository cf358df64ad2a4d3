"""The items of the Responses API as messages of the kernel, and as they are listed. Pure.

An item is what a client sends and gets back: a message, a call of a tool, its output. Consecutive
items of one turn of the assistant become one message. What a model thought before is left out: its
template would.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import MAX_MESSAGES, MAX_TOOLS, Image, Message, ToolCall
from aios_kernel_api.gateway.contents import image_of, joined

Json = dict[str, object]
Role = Literal["user", "assistant", "system", "developer"]
T = TypeVar("T", bound=Struct)

# What of the kernel's is written as an item, and what clients send back of it.
TOOL_NAME_GLUE = "__"  # between a namespace and the name of one of its tools
CUSTOM_ARGUMENT = "input"  # a tool of free text is shown to the model as one with this argument


class Part(Struct, frozen=True):
    """A piece of a message's content, or of a tool's output."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    file_id: str | None = None


Content = str | list[Part] | None


class MessageItem(Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: Content
    type: Literal["message"] = "message"
    id: str | None = None


class CallItem(Struct, frozen=True):
    """A call of a function that the model asked for."""

    call_id: str
    name: str
    arguments: str
    type: Literal["function_call"]
    namespace: str | None = None
    id: str | None = None


class CustomCallItem(Struct, frozen=True):
    """A call of a tool that takes free text."""

    call_id: str
    name: str
    input: str
    type: Literal["custom_tool_call"]
    namespace: str | None = None
    id: str | None = None


class OutputItem(Struct, frozen=True):
    """What a call brought."""

    call_id: str
    output: Content
    type: Literal["function_call_output", "custom_tool_call_output"]
    id: str | None = None


class ReasoningItem(Struct, frozen=True):
    """What a model thought."""

    type: Literal["reasoning"]
    id: str | None = None


Item = MessageItem | CallItem | CustomCallItem | OutputItem | ReasoningItem
_KINDS: Mapping[str, type[Item]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "custom_tool_call": CustomCallItem,
    "function_call_output": OutputItem,
    "custom_tool_call_output": OutputItem,
    "reasoning": ReasoningItem,
}
_TEXTS = frozenset({"input_text", "output_text", "text", "summary_text"})


def items_of(given: str | Sequence[Json]) -> list[Json]:
    """Return the items of an input: a string is what a user says."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given)


def read_item(item: Json, field: str) -> Item:
    """Return an item as a struct.

    Raises:
        InvalidSyscall: it is of a kind that no core reads, or malformed.
    """
    kind = item.get("type") or ("message" if "role" in item else None)
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise InvalidSyscall(
            f"an item of type {kind!r} cannot be read here",
            field=f"{field}.type",
            remedy=f"use {', '.join(_KINDS)}",
        )
    return converted({**item, "type": kind}, known, field)


def converted(value: object, kind: type[T], field: str) -> T:
    """Return a value as a struct.

    Raises:
        InvalidSyscall: it is none; `field` is the path of what is wrong.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise InvalidSyscall(
            message, field=f"{field}{path.rstrip('`')}", remedy="see the API's own reference"
        ) from error


def conversation_of(items: Sequence[Json], field: str = "input") -> tuple[Message, ...]:
    """Return the messages that items stand for.

    Raises:
        InvalidSyscall: an item cannot be read, or has what no core reads.
    """
    turns: list[Message] = []
    for place, raw in enumerate(items):
        at = f"{field}[{place}]"
        if len(turns) > MAX_MESSAGES:
            raise _too_many(f"the items stand for more than {MAX_MESSAGES} messages", at)
        match read_item(raw, at):
            case MessageItem() as item:
                turns.append(_turn(item, at))
            case CallItem() as item:
                name = full_name(item.name, item.namespace)
                _add_call(turns, ToolCall(item.call_id, name, item.arguments), at)
            case CustomCallItem() as item:
                name = full_name(item.name, item.namespace)
                arguments = msgspec.json.encode({CUSTOM_ARGUMENT: item.input}).decode()
                _add_call(turns, ToolCall(item.call_id, name, arguments), at)
            case OutputItem() as item:
                text, images = content_of(item.output, f"{at}.output")
                turns.append(Message("tool", text, tool_call_id=item.call_id, images=images))
            case ReasoningItem():
                pass
    return tuple(turns)


def full_name(name: str, namespace: str | None) -> str:
    """Return the name by which the model knows a tool of a namespace."""
    if not namespace:
        return name
    glue = "" if namespace.endswith(TOOL_NAME_GLUE) else TOOL_NAME_GLUE
    return f"{namespace}{glue}{name}"


def content_of(content: Content, field: str) -> tuple[str, tuple[Image, ...]]:
    """Return the text and the images of a content.

    Raises:
        InvalidSyscall: a part is of a kind that no core reads.
    """
    if content is None or isinstance(content, str):
        return content or "", ()
    return joined(_read_part(part, f"{field}[{place}]") for place, part in enumerate(content))


def _read_part(part: Part, field: str) -> str | Image:
    if part.type in _TEXTS:
        return part.text or ""
    if part.type == "refusal":
        return part.refusal or ""
    if part.type == "input_image" and part.image_url is not None:
        return image_of(part.image_url, f"{field}.image_url")
    raise InvalidSyscall(
        f"a part of type {part.type!r} cannot be read here"
        + (", by the id of a file" if part.file_id is not None else ""),
        field=f"{field}.type",
        remedy="send text as input_text, and images as input_image with a data: URL",
    )


def listed(items: Sequence[Json], response_id: str) -> list[Json]:
    """Return the items of an input as they are listed: each with an id, contents in parts."""
    found: list[Json] = []
    stem = response_id.removeprefix("resp_")
    for place, raw in enumerate(items):
        item = read_item(raw, f"input[{place}]")
        own_id = item.id or f"{_PREFIXES[item.type]}_{stem}_i{place}"
        whole: Json = {**raw, "type": item.type, "id": own_id}
        if isinstance(item, MessageItem):
            whole |= {"status": "completed", "content": _parts(item, raw.get("content"))}
        found.append(whole)
    return found


_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


def _parts(item: MessageItem, content: object) -> object:
    if not isinstance(content, str):
        return content
    if item.role == "assistant":
        return [{"type": "output_text", "text": content, "annotations": []}]
    return [{"type": "input_text", "text": content}]


def _turn(item: MessageItem, field: str) -> Message:
    role = "system" if item.role == "developer" else item.role
    text, images = content_of(item.content, f"{field}.content")
    if images and role != "user":
        raise InvalidSyscall(
            "only a user, or a tool, shows images",
            field=f"{field}.content",
            remedy="leave them out",
        )
    return Message(role, text, images=images)


def _add_call(turns: list[Message], call: ToolCall, field: str) -> None:
    """Add a call to the turn of the assistant that it belongs to."""
    if turns and turns[-1].role == "assistant":
        last = turns[-1]
        if len(last.tool_calls) == MAX_TOOLS:
            raise _too_many(f"one turn has more than {MAX_TOOLS} calls", field)
        turns[-1] = msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call))
    else:
        turns.append(Message("assistant", "", tool_calls=(call,)))


def _too_many(why: str, field: str) -> InvalidSyscall:
    return InvalidSyscall(why, field=field, remedy="leave out the oldest of them")
