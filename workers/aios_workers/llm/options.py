"""What a core refuses, and what makes no sense together. Pure; checked before anything runs.

Each check returns what is wrong, or nothing; the first one found is raised. A value that the
contract itself forbids does not come here: it was refused where the syscall came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from aios_broker.contract.errors import ContextTooLong, InvalidSyscall, UnknownCore
from aios_broker.contract.errors import UnsupportedOption as Unsupported
from aios_broker.contract.llm import (
    JsonFormat,
    LlmBody,
    LlmChat,
    LlmCount,
    LlmEmbed,
    Message,
    SamplingOptions,
    given_fields,
)
from aios_workers.llm.beam import alternatives_of
from aios_workers.llm.core import CoreInfo
from aios_workers.llm.nesting import MAX_DEPTH, is_too_deep

Found = Iterator[InvalidSyscall]
Check = Callable[[LlmChat, CoreInfo], Found]

# What the kernel keeps itself, whatever the core. Every other field needs a rule in `_RULES`, or a
# core that names it in `keeps`: what nobody keeps is refused.
KEPT_BY_THE_KERNEL = frozenset(
    {
        "core",
        "max_tokens",
        "stop",
        "stream",
        "return_ids",
        "n",
        "length_penalty",
        "overflow",
        "context",
    }
)
# What changes the choice of tokens: beams are ranked by the model's own probabilities alone.
_NOT_WITH_BEAMS = frozenset({*SamplingOptions.__struct_fields__, "seed", "format", "stream"})


def check_options(body: LlmBody, info: CoreInfo) -> None:
    """Refuse what this core would not do as asked.

    Raises:
        UnknownCore: it names another core.
        UnsupportedOption: this core cannot keep an option.
        InvalidSyscall: options that contradict each other.
    """
    if body.core is not None and body.core != info.model:
        raise UnknownCore(
            f"no core {body.core!r} here",
            field="body.core",
            remedy=f"leave it out, or use {info.model!r}",
        )
    if isinstance(body, LlmCount):
        check_generates(info)
    if isinstance(body, LlmChat):
        check_generates(info)
        for error in _wrong_in_chat(body, info):
            raise error
    elif isinstance(body, LlmEmbed) and not info.capabilities.embeddings:
        raise _unsupported(info, "core", "makes no embeddings", "name a core that does")


def check_generates(info: CoreInfo) -> None:
    """Raise UnsupportedOption where the core makes embeddings alone."""
    if not info.capabilities.generates:
        raise _unsupported(info, "core", "makes embeddings alone", "name a core that generates")


def check_length(prompt_tokens: int, max_tokens: int, info: CoreInfo) -> None:
    """Raise ContextTooLong unless prompt and answer fit."""
    if prompt_tokens + max_tokens > info.context_tokens:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens and the answer may have {max_tokens}; the "
            f"context of core {info.model!r} holds {info.context_tokens} together",
            field="body.messages",
            remedy="shorten the conversation, or ask for fewer max_tokens",
        )


def check_images(messages: Sequence[Message], info: CoreInfo) -> None:
    """Raise UnsupportedOption where a conversation has images that the core does not see."""
    if any(message.images for message in messages) and not info.capabilities.images:
        raise _unsupported(info, "messages", "sees no images", "leave them out")


def _wrong_in_chat(body: LlmChat, info: CoreInfo) -> Found:
    yield from _wrong_beams(body)
    yield from _wrong_tools(body)
    yield from _wrong_format(body)
    yield from _wrong_stop(body)
    yield from _wrong_bias(body, info)
    yield from _wrong_overflow(body)
    for option in given_fields(body):
        if option not in KEPT_BY_THE_KERNEL:
            rule = _RULES.get(option, partial(_missing, option))
            yield from rule(body, info)


# What makes no sense, on any core.


def _wrong_beams(body: LlmChat) -> Found:
    if body.beam_width is None:
        if body.length_penalty != 1.0:
            yield _nonsense(
                "length_penalty", "is of beam search alone", "set beam_width, or leave it out"
            )
        return
    for option in given_fields(body):
        if option in _NOT_WITH_BEAMS:
            yield _nonsense(option, "cannot be had with beam search", "leave it out")
    if calls_tools(body):
        yield _nonsense("tools", "cannot be called in a beam search", "leave beam_width out")
    if body.n > body.beam_width:
        yield _nonsense(
            "n",
            f"{body.n} answers cannot come of {body.beam_width} beams",
            "ask for at most beam_width answers",
        )


def calls_tools(body: LlmChat) -> bool:
    """Whether the answer may be a call."""
    return bool(body.tools) and body.tool_choice != "none"


def _wrong_tools(body: LlmChat) -> Found:
    names = [each.name for each in body.tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        yield _nonsense("tools", f"two tools have the name {twice!r}", "name each tool once")
    if not names and body.tool_choice not in ("auto", "none"):
        yield _nonsense("tool_choice", "there are no tools to choose from", "leave it out")
    if names and body.tool_choice not in ("auto", "none", "required", *names):
        yield _nonsense(
            "tool_choice",
            f"there is no tool {body.tool_choice!r}",
            f"use auto, none, required or one of {', '.join(names[:8])}",
        )
    for place, tool in enumerate(body.tools):
        if tool.parameters.get("type", "object") != "object":
            yield _nonsense(
                f"tools[{place}].parameters",
                "the arguments of a tool are an object",
                'use a schema of {"type": "object"}',
            )
        if is_too_deep(tool.parameters):
            yield _too_deep(f"tools[{place}].parameters")
    if calls_tools(body) and body.format is not None:
        yield _nonsense(
            "format", "an answer that may call tools has its own", "leave one of the two out"
        )


def _wrong_format(body: LlmChat) -> Found:
    if isinstance(body.format, JsonFormat) and is_too_deep(body.format.json_schema):
        yield _too_deep("format.json_schema")


def _wrong_stop(body: LlmChat) -> Found:
    if not body.stop:
        return
    if body.format is not None or calls_tools(body):
        yield _nonsense(
            "stop",
            "would cut an answer whose form is promised",
            "leave it out, or leave out format and tools",
        )


def _wrong_bias(body: LlmChat, info: CoreInfo) -> Found:
    size = info.vocabulary_size
    for token in body.logit_bias:
        if token < 0 or (size is not None and token >= size):
            yield _nonsense(
                "logit_bias",
                f"{token} is no token id of core {info.model!r}",
                f"use ids below {size}" if size is not None else "use ids of its vocabulary",
            )


def _wrong_overflow(body: LlmChat) -> Found:
    if body.overflow == "compact" and any(message.images for message in body.messages):
        yield _nonsense("overflow", "a conversation with images is not compacted", "use refuse")


# What this core does not do. Each check is of a field that is not at its default.


def _missing(option: str, body: LlmChat, info: CoreInfo) -> Found:
    if option in info.capabilities.keeps or (option == "seed" and body.temperature == 0):
        return
    yield _unsupported(
        info, option, f"does not keep {option}", "leave it out, or name a core that keeps it"
    )


def _missing_logprobs(body: LlmChat, info: CoreInfo) -> Found:
    most = info.capabilities.max_logprobs
    if body.logprobs is not None and (most == 0 or body.logprobs > most):
        does = f"gives at most {most} alternatives" if most else "gives no log-probabilities"
        yield _unsupported(info, "logprobs", does, "ask for fewer" if most else "leave it out")


def _missing_beams(body: LlmChat, info: CoreInfo) -> Found:
    most = info.capabilities.max_logprobs
    if body.beam_width is not None and alternatives_of(body.beam_width) > most:
        yield _unsupported(
            info,
            "beam_width",
            f"gives {most} alternatives per token, beam search needs two per beam",
            f"ask for at most {most // 2}" if most > 1 else "leave it out",
        )


def _missing_format(body: LlmChat, info: CoreInfo) -> Found:
    if not info.capabilities.constraints:
        yield _unsupported(info, "format", "cannot be held to a form", "leave it out")


def _missing_tools(body: LlmChat, info: CoreInfo) -> Found:
    core = info.capabilities
    if calls_tools(body) and not (core.constraints or core.tools_template):
        yield _unsupported(info, "tools", "cannot be held to a call", "name another core")


def _missing_choice(body: LlmChat, info: CoreInfo) -> Found:
    if calls_tools(body) and not info.capabilities.constraints:
        yield _unsupported(info, "tool_choice", "cannot be made to call", "use auto")


def _missing_adapter(body: LlmChat, info: CoreInfo) -> Found:
    adapters = info.capabilities.adapters
    if body.lora not in adapters:
        loaded = ", ".join(adapters) or "none"
        yield _unsupported(info, "lora", f"has not loaded it (it has: {loaded})", "use one of them")


def _missing_images(body: LlmChat, info: CoreInfo) -> Found:
    check_images(body.messages, info)
    yield from ()


# Fields that a core keeps in part, or by more than one ability.
_RULES: dict[str, Check] = {
    "messages": _missing_images,
    "logprobs": _missing_logprobs,
    "beam_width": _missing_beams,
    "format": _missing_format,
    "tools": _missing_tools,
    "tool_choice": _missing_choice,
    "lora": _missing_adapter,
}


def _nonsense(option: str, why: str, remedy: str) -> InvalidSyscall:
    return InvalidSyscall(why, field=f"body.{option}", remedy=remedy)


def _too_deep(option: str) -> InvalidSyscall:
    return _nonsense(option, f"is nested more than {MAX_DEPTH} deep", "make it flatter")


def _unsupported(info: CoreInfo, option: str, does: str, remedy: str) -> Unsupported:
    return Unsupported(f"core {info.model!r} {does}", field=f"body.{option}", remedy=remedy)
