"""A request of Anthropic's Messages API as a chat of the kernel. Pure.

`MESSAGE_FIELDS` and `COUNT_FIELDS` say what becomes of each field; the rest is how.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import (
    MAX_ANSWER_TOKENS,
    MAX_MESSAGES,
    Image,
    JsonFormat,
    LlmChat,
    LlmCount,
    Message,
    Tool,
    ToolCall,
)
from aios_kernel_api.gateway.chat_request import DEFAULT_TEMPERATURE, top_p_of
from aios_kernel_api.gateway.contents import PART_SEPARATOR, checked_image, joined
from aios_kernel_api.gateway.fields import Fields, ignored, kept, refused, reported
from aios_kernel_api.gateway.functions import tool_of
from aios_kernel_api.gateway.items import Json
from aios_kernel_api.gateway.schemas import unheld

# The first line of what Claude Code says to the system is about its bill: it is of another text in
# each request, and would keep every prompt from being found in the core's memory.
BILLING_LINE = "x-anthropic-billing-header:"
FAILED = "Error: "  # before the result of a tool that failed

_CACHE = ignored("what was read is kept without being told")
_SERVED_THERE = "Anthropic's servers would do it: nobody would here; leave it out"
_BLOCK: Fields = {
    "type": kept(
        "text, image, document (as text), search_result, tool_use, tool_result, thinking; "
        "any other is refused"
    ),
    "text": kept("texts of one message are joined by a line break"),
    "source": kept("base64 or text; an address or a file's id is refused: the kernel fetches none"),
    "title": kept("before the text of a document"),
    "context": kept("before the text of a document"),
    "content": kept("of a tool's result, or of a search result"),
    "id": kept("of a call"),
    "name": kept("of a call"),
    "input": kept("of a call"),
    "tool_use_id": kept("the call that a result answers"),
    "is_error": kept(f"{FAILED!r} stands before the result"),
    "thinking": ignored("the template of the model leaves earlier thoughts out"),
    "signature": ignored("thoughts are not signed"),
    "data": ignored("of redacted thinking"),
    "cache_control": _CACHE,
    "citations": reported("no core cites"),
    "caller": ignored("the agent runs its tools itself"),
    "toolset_name": ignored("the name of the tool says it"),
    "transformations": reported("a picture is shown as it is"),
}
_TOOL: Fields = {
    "type": kept("custom; any other is refused"),
    "name": kept("as it is"),
    "description": kept("as it is"),
    "input_schema": kept("the arguments are held to it; what no core can is reported"),
    "cache_control": _CACHE,
    "strict": kept("always: arguments are held to their schema, where the core can"),
    "input_examples": reported("say them in the description"),
    "eager_input_streaming": ignored("pieces come as soon as they are there"),
    "defer_loading": reported("all tools are shown at once", False),
    "allowed_callers": reported("the agent calls", ["direct"]),
}
_COMMON: Fields = {
    "model": kept("names a core; an unknown name means the configured default"),
    "messages": kept(
        "user, assistant and system; a last one of the assistant is a turn like any other",
        {"role": kept("as it is"), "content": kept("a text, or blocks", _BLOCK)},
    ),
    "system": kept("a text, or blocks of text; Claude Code's line about its bill is left out"),
    "tools": kept("tools that the agent runs", _TOOL),
    "tool_choice": kept(
        "auto, any, tool, none",
        {
            "type": kept("as it is"),
            "name": kept("the tool that is called"),
            "disable_parallel_tool_use": kept("of several calls the first one is the answer"),
        },
    ),
    "thinking": kept(
        "what a model thinks is a block of its own, without a signature",
        {
            "type": kept("a core thinks as its template says"),
            "display": kept("omitted: its text is left out"),
            "budget_tokens": reported("thoughts count among max_tokens"),
        },
    ),
    "output_config": kept(
        "the form of the answer",
        {
            "format": kept("json_schema, held token by token"),
            "effort": reported("a core thinks as its template says"),
            "task_budget": reported("max_tokens is the limit"),
        },
    ),
    "output_format": kept("as output_config.format"),
    "cache_control": _CACHE,
    "context_management": reported("use a context of the kernel", {"edits": []}),
    "mcp_servers": refused(_SERVED_THERE, []),
    "speed": reported("the nice value says how urgent it is", "standard"),
    "user_profile_id": ignored("a label"),
    "workspace_id": ignored("the token says whose it is"),
}
MESSAGE_FIELDS: Fields = {
    **_COMMON,
    "max_tokens": kept("fewer where the core's context has no more room"),
    "stream": kept("typed events; a ping while it is quiet"),
    "stop_sequences": kept("up to 16; reported where the answer has a form or may call tools"),
    "temperature": kept("1 where it is left out"),
    "top_p": kept("as it is"),
    "top_k": kept("as it is"),
    "metadata": kept(
        "labels",
        {
            "user_id": ignored("a label"),
            "program": kept("the program that it is part of"),
            "parent_program": kept("the one that began that"),
        },
    ),
    "service_tier": reported("the nice value says how urgent it is", "auto", "standard_only"),
    "container": refused(_SERVED_THERE),
    "diagnostics": reported("the kernel has its own"),
    "inference_geo": reported("the core says where it runs"),
    "fallbacks": reported("a core's own fallbacks hold", []),
}
COUNT_FIELDS: Fields = {**_COMMON}


class Source(Struct, frozen=True):
    """Where the bytes of a picture or a document are."""

    type: str
    media_type: str = ""
    data: str = ""
    content: "str | list[Block] | None" = None


class Block(Struct, frozen=True):
    """A piece of a message's content, of any type."""

    type: str
    text: str = ""
    source: "Source | str | None" = None
    title: str | None = None
    context: str | None = None
    content: "str | list[Block] | None" = None
    id: str = ""
    name: str = ""
    input: Json = msgspec.field(default_factory=dict)
    tool_use_id: str = ""
    is_error: bool | None = None


