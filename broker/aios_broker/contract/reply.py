"""What an agent hears back: any number of chunks, and then exactly one reply."""

from collections.abc import Callable
from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from aios_broker.contract.access import AccessResult
from aios_broker.contract.errors import ErrorBody, FormNotKept, KernelError, from_wire
from aios_broker.contract.exec import ExecResult
from aios_broker.contract.llm import Message, ToolCall
from aios_broker.contract.memory import MemoryResult
from aios_broker.contract.storage import StorageResult
from aios_broker.contract.tools import ToolAnswer


class Usage(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a generation used, in tokens. `cached_tokens`: prompt tokens that cost no prefill.

    What it cost is what was charged for the syscall, on all cores that worked on it; it is left
    out where none of them has a price.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int | None = None  # billionths of the currency
    currency: str = ""  # of ISO 4217

    @property
    def cost(self) -> Decimal | None:
        """What it cost, in units of the currency; exact. None: its core has no price."""
        return None if self.cost_nano is None else Decimal(self.cost_nano).scaleb(-9)


class Timings(Struct, frozen=True, omit_defaults=True, gc=False):
    """Where the time went, in seconds; `queued_s` and `ran_s` are sums over all slices."""

    queued_s: float = 0.0
    ran_s: float = 0.0
    slices: int = 0  # how often it ran; 1: never interrupted
    suspensions: int = 0  # how often it was suspended to let another run
    attempts: int = 0  # claims, those lost with a dead worker included


class Alternative(Struct, frozen=True, array_like=True):
    """A token that might have stood there, and the natural logarithm of its probability.

    The probability is the model's own (softmax of the logits), before penalties, bias,
    temperature and constraints.
    """

    id: int
    logprob: float
    text: str  # what its bytes decode to; broken UTF-8 is replaced


class TokenLogprob(Struct, frozen=True, array_like=True):
    """A generated token, and the most probable ones at its place, best first.

    An endpoint of the OpenAI API says what it likes of probabilities, and no ids: they are -1.
    """

    id: int
    logprob: float
    text: str
    top: tuple[Alternative, ...] = ()


FinishReason = Literal["stop", "length", "tool_calls"]


class Choice(Struct, frozen=True, omit_defaults=True):
    """One answer."""

    text: str
    finish_reason: FinishReason
    output_ids: tuple[int, ...] = ()  # only with `return_ids`
    logprobs: tuple[TokenLogprob, ...] = ()  # only with `logprobs`
    tool_calls: tuple[ToolCall, ...] = ()
    score: float | None = None  # of a beam: sum of log-probabilities / length ** length_penalty
    reasoning: str = ""  # what the model thought before, where its family marks it
    stopped_by: str = ""  # the string of `stop` that ended it, where the kernel looks for them


class ChatResult(Struct, frozen=True, omit_defaults=True, tag="llm.chat"):
    """The message that was generated. Its fields are those of the first choice."""

    text: str
    finish_reason: FinishReason
    model: str
    usage: Usage = Usage()
    prompt_ids: tuple[int, ...] = ()  # only with `return_ids`
    output_ids: tuple[int, ...] = ()  # only with `return_ids`
    logprobs: tuple[TokenLogprob, ...] = ()  # only with `logprobs`
    tool_calls: tuple[ToolCall, ...] = ()
    choices: tuple[Choice, ...] = ()  # only with n > 1 or beam search: all answers, best first
    compacted_messages: int = 0  # of the prompt, summarised away because `overflow` allows it
    reasoning: str = ""  # what the model thought before it answered; no part of `text`
    core: str = ""  # who answered; with a fallback it may be another than was asked
    stopped_by: str = ""  # the string of `stop` that ended it, where the kernel looks for them

    def parsed(self) -> object:
        """Return the answer read as JSON.

        Raises:
            FormNotKept: it was cut at `max_tokens`, or is no JSON.
        """
        if self.finish_reason == "length":
            raise FormNotKept(
                f"the answer was cut after {self.usage.output_tokens} tokens, before its end",
                field="body.max_tokens",
                remedy="allow more of them",
            )
        try:
            return msgspec.json.decode(self.text)
        except msgspec.DecodeError as error:
            raise FormNotKept(
                f"the answer is no JSON: {error}", field="body.format", remedy="ask for a form"
            ) from error


class EmbedResult(Struct, frozen=True, omit_defaults=True, tag="llm.embed"):
    """One vector per text, in their order."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    usage: Usage = Usage()
    core: str = ""


class CountResult(Struct, frozen=True, omit_defaults=True, tag="llm.count"):
    """How many tokens each text has, in their order; and the prompt of the messages and tools."""

    tokens: tuple[int, ...]
    model: str
    core: str = ""
    prompt_tokens: int = 0  # only with `messages`


class ContextResult(Struct, frozen=True, omit_defaults=True, tag="context"):
    """A stored context as it is after the operation."""

    context: str
    messages: tuple[Message, ...]  # of `get` and `summarise`; the others do not repeat them
    message_count: int
    tokens: int  # as a prompt of `model`
    limit_tokens: int  # what its context holds, prompt and answer together
    model: str
    version: int  # counts changes; 0: there is no such context
    core: str = ""


class EchoResult(Struct, frozen=True, omit_defaults=True, tag="tool.echo", gc=False):
    """The text that was sent."""

    text: str = ""


Result = (
    ChatResult
    | EmbedResult
    | CountResult
    | ContextResult
    | EchoResult
    | MemoryResult
    | StorageResult
    | AccessResult
    | ToolAnswer
    | ExecResult
)


class Reply(Struct, frozen=True, omit_defaults=True, tag="reply", tag_field="kind", gc=False):
    """The one answer to a syscall: a result or an error, never both, never neither."""

    id: str
    result: Result | None = None
    error: ErrorBody | None = None
    timings: Timings = Timings()
    worker: str = ""

    def unwrap(self) -> Result:
        """Return the result, or raise the error that stands in its place."""
        if self.error is not None:
            error = from_wire(self.error)
            error.syscall_id = self.id
            raise error
        if self.result is None:
            raise KernelError("the reply holds neither a result nor an error", syscall_id=self.id)
        return self.result


Part = Literal["answer", "reasoning"]


class Chunk(Struct, frozen=True, omit_defaults=True, tag="chunk", tag_field="kind", gc=False):
    """A piece of streamed text: of the answer, or of the reasoning before it.

    `offset` counts the characters of this part before this chunk: after a crash the same
    characters may come again, and a reader drops what it has.
    """

    id: str
    offset: int
    text: str
    part: Part = "answer"


class Heard(NamedTuple):
    """How much of its text a client has, in characters."""

    answer: int = 0
    reasoning: int = 0


Wire = Reply | Chunk

_encoder = msgspec.json.Encoder()
_wire_decoder: msgspec.json.Decoder[Wire] = msgspec.json.Decoder(Wire)
_reply_decoder = msgspec.json.Decoder(Reply)

# Once for each syscall and chunk: no function of ours around them.
encode: Callable[[Wire], bytes] = _encoder.encode  # the JSON of a reply or a chunk
decode_wire: Callable[[bytes | str], Wire] = _wire_decoder.decode  # of a client's reply list


def decode_reply(data: bytes | str) -> Reply:
    """Read a stored reply."""
    return _reply_decoder.decode(data)


def failure(syscall_id: str, error: KernelError) -> Reply:
    """Return the reply that carries an error."""
    error.syscall_id = syscall_id
    return Reply(id=syscall_id, error=error.to_wire())
