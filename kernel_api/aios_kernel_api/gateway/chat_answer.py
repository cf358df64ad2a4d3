"""A chat completion as it is answered, whole or in pieces. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, Struct, UnsetType

from aios_broker.contract.errors import KernelError
from aios_broker.contract.llm import ToolCall
from aios_broker.contract.reply import (
    ChatResult,
    Choice,
    Chunk,
    FinishReason,
    Reply,
    TokenLogprob,
    Usage,
)
from aios_kernel_api.events import KEEP_ALIVE, event
from aios_kernel_api.gateway.openai_errors import openai_body
from aios_kernel_api.gateway.streams import Events, chat_result_of

ARGUMENT_PIECE = 2_048  # characters of a call's arguments in one piece of a stream
DONE = b"data: [DONE]\n\n"
encode = msgspec.json.encode


class TopLogprob(Struct, frozen=True):
    """A token that might have stood there."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class OneLogprob(TopLogprob, frozen=True):
    """A token, and the likeliest at its place."""

    top_logprobs: tuple[TopLogprob, ...]


class Logprobs(Struct, frozen=True):
    """Of the content of a message."""

    content: tuple[OneLogprob, ...]
    refusal: None = None


class CalledFunction(Struct, frozen=True, omit_defaults=True):
    """A function that is called; in a stream a piece of its arguments."""

    arguments: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class Called(Struct, frozen=True):
    """A call; in a stream a piece of it."""

    function: CalledFunction
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class AnswerMessage(Struct, frozen=True):
    """The message that was generated."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[Called] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class AnswerChoice(Struct, frozen=True):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None = None


class PromptDetails(Struct, frozen=True):
    """Of the prompt's tokens."""

    cached_tokens: int


class AnswerUsage(Struct, frozen=True):
    """What it used, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(Struct, frozen=True):
    """A chat completion."""

    id: str
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: AnswerUsage
    object: str = "chat.completion"
    system_fingerprint: str | None = None


class Delta(Struct, frozen=True):
    """What a piece adds to a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[Called] | UnsetType = UNSET


class PieceChoice(Struct, frozen=True):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class Piece(Struct, frozen=True):
    """A piece of a chat completion."""

    id: str
    created: int
    model: str
    choices: list[PieceChoice]
    usage: AnswerUsage | UnsetType = UNSET
    object: str = "chat.completion.chunk"


def choices_of(result: ChatResult) -> Sequence[Choice]:
    """Return all answers of a result, best first."""
    return result.choices or (
        Choice(
            text=result.text,
            finish_reason=result.finish_reason,
            logprobs=result.logprobs,
            tool_calls=result.tool_calls,
            reasoning=result.reasoning,
        ),
    )


def usage_of(*used: Usage) -> AnswerUsage:
    """Return what the syscalls of an answer used together."""
    prompt, output = (sum(map(count, used)) for count in (_prompt_tokens, _output_tokens))
    cached = sum(each.cached_tokens for each in used)
    return AnswerUsage(prompt, output, prompt + output, PromptDetails(cached))


def completion_of(
    reply: Reply, result: ChatResult, created_s: int, *, one_call: bool = False
) -> ChatCompletion:
    """Return a whole answer."""
    choices = [
        AnswerChoice(
            index=number,
            message=AnswerMessage(
                content=choice.text or (None if choice.tool_calls else ""),
                tool_calls=[_called(call) for call in _calls(choice, one_call)] or UNSET,
                reasoning_content=choice.reasoning or UNSET,
            ),
            finish_reason=choice.finish_reason,
            logprobs=logprobs_of(choice.logprobs),
        )
        for number, choice in enumerate(choices_of(result))
    ]
    return ChatCompletion(
        id=completion_id(reply.id),
        created=created_s,
        model=result.core or result.model,
        choices=choices,
        usage=usage_of(result.usage),
        system_fingerprint=result.model,
    )


def completion_id(syscall_id: str) -> str:
    """Return the id of an answer: its syscall's."""
    return f"chatcmpl-{syscall_id}"


