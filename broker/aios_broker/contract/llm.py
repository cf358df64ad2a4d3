"""What an agent may ask of the llm module: chat, embeddings, and the stored context of a program.

Every option holds on every core, or the core refuses it with UnsupportedOption before anything
runs. Names and meanings follow the OpenAI API where it has them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from aios_broker.contract.names import Name, Text

MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 256 * 1024  # of a JSON schema or a grammar

FunctionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
CoreName = Name
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
Pattern = Annotated[str, Meta(min_length=1, max_length=MAX_SCHEMA_BYTES)]


class ToolCall(Struct, frozen=True, forbid_unknown_fields=True):
    """A call that a model asks for. `arguments` is JSON, valid for the tool's parameters."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: FunctionName
    arguments: Text


class Image(Struct, frozen=True, forbid_unknown_fields=True):
    """A picture that stands before the text of its message."""

    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    data: Text  # base64


class Message(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=MAX_TOOLS)] = ()  # of an assistant
    tool_call_id: Annotated[str, Meta(max_length=64)] = ""  # of a tool: which call it answers
    images: Annotated[tuple[Image, ...], Meta(max_length=16)] = ()


class Tool(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may call. The kernel does not run it: the agent does."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=8_192)] = ""
    parameters: dict[str, Any] = {}  # JSON schema of an object; {}: no arguments


class JsonFormat(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="json"):
    """The answer is one JSON value that the schema allows; without a schema, any object."""

    json_schema: dict[str, Any] | None = None


class RegexFormat(Struct, frozen=True, forbid_unknown_fields=True, tag="regex"):
    """The whole answer matches a regular expression (no look-around, no back references)."""

    pattern: Pattern


class GrammarFormat(Struct, frozen=True, forbid_unknown_fields=True, tag="grammar"):
    """The whole answer is a sentence of a context-free grammar in Lark's notation."""

    grammar: Pattern


Format = JsonFormat | RegexFormat | GrammarFormat


class LlmChat(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="llm.chat"):
    """Generate the next message of a conversation."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=10_000)]
    core: CoreName | None = None  # a core's model name; None: any core of the fleet
    max_tokens: Annotated[int, Meta(ge=1, le=131_072)] = 256  # new tokens, prompt not counted
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.0  # 0 is greedy
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=10_000)] = 0  # 0: no limit
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=4.0)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None  # None: derived from the id
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=16)
    ] = ()
    stream: bool = False  # chunks travel to the client while it runs
    return_ids: bool = False  # the result carries prompt and output token ids
    # What follows came with version 2 of the contract.
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # so many alternatives per token
    logit_bias: Annotated[dict[int, Bias], Meta(max_length=1_024)] = {}  # by token id
    n: Annotated[int, Meta(ge=1, le=16)] = 1  # answers; answer i is drawn with seed + i
    beam_width: Annotated[int, Meta(ge=1, le=16)] | None = None  # set: beam search, n <= width
    length_penalty: Annotated[float, Meta(ge=-2.0, le=4.0)] = 1.0  # score / length ** this
    format: Format | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=MAX_TOOLS)] = ()
    # auto: a message or calls. none: a message. required: at least one call. Else: that tool.
    tool_choice: Literal["auto", "none", "required"] | FunctionName = "auto"
    lora: Name | None = None  # an adapter that the core has loaded
    # Too long for the core: refuse (ContextTooLong), or compact: oldest turns are summarised away.
    overflow: Literal["refuse", "compact"] = "refuse"
    context: Name | None = None  # a stored context: it stands before `messages`, and grows by them


class LlmEmbed(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="llm.embed"
):
    """Turn texts into vectors of length 1."""

    texts: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=2_048)]
    core: CoreName | None = None


class LlmCount(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="llm.count"
):
    """Count how many tokens each text adds to a prompt, by the tokenizer of the core that answers.

    Exact for a text that fits the core's context; of a longer one an estimate from above.
    """

    texts: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=2_048)]
    core: CoreName | None = None


# A context is a conversation that the kernel keeps for an agent, by name. Its token counts are by
# the tokenizer of the core that answers.


class ContextGet(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="context.get"
):
    """Return a context's messages and what they cost in tokens. An unknown one is empty."""

    context: Name = "main"
    core: CoreName | None = None


class ContextSet(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="context.set"
):
    """Replace a context's messages."""

    messages: Annotated[tuple[Message, ...], Meta(max_length=10_000)]
    context: Name = "main"
    core: CoreName | None = None


class ContextClear(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="context.clear"
):
    """Forget a context."""

    context: Name = "main"
    core: CoreName | None = None


class ContextExpand(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="context.expand"
):
    """Add messages at the end of a context."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=10_000)]
    context: Name = "main"
    core: CoreName | None = None


class ContextSummarise(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="context.summarise"
):
    """Replace all but the system message and the last turns by a summary that the core writes."""

    context: Name = "main"
    core: CoreName | None = None
    keep_last: Annotated[int, Meta(ge=0, le=1_000)] = 2  # messages that stay as they are
    max_tokens: Annotated[int, Meta(ge=16, le=1_024)] = 256  # of the summary: no slice cuts it


ContextBody = ContextGet | ContextSet | ContextClear | ContextExpand | ContextSummarise
LlmBody = LlmChat | LlmEmbed | LlmCount | ContextBody

_FIRST_VERSION_FIELDS = frozenset({
    "messages", "core", "max_tokens", "temperature", "top_p", "top_k", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "seed", "stop", "stream", "return_ids",
})  # fmt: skip
_LATER_DEFAULTS = tuple(
    (name, LlmChat.__struct_defaults__[index - len(LlmChat.__struct_fields__)])
    for index, name in enumerate(LlmChat.__struct_fields__)
    if name not in _FIRST_VERSION_FIELDS
)


def is_first_version(body: LlmBody) -> bool:
    """Whether a worker of the first release can read it."""
    if not isinstance(body, LlmChat):
        return False
    if any(getattr(body, name) != default for name, default in _LATER_DEFAULTS):
        return False
    return not any(m.tool_calls or m.tool_call_id or m.images for m in body.messages)
