"""From a generation to what SGLang's `/generate` is asked; what it would not keep is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aios_broker.contract.errors import ContextTooLong, InvalidSyscall, UnsupportedOption
from aios_broker.contract.llm import PENALTIES, given_fields
from aios_workers.llm.constraint import FIELDS
from aios_workers.llm.core import Constraint, CoreInfo, GenerationRequest, Sampling
from aios_workers.llm.cores.sglang.description import Description
from aios_workers.llm.cores.sglang.forms import asked_form, missing_form

NO_TOP_K = -1
# The options that it is told, by their names in the contract, which are the server's too. None:
# left out.
_TOLD: dict[str, Callable[[Sampling], object]] = {
    "temperature": lambda asked: asked.temperature,
    "top_p": lambda asked: asked.top_p,
    "top_k": lambda asked: asked.top_k or NO_TOP_K,
    "min_p": lambda asked: asked.min_p,
    "frequency_penalty": lambda asked: asked.frequency_penalty,
    "presence_penalty": lambda asked: asked.presence_penalty,
    "repetition_penalty": lambda asked: asked.repetition_penalty,
    "logit_bias": lambda asked: {str(id_): bias for id_, bias in asked.logit_bias.items()} or None,
}
_CHANGE_LOGPROBS = PENALTIES | {"logit_bias"}


def kept_options(server: Description) -> frozenset[str]:
    """Return the options that a server keeps. It draws by a seed in deterministic inference alone.

    The server counts penalties from the beginning of a request: they are lost by a cut.
    """
    return frozenset(_TOLD) | ({"seed"} if server.enable_deterministic_inference else set())


def check_request(
    request: GenerationRequest,
    info: CoreInfo,
    *,
    original_logprobs: bool,
    grammar_backend: str | None = None,
) -> None:
    """Raise for what this server would not do as asked.

    A token id beyond the vocabulary has to be found here: it ends an SGLang server.

    Args:
        request: The generation.
        info: The core's.
        original_logprobs: Whether log-probabilities are those before temperature.
        grammar_backend: What holds the server's answers to a form.

    Raises:
        ContextTooLong: Prompt and answer do not fit.
        InvalidSyscall: The prompt is empty, or ids are not in the vocabulary.
        UnsupportedOption: An option does not hold on this server.
    """
    if len(request.prompt_ids) + request.max_tokens > info.context_tokens:
        raise ContextTooLong(
            f"the prompt has {len(request.prompt_ids)} tokens and the answer may have "
            f"{request.max_tokens}, together more than the {info.context_tokens} of this core's "
            f"context",
            field="body.messages",
            remedy="shorten the messages or ask for fewer max_tokens",
        )
    _check_ids(request, info.vocabulary_size)
    if request.constraint is not None:
        _check_form(request, request.constraint, info, grammar_backend)
    if request.images:
        raise _unsupported("sees no images", "messages", info)
    if request.lora is not None and request.lora not in info.capabilities.adapters:
        raise _unsupported(f"has no adapter {request.lora!r}", "lora", info)
    penalises = not PENALTIES.isdisjoint(given_fields(request.sampling))
    if request.resume_ids and penalises:
        raise _unsupported("does not keep penalties across a cut", "frequency_penalty", info)
    if request.logprobs is not None:
        _check_logprobs(request, request.logprobs, info, original=original_logprobs)


def generate_body(request: GenerationRequest, rid: str, server: Description) -> dict[str, Any]:
    """Return the body of a `/generate` that goes on from `resume_ids`.

    Args:
        request: The generation.
        rid: Its id on the server, of fixed length: an abort matches by prefix.
        server: What is asked. It draws by seed and position in deterministic inference alone.
    """
    seeded = server.enable_deterministic_inference
    body: dict[str, Any] = {
        "rid": rid,
        "input_ids": [*request.prompt_ids, *request.resume_ids],
        "stream": True,
        "sampling_params": _sampling_params(
            request.sampling, request.max_tokens - len(request.resume_ids), seeded=seeded
        ),
    }
    if request.constraint is not None:
        body["sampling_params"] |= asked_form(request.constraint, server.forms_by)
    if request.logprobs is not None:
        body |= {"return_logprob": True, "top_logprobs_num": request.logprobs}
    if request.lora is not None:
        body["lora_path"] = request.lora
    return body


def _sampling_params(sampling: Sampling, max_new_tokens: int, *, seeded: bool) -> dict[str, Any]:
    """Say every value: a server may have defaults of its own. Stop strings are the kernel's."""
    told = {option: tell(sampling) for option, tell in _TOLD.items()}
    params = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": 0,
        "ignore_eos": False,
        "n": 1,
        **{option: value for option, value in told.items() if value is not None},
    }
    if seeded and sampling.temperature > 0:
        params["sampling_seed"] = sampling.seed
    return params


def _check_ids(request: GenerationRequest, vocabulary_size: int | None) -> None:
    assert vocabulary_size is not None
    ids = (*request.prompt_ids, *request.resume_ids, *request.sampling.logit_bias)
    if not request.prompt_ids or min(ids) < 0 or max(ids) >= vocabulary_size:
        raise InvalidSyscall(
            f"the prompt is empty or has ids that are not in the vocabulary of {vocabulary_size}",
            field="prompt_ids",
            remedy="send ids of this model's tokenizer",
        )


def _check_form(
    request: GenerationRequest, constraint: Constraint, info: CoreInfo, backend: str | None
) -> None:
    missing = missing_form(constraint, backend)
    if missing is not None:
        raise UnsupportedOption(
            f"core {info.model!r} {missing}",
            field=FIELDS[constraint.kind],
            remedy="start the server with --grammar-backend llguidance, or name another core",
        )
    if request.resume_ids:
        raise _unsupported("does not keep a form across a cut", "format", info)


def _check_logprobs(
    request: GenerationRequest, alternatives: int, info: CoreInfo, *, original: bool
) -> None:
    sampling = request.sampling
    if alternatives > info.capabilities.max_logprobs:
        most = info.capabilities.max_logprobs
        raise _unsupported(f"gives at most {most} alternatives", "logprobs", info)
    changed = not _CHANGE_LOGPROBS.isdisjoint(given_fields(sampling))
    if changed or request.constraint is not None:
        raise _unsupported(
            "gives log-probabilities after penalties, bias and forms only", "logprobs", info
        )
    if sampling.temperature not in (0.0, 1.0) and not original:
        raise _unsupported(
            "gives log-probabilities after temperature (start it with "
            "SGLANG_RETURN_ORIGINAL_LOGPROB=1)",
            "logprobs",
            info,
        )


def _unsupported(what: str, option: str, info: CoreInfo) -> UnsupportedOption:
    return UnsupportedOption(
        f"core {info.model!r} {what}",
        field=f"body.{option}",
        remedy="leave it out, or name another core",
    )
