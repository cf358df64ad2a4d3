"""A chat completion as it is asked for: its fields, what becomes of each, and its syscall. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict, cast

from msgspec import Meta, Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import MAX_ANSWER_TOKENS, MAX_MESSAGES, LlmChat, Message, ToolCall
from aios_kernel_api.gateway.contents import Part, content_of
from aios_kernel_api.gateway.fields import Fields, ignored, kept, refused, reported
from aios_kernel_api.gateway.functions import (
    Called,
    CalledFunction,
    FunctionTool,
    NamedChoice,
    ResponseFormat,
    calls_of,
    choice_of,
    format_of,
    tools_of,
)
from aios_kernel_api.gateway.schemas import unheld

DEFAULT_TEMPERATURE = 1.0  # of OpenAI's API
SEEDS = 2**63
BEST_ALONE = 1e-9  # a `top_p` that no second token comes under

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Turn(Struct, frozen=True):
    """One message."""

    role: Role
    content: str | list[Part] | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    name: str | None = None


class StreamOptions(Struct, frozen=True):
    """What a stream has beside its text."""

    include_usage: bool | None = None


class Sampled(Struct, frozen=True, kw_only=True):
    """What chats and plain completions have in common."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    metadata: dict[str, object] | None = None


class ChatRequest(Sampled, frozen=True, kw_only=True):
    """A chat completion."""

    messages: Annotated[list[Turn], Meta(max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


_MESSAGE: Fields = {
    "role": kept("developer is system; function is tool"),
    "content": kept(
        "text, or parts; texts are joined by a line break",
        {
            "type": kept("text, refusal, image_url; any other is refused"),
            "text": kept("as it is"),
            "refusal": kept("as text of the assistant"),
            "image_url": kept(
                "pictures stand before the text, where the core sees them",
                {
                    "url": kept("a data URL; an address is refused: the kernel fetches nothing"),
                    "detail": ignored("the core decides"),
                },
            ),
            "input_audio": refused("send text"),
            "file": refused("send text, or keep it in storage"),
            "prompt_cache_breakpoint": ignored("what was read is kept without being told"),
            "cache_control": ignored("what was read is kept without being told"),
        },
    ),
    "name": ignored("a label: no core is shown it"),
    "tool_calls": kept(
        "of the assistant",
        {
            "id": kept("as it is"),
            "type": kept("function; any other is refused"),
            "function": kept("as it was called"),
            "custom": refused("give a function"),
            "index": ignored("of a stream that was collected"),
        },
    ),
    "tool_call_id": kept("of a tool: the call that it answers"),
    "function_call": kept("as a tool call whose id is the function's name"),
    "refusal": reported("say it as content"),
    "audio": refused("send text"),
    "reasoning": ignored("the template of the model leaves earlier thoughts out"),
    "reasoning_content": ignored("the template of the model leaves earlier thoughts out"),
    "annotations": ignored("of an answer that was sent back"),
}

SAMPLED_FIELDS: Fields = {
    "model": kept(
        "a core's name, alias or model; any other goes to the default core. The answer names the "
        "core that it is of"
    ),
    "max_tokens": kept("fewer where the core's context has no more room"),
    "temperature": kept("1 where it is left out"),
    "top_p": kept("as it is"),
    "top_k": kept("an addition: draw among so many"),
    "min_p": kept("an addition: drop what is so much less likely than the best"),
    "frequency_penalty": kept("as it is"),
    "presence_penalty": kept("as it is"),
    "repetition_penalty": kept("an addition: divides the logit of what was output"),
    "logit_bias": kept("by ids of the core's own tokenizer"),
    "seed": kept("the same draws again, wherever it runs; of a negative one its lowest 63 bits"),
    "stop": kept("up to 16; reported where the answer has a form or may call tools"),
    "n": kept("up to 16; a stream has the first as it comes, the others at its end"),
    "stream": kept("server-sent events"),
    "stream_options": kept(
        "of a stream",
        {
            "include_usage": kept("one more piece, with the usage"),
            "include_obfuscation": ignored("pieces are not padded"),
        },
    ),
    "priority": kept("an addition: a nice value, capped as the header `X-AIOS-Nice`"),
    "metadata": kept(
        "`program` and `parent_program` are labels; the rest is its client's own",
    ),
    "user": ignored("a label; the token says who asks"),
    "service_tier": reported("there is one", "auto", "default"),
}

CHAT_FIELDS: Fields = {
    "messages": kept("the conversation", _MESSAGE),
    **SAMPLED_FIELDS,
    "max_completion_tokens": kept("goes before max_tokens"),
    "logprobs": kept("where the core has them; a stream has them at its end"),
    "top_logprobs": kept("up to 20, where the core has them"),
    "tools": kept(
        "functions",
        {
            "type": kept("function; any other is refused"),
            "function": kept(
                "what the model is shown",
                {
                    "name": kept("as it is"),
                    "description": kept("as it is"),
                    "parameters": kept(
                        "the arguments are held to it; what no core can is reported"
                    ),
                    "strict": kept("always: arguments are held to their schema"),
                },
            ),
            "custom": refused("give a function"),
        },
    ),
    "tool_choice": kept(
        "auto, none, required, or one function",
        {
            "type": kept("function; any other is refused"),
            "function": kept("the one to call"),
            "custom": refused("name a function"),
            "allowed_tools": refused("give the tools that are allowed"),
        },
    ),
    "parallel_tool_calls": kept("false: of several calls the first is the answer"),
    "response_format": kept(
        "the answer is held to it, on streams too",
        {
            "type": kept("text, json_object, json_schema"),
            "json_schema": kept(
                "the schema",
                {
                    "name": ignored("no model is shown it"),
                    "description": ignored("no model is shown it"),
                    "schema": kept("what the answer is"),
                    "strict": kept("always: the answer is held to its schema"),
                },
            ),
        },
    ),
    "audio": refused("ask for text"),
    "modalities": refused("ask for text", ["text"], []),
    "functions": refused("use tools"),
    "function_call": refused("use tool_choice"),
    "web_search_options": refused("use a tool of the agent's own"),
    "moderation": reported("nothing is moderated here"),
    "reasoning_effort": reported("a core thinks as its template says"),
    "verbosity": reported("say it in the prompt"),
    "prediction": ignored("a hint for speed"),
    "store": reported("nothing is stored", False),
    "prompt_cache_key": ignored("what was read is kept without being told"),
    "prompt_cache_options": ignored("what was read is kept without being told"),
    "prompt_cache_retention": ignored("what was read is kept without being told"),
    "safety_identifier": ignored("a label; the token says who asks"),
}


@dataclass(frozen=True, slots=True)
class ChatAsked:
    """A chat, ready to be submitted."""

    body: LlmChat
    not_kept: tuple[str, ...]  # found here, beside what the table says
    with_usage: bool  # on a stream
    one_call: bool  # at most one


def chat_asked(request: ChatRequest, core: str | None, default_max_tokens: int) -> ChatAsked:
    """Return the syscall that a request asks for.

    Args:
        request: Read, and held against CHAT_FIELDS.
        core: Whom its model names; None: the default.
        default_max_tokens: Where it says none.

    Raises:
        InvalidSyscall: it asks for what cannot be; `field` is its path.
    """
    tools, choice = tools_of(request.tools), choice_of(request.tool_choice)
    wanted = format_of(request.response_format)
    stop, not_kept = stops_of(request.stop), tuple[str, ...]()
    if stop and (wanted is not None or (tools and choice != "none")):
        stop, not_kept = (), ("stop",)  # it would cut what is promised to be whole
    limits = (request.max_completion_tokens, request.max_tokens, default_max_tokens)
    limit = next(each for each in limits if each is not None)
    body = LlmChat(
        messages=messages_of(request.messages),
        core=core,
        stop=stop,
        logprobs=_logprobs(request),
        format=wanted,
        tools=tools,
        tool_choice=choice,
        **sampled(request, limit),
    )
    options = request.stream_options
    with_usage = options is not None and bool(options.include_usage)
    shown = (each.function.parameters for each in request.tools or () if each.function is not None)
    not_kept += unheld("tools.function.parameters", shown)
    return ChatAsked(body, not_kept, with_usage, request.parallel_tool_calls is False)


class Options(TypedDict, total=False):
    """Fields of the contract's chat."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    logit_bias: dict[int, float]
    n: int
    stream: bool
    seed: int
    overflow: Literal["shorten"]


def sampled(request: Sampled, max_tokens: int) -> Options:
    """Return the options of a chat that stand in a request as they are."""
    given = {
        "top_p": top_p_of(request.top_p),
        "top_k": request.top_k,
        "min_p": request.min_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "repetition_penalty": request.repetition_penalty,
        "logit_bias": request.logit_bias,
        "n": request.n,
        "stream": request.stream,
        "seed": None if request.seed is None else request.seed % SEEDS,
    }
    said = {name: value for name, value in given.items() if value is not None}
    temperature = DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
    always: Options = {
        "temperature": temperature,
        "max_tokens": min(max_tokens, MAX_ANSWER_TOKENS),
        "overflow": "shorten",
    }
    return cast("Options", {**said, **always})


def top_p_of(asked: float | None) -> float:
    """Return a `top_p` of the contract's; 0 means the best token alone, which that has no 0 for."""
    return 1.0 if asked is None else asked or BEST_ALONE


def stops_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the stop strings; one may stand alone."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def messages_of(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Return a conversation as the contract has it."""
    return tuple(_message(turn, f"messages[{number}]") for number, turn in enumerate(turns))


_ROLES: Mapping[Role, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def _message(turn: Turn, field: str) -> Message:
    text, images = content_of(turn.content, f"{field}.content")
    calls = calls_of(turn.tool_calls, f"{field}.tool_calls")
    if turn.function_call is not None:
        called = turn.function_call
        calls = (*calls, ToolCall(called.name, called.name, called.arguments or "{}"))
    if turn.content is None and turn.role != "assistant":
        raise InvalidSyscall(
            "the message has no content", field=f"{field}.content", remedy="give some"
        )
    answers = turn.name if turn.role == "function" else turn.tool_call_id
    return Message(_ROLES[turn.role], text, calls, answers or "", images)


def _logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidSyscall(
            "top_logprobs is of logprobs", field="top_logprobs", remedy="set logprobs to true"
        )
    return (request.top_logprobs or 0) if request.logprobs else None
