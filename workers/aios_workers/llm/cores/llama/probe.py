"""Find out, at start, whether reading a text again is bit-equal to having written it.

It is in micro-batches below 64 tokens and on one thread. With more threads llama.cpp sums the
attention over 512 and more tokens in as many parts, only for single tokens; with larger
micro-batches another kernel computes prompts. Both are looked at where they would show.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aios_workers.llm.cores.llama.context import MICRO_BATCH_TOKENS, Context, Row

SHORT_TOKENS = 40
LONG_TOKENS = 600
WRITTEN_TOKENS = 8  # of these, as if they had been generated one by one


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe found and what it cost."""

    exact_resume: bool
    cost_ms: float
    prefill_ms_per_token: float


def probe(context: Context) -> ProbeResult:
    """Compare the two ways to the same logits, bit for bit. Leaves every slot empty.

    Costs about 0.5 s, or 8 s with settings that are known to be inexact for long texts.
    """
    began = time.monotonic()
    shape = context.shape
    known_good = shape.threads == 1 and shape.micro_batch_tokens <= MICRO_BATCH_TOKENS
    length = min(SHORT_TOKENS if known_good else LONG_TOKENS, shape.context_tokens)
    ids = [(i * 7919) % context.vocab_size for i in range(1, length + 1)]
    written = _compute(context, 0, ids, pieces=[length - WRITTEN_TOKENS] + [1] * WRITTEN_TOKENS)
    read_from = time.monotonic()
    read = _compute(context, shape.slots - 1, ids, pieces=[length])
    now = time.monotonic()
    for slot in range(shape.slots):
        context.truncate(slot, 0)
    exact = bool(np.array_equal(written, read))
    return ProbeResult(exact, (now - began) * 1_000, (now - read_from) * 1_000 / length)


def _compute(
    context: Context, slot: int, ids: Sequence[int], *, pieces: Sequence[int]
) -> NDArray[np.float32]:
    """Return the last logits of `ids`, computed in pieces (and those in micro-batches)."""
    context.truncate(slot, 0)
    logits: dict[int, NDArray[np.float32]] = {}
    position = 0
    for piece in pieces:
        end = position + piece
        while position < end:
            stop = min(position + context.shape.micro_batch_tokens, end)
            rows = [Row(slot, i, ids[i], i == len(ids) - 1) for i in range(position, stop)]
            logits = context.compute(rows)
            position = stop
    return logits[slot].copy()