def logprobs_of(found: Sequence[TokenLogprob]) -> Logprobs | None:
    """Return log-probabilities as the API has them; None: none were asked for."""
    if not found:
        return None
    return Logprobs(
        tuple(
            OneLogprob(
                each.text,
                each.logprob,
                _bytes(each.text),
                tuple(TopLogprob(o.text, o.logprob, _bytes(o.text)) for o in each.top),
            )
            for each in found
        )
    )


@dataclass(slots=True)
class ChatPieces:
    """The pieces of one answer, as server-sent events."""

    syscall_id: str
    created_s: int
    model: str  # the core that is expected to answer; at the end the one that did
    with_usage: bool = False
    one_call: bool = False
    _begun: set[int] = field(default_factory=set)  # answers whose role is out

    def told(self, events: Events) -> bytes:
        """Return what goes out for what was heard; a comment where it was nothing."""
        if not events:
            return KEEP_ALIVE
        return b"".join(self._told(events))

    def _told(self, events: Events) -> Iterator[bytes]:
        for each in events:
            if isinstance(each, Chunk):
                yield from self._chunk(each)
            else:
                yield from self._end(each)

    def _chunk(self, chunk: Chunk) -> Iterator[bytes]:
        if chunk.part == "answer":
            yield from self._pieces(0, Delta(content=chunk.text))
        else:
            yield from self._pieces(0, Delta(reasoning_content=chunk.text))

    def _end(self, reply: Reply) -> Iterator[bytes]:
        try:
            result = chat_result_of(reply)
        except KernelError as error:
            yield event(encode(openai_body(error)))
            return
        self.model = result.core or self.model
        for number, choice in enumerate(choices_of(result)):
            yield from self._answer_end(number, choice)
        if self.with_usage:
            yield event(encode(self._piece([], usage_of(result.usage))))
        yield DONE

    def _answer_end(self, number: int, choice: Choice) -> Iterator[bytes]:
        if number > 0:  # no core streams more than the first
            if choice.reasoning:
                yield from self._pieces(number, Delta(reasoning_content=choice.reasoning))
            if choice.text:
                yield from self._pieces(number, Delta(content=choice.text))
        for place, call in enumerate(_calls(choice, self.one_call)):
            for piece in _call_pieces(place, call):
                yield from self._pieces(number, Delta(tool_calls=[piece]))
        if logprobs := logprobs_of(choice.logprobs):
            yield from self._pieces(number, Delta(), logprobs)
        yield from self._pieces(number, Delta(), finish=choice.finish_reason)

    def _pieces(
        self,
        number: int,
        delta: Delta,
        logprobs: Logprobs | None = None,
        finish: FinishReason | None = None,
    ) -> Iterator[bytes]:
        if number not in self._begun:
            self._begun.add(number)
            first = PieceChoice(number, Delta(role="assistant", content=""))
            yield event(encode(self._piece([first])))
        choice = PieceChoice(number, delta, logprobs, finish)
        yield event(encode(self._piece([choice])))

    def _piece(self, choices: list[PieceChoice], usage: AnswerUsage | UnsetType = UNSET) -> Piece:
        return Piece(completion_id(self.syscall_id), self.created_s, self.model, choices, usage)


def _calls(choice: Choice, one_call: bool) -> Sequence[ToolCall]:  # noqa: FBT001
    return choice.tool_calls[:1] if one_call else choice.tool_calls


def _called(call: ToolCall) -> Called:
    return Called(CalledFunction(call.arguments, call.name), id=call.id, type="function")


def _call_pieces(place: int, call: ToolCall) -> Iterable[Called]:
    yield Called(CalledFunction("", call.name), index=place, id=call.id, type="function")
    for first in range(0, len(call.arguments), ARGUMENT_PIECE):
        part = call.arguments[first : first + ARGUMENT_PIECE]
        yield Called(CalledFunction(part), index=place)


def _bytes(text: str) -> tuple[int, ...]:
    return tuple(text.encode(errors="replace"))


def _prompt_tokens(usage: Usage) -> int:
    return usage.prompt_tokens


def _output_tokens(usage: Usage) -> int:
    return usage.output_tokens