class Turn(Struct, frozen=True):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class OfferedTool(Struct, frozen=True):
    """A tool that the agent runs, if it is of type `custom`."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: Json | None = None


class Choice(Struct, frozen=True):
    """Which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True):
    """How thoughts are shown."""

    type: str
    display: str | None = None


class OutputForm(Struct, frozen=True):
    """The form of an answer."""

    type: Literal["json_schema"]
    schema: Json


class OutputConfig(Struct, frozen=True):
    """What the answer is to be like."""

    format: OutputForm | None = None


class CountRequest(Struct, frozen=True, kw_only=True):
    """What a prompt is made of."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputForm | None = None


class MessageRequest(CountRequest, frozen=True, kw_only=True):
    """A request of the Messages API; null is as if nothing was said."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    metadata: dict[str, object] | None = None

    @property
    def one_call(self) -> bool:
        """Whether at most one tool may be called at a time."""
        return self.tool_choice is not None and bool(self.tool_choice.disable_parallel_tool_use)

    @property
    def shows_thoughts(self) -> bool:
        """Whether the text of what a model thinks is shown."""
        return self.thinking is None or self.thinking.display != "omitted"


def chat_of(asked: MessageRequest, core: str | None) -> tuple[LlmChat, tuple[str, ...]]:
    """Return the chat that a request asks for, and what of it is not kept beside its table.

    Raises:
        InvalidSyscall: it asks for what cannot be; `field` is its path.
    """
    tools = tools_of(asked.tools)
    choice = choice_of(asked.tool_choice)
    wanted = format_of(asked)
    stop, not_kept = tuple(asked.stop_sequences or ()), tuple[str, ...]()
    if stop and (wanted is not None or (tools and choice != "none")):
        stop, not_kept = (), ("stop_sequences",)  # it would cut what is promised to be whole
    not_kept += unheld("tools.input_schema", (each.input_schema for each in asked.tools or ()))
    temperature = DEFAULT_TEMPERATURE if asked.temperature is None else asked.temperature
    body = LlmChat(
        messages=messages_of(asked),
        core=core,
        max_tokens=min(asked.max_tokens, MAX_ANSWER_TOKENS),
        temperature=temperature,
        top_p=top_p_of(asked.top_p),
        top_k=asked.top_k or 0,
        stop=stop,
        stream=bool(asked.stream),
        format=wanted,
        tools=tools,
        tool_choice=choice,
        overflow="shorten",
    )
    return body, not_kept


def count_of(asked: CountRequest, core: str | None) -> LlmCount:
    """Return what counts the prompt of a request.

    Raises:
        InvalidSyscall: it asks for what cannot be; `field` is its path.
    """
    return LlmCount(core=core, messages=messages_of(asked), tools=tools_of(asked.tools))


def messages_of(asked: CountRequest) -> tuple[Message, ...]:
    """Return the conversation of a request.

    Raises:
        InvalidSyscall: it has what no core reads; `field` is its path.
    """
    found: list[Message] = []
    system = system_text(asked.system)
    if system:
        found.append(Message("system", system))
    for place, turn in enumerate(asked.messages):
        found.extend(_turn(turn, f"messages[{place}].content"))
    return tuple(found)


def system_text(system: str | Sequence[Block] | None) -> str:
    """Return what is said to the system.

    Raises:
        InvalidSyscall: it is more than text.
    """
    if system is None or isinstance(system, str):
        return system or ""
    blocks = [each for each in system if not each.text.startswith(BILLING_LINE)]
    text, images = _read(blocks, "system")
    if images:
        raise _unread("image", "system")
    return text


