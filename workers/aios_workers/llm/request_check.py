"""What a core refuses of a request, whoever made it. Pure."""

from __future__ import annotations

from aios_broker.contract.errors import InvalidSyscall, UnsupportedOption
from aios_workers.llm.core import CoreInfo, GenerationRequest


def check_request(request: GenerationRequest, info: CoreInfo) -> None:
    """Refuse what the core would not do.

    Raises:
        UnsupportedOption: an adapter or images that it does not have, too many alternatives.
        InvalidSyscall: a bias on what is not a token.
    """
    core, size = info.capabilities, info.vocabulary_size
    if request.lora is not None and request.lora not in core.adapters:
        raise _unsupported(info, "lora", f"has no adapter {request.lora!r}")
    if request.images and not core.images:
        raise _unsupported(info, "messages", "sees no images")
    if request.logprobs is not None and not 0 <= request.logprobs <= core.max_logprobs:
        raise _unsupported(info, "logprobs", f"gives at most {core.max_logprobs} alternatives")
    for token in request.sampling.logit_bias:
        if token < 0 or (size is not None and token >= size):
            raise InvalidSyscall(
                f"{token} is no token id of core {info.model!r}",
                field="body.logit_bias",
                remedy=f"use ids below {size}",
            )


def _unsupported(info: CoreInfo, option: str, does: str) -> UnsupportedOption:
    return UnsupportedOption(
        f"core {info.model!r} {does}", field=f"body.{option}", remedy="leave it out"
    )
