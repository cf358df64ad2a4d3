"""What an agent may ask of the llm module: chat, embeddings, and the stored context of a program.

Every option holds on every core, or the core refuses it with UnsupportedOption before anything
runs. Names and meanings follow the OpenAI API where it has them.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from aios_broker.contract.names import Name, Request, Row, Text

MAX_ANSWER_TOKENS = 131_072
MAX_TOOLS = 128
MAX_MESSAGES = 10_000
MAX_DESCRIPTION_LENGTH = 64 * 1024  # of a tool; those of coding agents have more than 8,192
MAX_SCHEMA_BYTES = 256 * 1024  # of a JSON schema or a grammar

FunctionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+\Z")]
CoreName = Name
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="The same draws again")]
Alternatives = Annotated[
    int, Meta(ge=0, le=20, description="Log-probabilities, and so many others")
]
BeamWidth = Annotated[int, Meta(ge=1, le=16, description="Beam search; its best N are answers")]
Pattern = Annotated[str, Meta(min_length=1, max_length=MAX_SCHEMA_BYTES)]


class ToolCall(Request, frozen=True):
    """A call that a model asks for. `arguments` is JSON, valid for the tool's parameters."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: FunctionName
    arguments: Text


class Image(Request, frozen=True):
    """A picture that stands before the text of its message."""

    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    data: Text  # base64