def tools_of(tools: Sequence[OfferedTool] | None) -> tuple[Tool, ...]:
    """Return the tools of a request.

    Raises:
        InvalidSyscall: one that Anthropic's servers would run, or whose schema they alone know.
    """
    found = []
    for place, tool in enumerate(tools or ()):
        if tool.type not in (None, "custom") or tool.input_schema is None:
            raise InvalidSyscall(
                f"a tool of type {(tool.type or 'custom')[:64]!r} without a schema is not served",
                field=f"tools[{place}].type",
                remedy="give a tool with its input_schema, which the agent runs",
            )
        found.append(tool_of(tool.name, tool.description or "", tool.input_schema))
    return tuple(found)


def choice_of(choice: Choice | None) -> str:
    """Return which tools may or must be called.

    Raises:
        InvalidSyscall: it names none.
    """
    if choice is None:
        return "auto"
    if choice.type != "tool":
        return {"any": "required"}.get(choice.type, choice.type)
    if not choice.name:
        raise InvalidSyscall("no tool is named", field="tool_choice.name", remedy="name one")
    return choice.name


def format_of(asked: CountRequest) -> JsonFormat | None:
    """Return the form of an answer; None: text."""
    wanted = asked.output_format or (asked.output_config and asked.output_config.format)
    return JsonFormat(wanted.schema) if wanted else None


def _turn(turn: Turn, field: str) -> list[Message]:
    """Return the messages of one turn: the results of tools come before what a user says."""
    if isinstance(turn.content, str):
        return [Message(turn.role, turn.content)]
    if turn.role == "assistant":
        return [_of_assistant(turn.content, field)]
    found: list[Message] = []
    said: list[Block] = []
    for place, block in enumerate(turn.content):
        if block.type == "tool_result":
            found.append(_result(block, f"{field}[{place}]"))
        else:
            said.append(block)
    if said or not found:
        text, images = _read(said, field)
        found.append(Message(turn.role, text, images=images))
    return found


def _of_assistant(blocks: Sequence[Block], field: str) -> Message:
    calls = tuple(
        ToolCall(block.id, block.name, msgspec.json.encode(block.input).decode())
        for block in blocks
        if block.type == "tool_use"
    )
    rest = [each for each in blocks if each.type not in ("tool_use", *_THOUGHTS)]
    text, images = _read(rest, field)
    if images:
        raise _unread("image", field)
    return Message("assistant", text, tool_calls=calls)


_THOUGHTS = ("thinking", "redacted_thinking")


def _result(block: Block, field: str) -> Message:
    content = block.content
    blocks = [Block("text", content)] if isinstance(content, str) else content or []
    text, images = _read(blocks, f"{field}.content")
    if block.is_error and not text.startswith(FAILED):
        text = FAILED + text
    return Message("tool", text, tool_call_id=block.tool_use_id, images=images)


def _read(blocks: Sequence[Block], field: str) -> tuple[str, tuple[Image, ...]]:
    """Return the text and the pictures of blocks."""
    return joined(_piece(block, f"{field}[{place}]") for place, block in enumerate(blocks))


def _piece(block: Block, field: str) -> str | Image:
    match block.type:
        case "text":
            return block.text
        case "image":
            return _image(block, field)
        case "document":
            return _document(block, field)
        case "search_result":
            source = block.source if isinstance(block.source, str) else ""
            text, _ = _read(_as_blocks(block.content), f"{field}.content")
            return _titled((block.title, source), text)
        case _:
            raise _unread(block.type, f"{field}.type")


def _as_blocks(content: str | list[Block] | None) -> list[Block]:
    return [Block("text", content)] if isinstance(content, str) else content or []


def _image(block: Block, field: str) -> Image:
    source = block.source
    if not isinstance(source, Source) or source.type != "base64":
        raise InvalidSyscall(
            "a picture has to be in the request: nothing is fetched",
            field=f"{field}.source",
            remedy="send it in base64",
        )
    return checked_image(source.media_type, source.data, f"{field}.source")


def _document(block: Block, field: str) -> str:
    source = block.source
    if isinstance(source, Source) and source.type == "text":
        return _titled((block.title, block.context), source.data)
    if isinstance(source, Source) and source.type == "content":
        text, images = _read(_as_blocks(source.content), f"{field}.source.content")
        if not images:
            return _titled((block.title, block.context), text)
    raise InvalidSyscall(
        "a document is read as text alone",
        field=f"{field}.source",
        remedy="send its text: a source of type text",
    )


def _titled(heads: Sequence[str | None], text: str) -> str:
    return PART_SEPARATOR.join(each for each in (*heads, text) if each)


def _unread(kind: str, field: str) -> InvalidSyscall:
    return InvalidSyscall(
        f"a block of type {kind[:64]!r} is not read here",
        field=field,
        remedy="send text, pictures, and the calls and results of the agent's own tools",
    )
