"""What a core refuses, and what makes no sense together. Pure; checked before anything runs.

The first thing found is raised. A value that the contract itself forbids does not come here: it was
refused where the syscall came in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from aios_broker.contract.errors import (
    ContextTooLong,
    InvalidSyscall,
    UnknownCore,
    UnsupportedOption,
)
from aios_broker.contract.llm import (
    GrammarFormat,
    JsonFormat,
    LlmBody,
    LlmChat,
    LlmCount,
    LlmEmbed,
    Message,
    RegexFormat,
    SamplingOptions,
)
from aios_workers.llm.beam import alternatives_of
from aios_workers.llm.chat.calls import MAX_DEPTH, is_too_deep
from aios_workers.llm.core import Capabilities, CoreInfo, GenerationRequest, given_fields

Found = Iterator[InvalidSyscall]
Shortfall = tuple[str, str]  # what the core does instead, and what to do about it
Rule = Callable[[LlmChat, CoreInfo], Shortfall | None]

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
_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep"


def check_core(body: LlmBody, info: CoreInfo) -> None:
    """Refuse what a stock producer sent to another core: nobody has looked where its name leads.

    Raises:
        UnknownCore: it names another core.
    """
    if body.core not in {None, info.name, info.model}:
        raise UnknownCore(
            f"no core {body.core!r} here",
            field="body.core",
            remedy=f"leave it out, or use {info.name!r}",
        )


def check_options(body: LlmBody, info: CoreInfo) -> None:
    """Refuse what this core would not do as asked.

    Raises:
        UnsupportedOption: this core cannot keep an option.
        InvalidSyscall: options that contradict each other.
    """
    if isinstance(body, LlmChat | LlmCount):
        check_generates(info)
    if isinstance(body, LlmCount) and info.capabilities.text_ids:
        raise _unsupported(info, "texts", "counts no tokens before it is asked", "use another core")
    if isinstance(body, LlmCount) and not (body.texts or body.messages):
        raise _nonsense("texts", "there is nothing to count", "name texts, or messages")
    if isinstance(body, LlmChat):
        for error in _wrong_in_chat(body, info):
            raise error
    elif isinstance(body, LlmEmbed) and not info.capabilities.embeddings:
        raise _unsupported(info, "core", "makes no embeddings", "name a core that does")


def check_generates(info: CoreInfo) -> None:
    """Raise UnsupportedOption where the core makes embeddings alone."""
    if not info.capabilities.generates:
        raise _unsupported(info, "core", "makes embeddings alone", "name a core that generates")


def check_length(prompt_tokens: int, max_tokens: int, info: CoreInfo, *, said: str = "") -> None:
    """Raise ContextTooLong unless prompt and answer fit. `said`: how exact the first number is."""
    if prompt_tokens + max_tokens > info.context_tokens:
        raise ContextTooLong(
            f"the prompt has {said}{prompt_tokens} tokens and the answer may have {max_tokens}; "
            f"the context of core {info.name!r} holds {info.context_tokens} together",
            field="body.messages",
            remedy="shorten the conversation, or ask for fewer max_tokens",
        )


def limit_of(body: LlmChat, prompt_tokens: int, info: CoreInfo) -> int:
    """Return how many tokens an answer may have.

    Raises:
        ContextTooLong: they do not fit; of an answer that may be shortened, not one of them.
    """
    if body.overflow != "shorten":
        check_length(prompt_tokens, body.max_tokens, info)
        return body.max_tokens
    check_length(prompt_tokens, 1, info)
    return min(body.max_tokens, info.context_tokens - prompt_tokens)


def check_images(messages: Sequence[Message], info: CoreInfo) -> None:
    """Raise UnsupportedOption where a conversation has images that the core does not see."""
    if any(message.images for message in messages) and not info.capabilities.images:
        raise _unsupported(info, "messages", "sees no images", "leave them out")


def check_request(request: GenerationRequest, info: CoreInfo) -> None:
    """Refuse what a core would not do of a request, whoever made it.

    Raises:
        UnsupportedOption: an adapter or images that it does not have, too many alternatives.
        InvalidSyscall: a bias on what is not a token.
    """
    core, out = info.capabilities, "leave it out"
    if request.lora is not None and request.lora not in core.adapters:
        raise _unsupported(info, "lora", f"has no adapter {request.lora!r}", out)
    if request.images and not core.images:
        raise _unsupported(info, "messages", "sees no images", out)
    if request.logprobs is not None and not 0 <= request.logprobs <= core.max_logprobs:
        raise _unsupported(info, "logprobs", f"gives at most {core.max_logprobs} alternatives", out)
    for error in _wrong_bias(request.sampling.logit_bias, info):
        raise error


def check_texts(
    texts: Sequence[str], tokens: Sequence[int], info: CoreInfo, *, first: int = 0
) -> None:
    """Refuse texts that cannot be embedded. `first`: the number of the first of them.

    Raises:
        InvalidSyscall: a text is empty.
        ContextTooLong: a text has more tokens than the context.
    """
    for number, (text, count) in enumerate(zip(texts, tokens, strict=True), first):
        if not text:
            raise _nonsense(f"texts[{number}]", "an empty text has no embedding", "leave it out")
        if count > info.context_tokens:
            raise ContextTooLong(
                f"the text has at least {count} tokens, the context of core {info.name!r} holds "
                f"{info.context_tokens}",
                field=f"body.texts[{number}]",
                remedy="split the text",
            )


def _wrong_in_chat(body: LlmChat, info: CoreInfo) -> Found:
    for option, is_wrong, why, remedy in _CONTRADICTIONS:
        if is_wrong(body):
            yield _nonsense(option, why, remedy)
    if body.beam_width is not None:
        yield from _wrong_beams(body, body.beam_width)
    yield from _wrong_tools(body)
    yield from _wrong_bias(body.logit_bias, info)
    for option in given_fields(body):
        if option in _RULES:
            shortfall = _RULES[option](body, info)
            if shortfall is not None:
                yield _unsupported(info, option, *shortfall)
        elif option not in KEPT_BY_THE_KERNEL and not _keeps(body, option, info.capabilities):
            remedy = "leave it out, or name a core that keeps it"
            yield _unsupported(info, option, f"does not keep {option}", remedy)


# What makes no sense, on any core.


def calls_tools(body: LlmChat) -> bool:
    """Whether the answer may be a call."""
    return bool(body.tools) and body.tool_choice != "none"


_CONTRADICTIONS: tuple[tuple[str, Callable[[LlmChat], bool], str, str], ...] = (
    (
        "length_penalty",
        lambda body: body.beam_width is None and body.length_penalty != 1.0,
        "is of beam search alone",
        "set beam_width, or leave it out",
    ),
    (
        "tools",
        lambda body: body.beam_width is not None and calls_tools(body),
        "cannot be called in a beam search",
        "leave beam_width out",
    ),
    (
        "tool_choice",
        lambda body: not body.tools and body.tool_choice not in ("auto", "none"),
        "there are no tools to choose from",
        "leave it out",
    ),
    (
        "format",
        lambda body: calls_tools(body) and isinstance(body.format, RegexFormat | GrammarFormat),
        "no pattern and no grammar holds for an answer that may call tools",
        "give a JSON schema, or leave one of the two out",
    ),
    (
        "format.json_schema",
        lambda body: isinstance(body.format, JsonFormat) and is_too_deep(body.format.json_schema),
        _TOO_DEEP,
        "make it flatter",
    ),
    (
        "stop",
        lambda body: bool(body.stop) and (body.format is not None or calls_tools(body)),
        "would cut an answer whose form is promised",
        "leave it out, or leave out format and tools",
    ),
    (
        "overflow",
        lambda body: body.overflow == "compact" and any(each.images for each in body.messages),
        "a conversation with images is not compacted",
        "use refuse",
    ),
)


def _wrong_beams(body: LlmChat, width: int) -> Found:
    for option in given_fields(body):
        if option in _NOT_WITH_BEAMS:
            yield _nonsense(option, "cannot be had with beam search", "leave it out")
    if body.n > width:
        why = f"{body.n} answers cannot come of {width} beams"
        yield _nonsense("n", why, "ask for at most beam_width answers")


def _wrong_tools(body: LlmChat) -> Found:
    names = [each.name for each in body.tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        yield _nonsense("tools", f"two tools have the name {twice!r}", "name each tool once")
    ids = [each.parameters["$id"] for each in body.tools if "$id" in each.parameters]
    if any(ids.count(each) > 1 for each in ids):
        yield _nonsense("tools", "two tools have schemas of one `$id`", "leave it out of them")
    if names and body.tool_choice not in ("auto", "none", "required", *names):
        yield _nonsense(
            "tool_choice",
            f"there is no tool {body.tool_choice!r}",
            f"use auto, none, required or one of {', '.join(names[:8])}",
        )
    for number, tool in enumerate(body.tools):
        option = f"tools[{number}].parameters"
        if tool.parameters.get("type", "object") != "object":
            why = "the arguments of a tool are an object"
            yield _nonsense(option, why, 'use a schema of {"type": "object"}')
        if is_too_deep(tool.parameters):
            yield _nonsense(option, _TOO_DEEP, "make it flatter")


def _wrong_bias(bias: Mapping[int, float], info: CoreInfo) -> Found:
    size = info.vocabulary_size
    for token in bias:
        if token < 0 or (size is not None and token >= size):
            yield _nonsense(
                "logit_bias",
                f"{token} is no token id of core {info.name!r}",
                f"use ids below {size}" if size is not None else "use ids of its vocabulary",
            )


# What this core does not do. Each rule is asked for a field that is not at its default.


def _keeps(body: LlmChat, option: str, core: Capabilities) -> bool:
    return option in core.keeps or (option == "seed" and body.temperature == 0)


def _logprobs(body: LlmChat, info: CoreInfo) -> Shortfall | None:
    most = info.capabilities.max_logprobs
    if body.logprobs is None or (most > 0 and body.logprobs <= most):
        return None
    if most == 0:
        return "gives no log-probabilities", "leave it out"
    return f"gives at most {most} alternatives", "ask for fewer"


def _beams(body: LlmChat, info: CoreInfo) -> Shortfall | None:
    most = info.capabilities.max_logprobs
    if body.beam_width is not None and info.capabilities.text_ids:
        return "gives no token ids to search with", "leave it out, or name another core"
    if body.beam_width is None or alternatives_of(body.beam_width) <= most:
        return None
    return (
        f"gives {most} alternatives per token, beam search needs two per beam",
        f"ask for at most {most // 2}" if most > 1 else "leave it out",
    )


def _adapter(body: LlmChat, info: CoreInfo) -> Shortfall | None:
    adapters = info.capabilities.adapters
    if body.lora in adapters:
        return None
    return f"has not loaded it (it has: {', '.join(adapters) or 'none'})", "use one of them"


def _unless(able: Callable[[LlmChat, Capabilities], bool], does: str, remedy: str) -> Rule:
    return lambda body, info: None if able(body, info.capabilities) else (does, remedy)


def _holds_either(body: LlmChat, core: Capabilities) -> bool:
    """Whether an answer that may be a call can be held to a form where it is none."""
    return (
        body.tool_choice != "auto" or not body.tools or core.native_calls or "grammar" in core.forms
    )


def _form_of(body: LlmChat) -> str:
    return str(body.format.__struct_config__.tag) if body.format is not None else ""


# Fields that a core keeps in part, or by more than one ability.
_RULES: dict[str, Rule] = {
    "messages": _unless(
        lambda body, core: core.images or not any(each.images for each in body.messages),
        "sees no images",
        "leave them out",
    ),
    "logprobs": _logprobs,
    "beam_width": _beams,
    "format": _unless(
        lambda body, core: (
            core.constraints and _form_of(body) in core.forms and _holds_either(body, core)
        ),
        "cannot be held to such a form",
        "leave it out",
    ),
    "tools": _unless(
        lambda body, core: (
            core.constraints or core.call_format is not None or not calls_tools(body)
        ),
        "cannot be held to a call",
        "name another core",
    ),
    "tool_choice": _unless(
        lambda body, core: core.constraints or core.native_calls or not calls_tools(body),
        "cannot be made to call",
        "use auto",
    ),
    "lora": _adapter,
}


def _nonsense(option: str, why: str, remedy: str) -> InvalidSyscall:
    return InvalidSyscall(why, field=f"body.{option}", remedy=remedy)


def _unsupported(info: CoreInfo, option: str, does: str, remedy: str) -> UnsupportedOption:
    return UnsupportedOption(f"core {info.name!r} {does}", field=f"body.{option}", remedy=remedy)


def check_generation(request: GenerationRequest, info: CoreInfo) -> None:
    """Refuse what does not fit, and what the core would not do.

    Raises:
        ContextTooLong: prompt and answer together do not fit.
        InvalidSyscall: the prompt is empty, or ids are not in the vocabulary.
        UnsupportedOption: an adapter or images that it does not have, too many alternatives.
    """
    check_request(request, info)
    check_length(len(request.prompt_ids), request.max_tokens, info)
    size = info.vocabulary_size
    assert size is not None
    ids = (*request.prompt_ids, *request.resume_ids)
    if not request.prompt_ids or min(ids) < 0 or max(ids) >= size:
        raise InvalidSyscall(
            f"the prompt is empty or has ids that are not in the vocabulary of {size}",
            field="prompt_ids",
            remedy="send ids of this model's tokenizer",
        )