class Message(Request, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    tool_calls: Annotated[Row[ToolCall], Meta(max_length=MAX_TOOLS)] = ()  # of an assistant
    tool_call_id: Annotated[str, Meta(max_length=64)] = ""  # of a tool: which call it answers
    images: Annotated[Row[Image], Meta(max_length=16)] = ()


class Tool(Request, frozen=True):
    """A function that the model may call. The kernel does not run it: the agent does."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_LENGTH)] = ""
    # JSON schema of an object; {}: no arguments
    parameters: dict[str, Any] = field(default_factory=dict)


class JsonFormat(Request, frozen=True, tag="json"):
    """The answer is one JSON value that the schema allows; without a schema, any object."""

    json_schema: dict[str, Any] | None = None


class RegexFormat(Request, frozen=True, tag="regex"):
    """The whole answer matches a regular expression (no look-around, no back references)."""

    pattern: Pattern


class GrammarFormat(Request, frozen=True, tag="grammar"):
    """The whole answer is a sentence of a context-free grammar in Lark's notation."""

    grammar: Pattern


Format = JsonFormat | RegexFormat | GrammarFormat


class SamplingOptions(Request, frozen=True, kw_only=True):
    """How the next token is chosen.

    Each core names those that it keeps (`Capabilities.keeps`); a value other than the default that
    it does not keep is refused. README ("Where do I change") says what a new one needs.
    """

    temperature: Annotated[
        float, Meta(ge=0.0, le=2.0, description="0 takes the likeliest token, more draws wider")
    ] = 0.0
    top_p: Annotated[
        float, Meta(gt=0.0, le=1.0, description="Draw among the best with so much probability")
    ] = 1.0
    top_k: Annotated[
        int, Meta(ge=0, le=10_000, description="Draw among so many of the best; 0 is all")
    ] = 0
    min_p: Annotated[
        float, Meta(ge=0.0, le=1.0, description="Drop what has less of the best's probability")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Meta(ge=-2.0, le=2.0, description="Off a token's logit, each time it was output")
    ] = 0.0
    presence_penalty: Annotated[
        float, Meta(ge=-2.0, le=2.0, description="Off a token's logit, once it was output")
    ] = 0.0
    repetition_penalty: Annotated[
        float, Meta(gt=0.0, le=4.0, description="Divides the logit of a token that was output")
    ] = 1.0
    logit_bias: Annotated[
        dict[int, Bias], Meta(max_length=1_024, description="Added to logits, by token id")
    ] = field(default_factory=dict)


PENALTIES = frozenset({"frequency_penalty", "presence_penalty", "repetition_penalty"})


class LlmChat(SamplingOptions, frozen=True, tag="llm.chat"):
    """Generate the next message of a conversation.

    The descriptions are what `aios submit --help` shows.
    """

    messages: Annotated[Row[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    core: Annotated[CoreName | None, Meta(description="Only on the core of this model")] = None
    max_tokens: Annotated[
        int, Meta(ge=1, le=MAX_ANSWER_TOKENS, description="New tokens, the prompt not counted")
    ] = 256
    seed: Seed | None = None  # None: derived from the id
    stop: Annotated[
        Row[Annotated[str, Meta(min_length=1, max_length=256)]],
        Meta(max_length=16, description="The answer ends before it; may be repeated"),
    ] = ()
    stream: bool = False  # chunks travel to the client while it runs
    return_ids: Annotated[
        bool, Meta(description="The result carries prompt and output token ids")
    ] = False
    logprobs: Alternatives | None = None
    # Answer i is drawn with seed + i.
    n: Annotated[int, Meta(ge=1, le=16, description="So many answers")] = 1
    beam_width: BeamWidth | None = None
    length_penalty: Annotated[
        float, Meta(ge=-2.0, le=4.0, description="Of beams: score / length ** this")
    ] = 1.0
    format: Format | None = None
    tools: Annotated[
        Row[Tool],
        Meta(max_length=MAX_TOOLS, description='A list of {"name", "description", "parameters"}'),
    ] = ()
    # auto: a message or calls. none: a message. required: at least one call. Else: that tool.
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | FunctionName,
        Meta(description="auto, none, required, or a tool's name"),
    ] = "auto"
    lora: Annotated[Name | None, Meta(description="An adapter that the core has loaded")] = None
    # Too long for the core: refuse (ContextTooLong); compact: oldest turns are summarised away; or
    # shorten: the answer has as many of `max_tokens` as there is room for.
    overflow: Annotated[
        Literal["refuse", "compact", "shorten"],
        Meta(description="What is done where prompt and answer are too long"),
    ] = "refuse"
    context: Annotated[
        Name | None, Meta(description="A stored context before the prompt; it grows by it")
    ] = None


class LlmEmbed(Request, frozen=True, tag="llm.embed"):
    """Turn texts into vectors of length 1."""

    texts: Annotated[Row[Text], Meta(min_length=1, max_length=2_048)]
    core: CoreName | None = None


class LlmCount(Request, frozen=True, tag="llm.count"):
    """Count how many tokens each text adds to a prompt, by the tokenizer of the core that answers.

    Exact for a text that fits the core's context; of a longer one an estimate from above. And what
    a chat of these messages and tools has for a prompt, under the same conditions.
    """

    texts: Annotated[Row[Text], Meta(max_length=2_048)] = ()
    core: CoreName | None = None
    messages: Annotated[Row[Message], Meta(max_length=MAX_MESSAGES)] = ()
    tools: Annotated[Row[Tool], Meta(max_length=MAX_TOOLS)] = ()


# A context is a conversation that the kernel keeps for an agent, by name. Its token counts are by
# the tokenizer of the core that answers.


class OfContext(Request, frozen=True, kw_only=True):
    """What is asked of one context."""

    context: Name = "main"
    core: CoreName | None = None


class ContextGet(OfContext, frozen=True, tag="context.get"):
    """Return a context's messages and what they cost in tokens. An unknown one is empty."""


class ContextSet(OfContext, frozen=True, tag="context.set"):
    """Replace a context's messages."""

    messages: Annotated[Row[Message], Meta(max_length=MAX_MESSAGES)]


class ContextClear(OfContext, frozen=True, tag="context.clear"):
    """Forget a context."""


class ContextExpand(OfContext, frozen=True, tag="context.expand"):
    """Add messages at the end of a context."""

    messages: Annotated[Row[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


class ContextSummarise(OfContext, frozen=True, tag="context.summarise"):
    """Replace all but the system message and the last turns by a summary that the core writes."""

    keep_last: Annotated[int, Meta(ge=0, le=1_000)] = 2  # messages that stay as they are
    max_tokens: Annotated[int, Meta(ge=16, le=1_024)] = 256  # of the summary: no slice cuts it


ContextBody = ContextGet | ContextSet | ContextClear | ContextExpand | ContextSummarise
LlmBody = LlmChat | LlmEmbed | LlmCount | ContextBody
