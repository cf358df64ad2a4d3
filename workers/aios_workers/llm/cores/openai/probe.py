"""Finds out, when a core starts, how its endpoint goes on with an unfinished answer.

It is asked as it will be later, for a stream: llama.cpp's server repeats the beginning in an answer
that comes as a whole, and not in a stream.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aios_broker.contract.errors import CoreError, UnsupportedOption
from aios_workers.llm.cores.openai.prefill import (
    MODES,
    Mode,
    judged,
    prefilled,
    seam_of,
    told_apart,
)

logger = logging.getLogger(__name__)

PROBE = (
    {"role": "user", "content": "Write one sentence about the sea, and one about a mountain."},
)
PROBE_TOKENS = 32
TRIES = 2  # of one way: an endpoint may have had a fault of its own

Ask = Callable[[Mapping[str, object]], Awaitable[str]]  # asks, and returns the text of what comes


@dataclass(frozen=True, slots=True)
class Prefilling:
    """How the endpoint goes on with a text: found out, or as its settings say."""

    mode: Mode
    repeats: bool | None = None  # whether the beginning comes again; None: not known


async def probed(ask: Ask, model: str, core: str) -> Prefilling | None:
    """Let the endpoint answer, give it back the beginning, and see whether it goes on.

    Raises:
        CoreError: it does not answer at all.
    """
    content: dict[str, object] = {
        "model": model,
        "messages": list(PROBE),
        "max_tokens": PROBE_TOKENS,
        "temperature": 0,
    }
    answer = await ask(content)
    seam = seam_of(answer)
    if seam is None:
        return None
    for mode in MODES:
        went_on = await _went_on(ask, prefilled(content, mode, answer[:seam]), mode, core)
        verdict = judged(answer, seam, went_on)
        if verdict == "goes on":
            return Prefilling(mode, repeats=False)
        odd = told_apart(answer[:seam])
        if verdict != "no":
            repeated = await _went_on(ask, prefilled(content, mode, odd), mode, core)
            if repeated.startswith(odd):
                return Prefilling(mode, repeats=True)
    return None


async def _went_on(ask: Ask, content: Mapping[str, object], mode: Mode, core: str) -> str:
    """Return what the endpoint says behind a beginning; nothing where it refuses the way."""
    for _ in range(TRIES):
        try:
            return await ask(content)
        except UnsupportedOption as error:
            logger.info("core %s: no prefill by %s: %s", core, mode, error)
            return ""
        except CoreError as error:
            logger.info("core %s: prefill by %s was not answered: %s", core, mode, error)
    return ""
