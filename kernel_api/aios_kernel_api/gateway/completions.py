"""`POST /v1/completions`: the text that follows a prompt, for agents that were written for it.

The kernel's cores continue conversations: a prompt is put as the message of a user.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.errors import InvalidSyscall, KernelError
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.reply import (
    Choice,
    FinishReason,
    Reply,
    TokenLogprob,
)
from aios_kernel_api.bodies import in_turn, unless_left
from aios_kernel_api.events import KEEP_ALIVE, event
from aios_kernel_api.gateway.asking import asking, read, unless_gone
from aios_kernel_api.gateway.chat_answer import DONE, AnswerUsage, choices_of, encode, usage_of
from aios_kernel_api.gateway.chat_request import SAMPLED_FIELDS, Sampled, sampled, stops_of
from aios_kernel_api.gateway.fields import Fields, ignored, kept, refused
from aios_kernel_api.gateway.openai_errors import openai_body
from aios_kernel_api.gateway.state import gateway_of
from aios_kernel_api.gateway.streams import Events, chat_result_of, reply_of, streamed, waiting

DEFAULT_MAX_TOKENS = 16  # of OpenAI's API
MOST_PROMPTS = 64


class CompletionRequest(Sampled, frozen=True, kw_only=True):
    """A completion."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None


_requests = msgspec.json.Decoder(CompletionRequest)

COMPLETION_FIELDS: Fields = {
    "prompt": kept(
        f"text, or up to {MOST_PROMPTS} (a stream has one): each is put as the message of a user; "
        "token ids are refused: they are of another model's tokenizer"
    ),
    **SAMPLED_FIELDS,
    "max_tokens": kept("16 where it is left out"),
    "stop": kept("up to 16"),
    "logprobs": kept("up to 20, where the core has them; a stream has them at its end"),
    "best_of": refused("ask for n", 1),
    "echo": refused("put the prompt before the answer", False),
    "suffix": refused("say in the prompt what follows", ""),
    "service_tier": ignored("there is one"),
}


class Legacy(Struct, frozen=True):
    """Log-probabilities as completions have them."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Struct, frozen=True):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: Legacy | None = None
    finish_reason: FinishReason | None = None


class Completion(Struct, frozen=True):
    """A completion, or a piece of it."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: AnswerUsage | UnsetType = UNSET
    object: str = "text_completion"


async def create(request: Request) -> Response:
    """Generate what follows each prompt."""
    gateway = gateway_of(request)
    kernel = gateway.kernel
    asked = await read(request, COMPLETION_FIELDS, _requests)
    named = await gateway.cores.named(asked.body.model)
    bodies = bodies_of(asked.body, named.core)
    ask = await asking(
        request,
        left_out=asked.not_kept,
        metadata=asked.body.metadata,
        priority=asked.body.priority,
    )
    created_s = int(time.time())
    with ExitStack() as held:
        async with in_turn(request):
            calls = [ask.submit(body, number) for number, body in enumerate(bodies)]
            for pending in calls:
                held.enter_context(waiting(kernel, pending))
        if bodies[0].stream:
            options = asked.body.stream_options
            with_usage = options is not None and bool(options.include_usage)
            pieces = TextPieces(calls[0].id, created_s, named.shown, with_usage)
            return await streamed(request, ask, calls[0], held, pieces.told)
        replies = asyncio.gather(*(reply_of(kernel, each) for each in calls))
        answer = completion_of(await unless_left(request, replies), created_s)
    headers = ask.headers(*calls)
    return Response(msgspec.json.encode(answer), 200, headers, "application/json")


def bodies_of(request: CompletionRequest, core: str | None) -> tuple[LlmChat, ...]:
    """Return a syscall for each prompt.

    Raises:
        InvalidSyscall: prompts of token ids, too many of them, or several on a stream.
    """
    prompts = _prompts(request.prompt)
    if request.stream and len(prompts) > 1:
        raise InvalidSyscall(
            "a stream has one prompt", field="prompt", remedy="send a request for each"
        )
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    options = sampled(request, limit)
    stop = stops_of(request.stop)
    return tuple(
        LlmChat(
            messages=(Message("user", prompt),),
            core=core,
            stop=stop,
            logprobs=request.logprobs,
            **options,
        )
        for prompt in prompts
    )


def completion_of(replies: Sequence[Reply], created_s: int) -> Completion:
    """Return a whole answer: the choices of each prompt, one after the other."""
    results = [chat_result_of(reply) for reply in replies]
    choices = [choice for result in results for choice in choices_of(result)]
    return Completion(
        id=f"cmpl-{replies[0].id}",
        created=created_s,
        model=results[0].core or results[0].model,
        choices=[_choice(number, choice, choice.text) for number, choice in enumerate(choices)],
        usage=usage_of(*(result.usage for result in results)),
    )


@dataclass(slots=True)
class TextPieces:
    """The pieces of one completion, as server-sent events."""

    syscall_id: str
    created_s: int
    model: str
    with_usage: bool = False

    def told(self, events: Events) -> bytes:
        """Return what goes out for what was heard; a comment where it was nothing."""
        return b"".join(self._told(events)) if events else KEEP_ALIVE

    def _told(self, events: Events) -> Iterator[bytes]:
        for each in events:
            if isinstance(each, Reply):
                yield from self._end(each)
            elif each.part == "answer":
                yield self._piece([TextChoice(0, each.text)])

    def _end(self, reply: Reply) -> Iterator[bytes]:
        try:
            result = chat_result_of(reply)
        except KernelError as error:
            yield event(encode(openai_body(error)))
            return
        self.model = result.core or self.model
        for number, choice in enumerate(choices_of(result)):
            yield self._piece([_choice(number, choice, choice.text if number else "")])
        if self.with_usage:
            yield self._piece([], usage_of(result.usage))
        yield DONE

    def _piece(self, choices: list[TextChoice], usage: AnswerUsage | UnsetType = UNSET) -> bytes:
        piece_id = f"cmpl-{self.syscall_id}"
        return event(encode(Completion(piece_id, self.created_s, self.model, choices, usage)))


def _prompts(prompt: str | Sequence[str | int | list[int]]) -> tuple[str, ...]:
    given = [prompt] if isinstance(prompt, str) else prompt
    texts = tuple(each for each in given if isinstance(each, str))
    if len(texts) < len(given):
        raise token_ids_refused("prompt")
    if not 1 <= len(texts) <= MOST_PROMPTS:
        raise InvalidSyscall(
            f"it has {len(texts)} prompts", field="prompt", remedy=f"give 1 to {MOST_PROMPTS}"
        )
    return texts


def token_ids_refused(field: str) -> InvalidSyscall:
    """Return the error of token ids where text is asked for."""
    return InvalidSyscall(
        "token ids are of another model's tokenizer",
        field=field,
        remedy="send text (of LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
    )


def _choice(number: int, choice: Choice, text: str) -> TextChoice:
    return TextChoice(number, text, _legacy(choice.logprobs), choice.finish_reason)


def _legacy(found: Sequence[TokenLogprob]) -> Legacy | None:
    if not found:
        return None
    offsets, at = [], 0
    for each in found:
        offsets.append(at)
        at += len(each.text)
    return Legacy(
        [each.text for each in found],
        [each.logprob for each in found],
        [{other.text: other.logprob for other in each.top} for each in found],
        offsets,
    )


ROUTES = [Route("/v1/completions", unless_gone(create), methods=["POST"])]
