"""A request of the Responses API as a chat of the kernel. Pure.

`RESPONSE_FIELDS` says what becomes of each field; the rest is how.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import MAX_ANSWER_TOKENS, Format, JsonFormat, LlmChat, Message
from aios_kernel_api.gateway.chat_request import top_p_of
from aios_kernel_api.gateway.fields import Fields, ignored, kept, refused, reported
from aios_kernel_api.gateway.items import Json, converted, items_of
from aios_kernel_api.gateway.response_tools import Toolset, toolset_of
from aios_kernel_api.gateway.schemas import unheld

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
MAX_METADATA = 16

_OURS = "its servers would do it: nobody would here; leave it out"
RESPONSE_FIELDS: Fields = {
    "model": kept("names a core; an unknown name means the configured default"),
    "input": kept("a text, or items: messages, function calls and their outputs, reasoning"),
    "instructions": kept("the system message of this answer; not passed on to the next one"),
    "previous_response_id": kept("the conversation goes on after that answer"),
    "conversation": refused("use previous_response_id"),
    "store": kept("true unless false: the answer can be asked for, and gone on with"),
    "background": kept("it goes on when its client leaves; asked for by its id"),
    "stream": kept("typed events"),
    "stream_options": kept(
        "of a stream",
        {"include_obfuscation": ignored("pieces are not padded")},
    ),
    "tools": kept("functions, custom tools (their grammar is shown, not held) and namespaces"),
    "tool_choice": kept("auto, none, required, a function, a custom tool, or allowed_tools"),
    "parallel_tool_calls": kept("false: of several calls the first one counts"),
    "max_tool_calls": kept("it is returned; it counts calls of tools that OpenAI's servers run"),
    "text": kept(
        "what the text of the answer is to be",
        {
            "format": kept("text, json_object or json_schema, held token by token"),
            "verbosity": reported("no core knows it"),
        },
    ),
    "max_output_tokens": kept("at most so many; at most as many as the prompt leaves room for"),
    "temperature": kept("1 unless given"),
    "top_p": kept("1 unless given"),
    "top_logprobs": kept("with the logprobs of the answer's tokens"),
    "include": kept(
        "message.output_text.logprobs; no answer has what the other words ask for, because no tool "
        "of OpenAI's runs and no reasoning is encrypted"
    ),
    "reasoning": kept(
        "what a model thinks is an item of its own, as text",
        {
            "effort": reported("no core knows it", "none"),
            "summary": reported("the reasoning itself is shown"),
            "generate_summary": reported("the reasoning itself is shown"),
            "context": reported("past reasoning is not shown to the model", "auto", "current_turn"),
            "mode": reported("no core knows it", "standard"),
        },
    ),
    "truncation": kept("auto: the oldest turns are summarised away where all does not fit"),
    "metadata": kept("`program` and `parent_program` name the program; all of it is returned"),
    "user": kept("a label; it is returned"),
    "safety_identifier": kept("a label; it is returned"),
    "prompt_cache_key": kept("it is returned; contexts are found by what is in them"),
    "prompt_cache_retention": ignored("contexts are kept as long as there is room"),
    "prompt_cache_options": ignored("contexts are found by what is in them"),
    "client_metadata": ignored("a label"),
    "service_tier": reported("the nice value says how urgent it is", "auto", "default"),
    "prompt": refused("send the text of the template itself"),
    "context_management": refused("use truncation: auto", []),
    "moderation": refused(_OURS),
    "access_programs": refused(_OURS),
    "background_options": refused("a deadline is told by the header x-aios-deadline-s", {}),
    "image": refused(_OURS, {}),
}


# Of the route that counts: what makes a prompt is kept, what shapes an answer is not asked for.
_OF_PROMPTS = ("model", "input", "instructions", "previous_response_id", "tools")
_OF_ANSWERS = ("tool_choice", "parallel_tool_calls", "text", "reasoning", "truncation")
INPUT_FIELDS: Fields = {
    **{name: RESPONSE_FIELDS[name] for name in _OF_PROMPTS},
    **{name: ignored("it does not change the prompt") for name in _OF_ANSWERS},
    "conversation": RESPONSE_FIELDS["conversation"],
    "personality": reported("say it in the instructions"),
}


class TextOptions(Struct, frozen=True):
    """What the text of an answer is to be."""

    format: Json | None = None


class Schema(Struct, frozen=True):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    schema: Json | None = None


Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, Meta(ge=0.0, le=1.0)]
ResponseId = Annotated[str, Meta(pattern=r"^resp_[0-9a-f]{32}\Z")]


class InputRequest(Struct, frozen=True, kw_only=True):
    """What a prompt is made of; null is as if nothing was said."""

    input: str | list[Json] | None = None
    model: str | None = None
    instructions: str | list[Json] | None = None
    previous_response_id: str | None = None
    tools: list[Json] | None = None

    @property
    def items(self) -> list[Json]:
        """The items of the input."""
        return items_of(self.input if self.input is not None else [])


class ResponseRequest(InputRequest, frozen=True, kw_only=True):
    """A request of the Responses API."""

    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: Json | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    reasoning: Json | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=MAX_METADATA)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    max_tool_calls: int | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the answer is kept."""
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer tells its log-probabilities."""
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())


def check_request(asked: ResponseRequest) -> None:
    """Refuse what makes no sense together.

    Raises:
        InvalidSyscall: it does not; `field` names it.
    """
    if not asked.items:
        raise InvalidSyscall("there is nothing to answer", field="input", remedy="send an input")
    if asked.background and not asked.is_stored:
        raise InvalidSyscall(
            "an answer that nobody waits for has to be kept",
            field="store",
            remedy="leave out store, or background",
        )


def toolset(asked: ResponseRequest) -> Toolset:
    """Return the tools of a request.

    Raises:
        InvalidSyscall: a tool, or a choice, that is not served here.
    """
    return toolset_of(asked.tools or (), asked.tool_choice)


def unheld_in(asked: InputRequest) -> tuple[str, ...]:
    """Return what the tools of a request ask for that no core can hold."""
    tools = asked.tools or ()
    inner = (each.get("tools") for each in tools)
    spaces = (each for some in inner if isinstance(some, list) for each in some)
    shown = [each for each in (*tools, *spaces) if isinstance(each, dict)]
    return unheld("tools.parameters", (each.get("parameters") for each in shown))


def chat_of(
    asked: ResponseRequest,
    messages: Sequence[Message],
    tools: Toolset,
    *,
    core: str | None,
    context: str | None,
    default_max_tokens: int,
) -> LlmChat:
    """Return the chat that a request asks for; `messages`: what stands in no context yet.

    Raises:
        InvalidSyscall: a form that is not served here.
    """
    compacts = asked.truncation == "auto"
    limit = asked.max_output_tokens or default_max_tokens
    return LlmChat(
        messages=tuple(messages),
        core=core,
        max_tokens=min(limit, MAX_ANSWER_TOKENS),
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=top_p_of(asked.top_p),
        stream=bool(asked.stream),
        logprobs=(asked.top_logprobs or 0) if asked.wants_logprobs else None,
        format=form_of(asked.text),
        tools=tools.tools,
        tool_choice=tools.choice,
        overflow="compact" if compacts else "shorten",
        context=context,
    )


def form_of(text: TextOptions | None) -> Format | None:
    """Return what an answer is to be; None: any text.

    Raises:
        InvalidSyscall: it is of a type that is not served here.
    """
    if text is None or text.format is None:
        return None
    asked = converted(text.format, Schema, "text.format")
    match asked.type:
        case "text":
            return None
        case "json_object":
            return JsonFormat()
        case "json_schema":
            if asked.schema is None:
                raise InvalidSyscall(
                    "there is no schema", field="text.format.schema", remedy="send one"
                )
            return JsonFormat(asked.schema)


def instructions_of(asked: InputRequest) -> str:
    """Return the instructions of a request as text.

    Raises:
        InvalidSyscall: they are items that hold more than text.
    """
    given = asked.instructions
    if given is None or isinstance(given, str):
        return given or ""
    raise InvalidSyscall(
        "instructions that are items are not served here",
        field="instructions",
        remedy="send a text, and what is more as items of the input",
    )


def echoed(asked: ResponseRequest) -> Mapping[str, object]:
    """Return what an answer says again of its request."""
    text = {"format": (asked.text and asked.text.format) or {"type": "text"}}
    return {
        "background": bool(asked.background),
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": asked.reasoning or {"effort": None, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": asked.is_stored,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": text,
        "tool_choice": asked.tool_choice or "auto",
        "tools": [_complete(each) for each in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": asked.truncation or "disabled",
        "user": asked.user,
    }


def _complete(tool: Json) -> Json:
    """Return a tool with what clients expect of a function."""
    if tool.get("type") != "function":
        return tool
    return {"strict": False, "parameters": {}, "description": None, **tool}
