"""A core of a few letters that tells the probabilities of all its tokens.

Its logits follow from all ids so far.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from aios_broker.contract.errors import CoreError
from aios_workers.llm.core import (
    Capabilities,
    CoreInfo,
    Embeddings,
    GenerationRequest,
    ScoredToken,
    Step,
)
from aios_workers.llm.cores.simulated.simulated_model import END_ID
from tests.scripted_core import ObedientCore

LETTERS = tuple("abcdefghij .é".encode())
MAX_LOGPROBS = 16


@dataclass(frozen=True, slots=True)
class Scores:
    """The log-probabilities at one place, best first; equal ones by id."""

    ranked: tuple[tuple[int, float], ...]

    @classmethod
    def after(cls, ids: Sequence[int]) -> Scores:
        """Return those that follow these ids."""
        rng = random.Random(str(tuple(ids)))
        logits = {token: round(rng.uniform(0, 4), 1) for token in LETTERS}
        logits[END_ID] = round(rng.uniform(0, 3.6), 1)
        total = math.log(sum(map(math.exp, logits.values())))
        logprobs = {token: logit - total for token, logit in logits.items()}
        return cls(tuple(sorted(logprobs.items(), key=lambda each: (-each[1], each[0]))))

    def entry(self, token: int, count: int) -> ScoredToken:
        """Return what a step carries for a token."""
        top = tuple(ScoredToken(other, logprob) for other, logprob in self.ranked[:count])
        return ScoredToken(token, dict(self.ranked)[token], top)


class ScoredCore(ObedientCore):
    """Greedy; counts what it was asked."""

    def __init__(self, *, failures: Sequence[int] = ()) -> None:
        super().__init__()
        self._failures = set(failures)  # places in the order of requests

    @property
    def info(self) -> CoreInfo:
        """What it is."""
        able = Capabilities(max_logprobs=MAX_LOGPROBS, embeddings=True)
        return replace(super().info, capabilities=able, fingerprint="scored")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate the best token at each place."""
        number = len(self.requests)
        self.begin(request)
        ids, made = [*request.prompt_ids, *request.resume_ids], len(request.resume_ids)
        while made < request.max_tokens:
            await asyncio.sleep(0)
            if self.is_aborted(request):
                return
            if number in self._failures:
                raise CoreError("it broke")
            scores = Scores.after(ids)
            token = scores.ranked[0][0]
            wanted = request.logprobs
            entries = () if wanted is None else (scores.entry(token, wanted),)
            if token == END_ID:
                yield Step((), "stop", logprobs=entries)
                return
            ids.append(token)
            made += 1
            yield Step((token,), "length" if made == request.max_tokens else None, 0, entries)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return a vector of two numbers per text."""
        angles = [random.Random(text).random() for text in texts]
        vectors = tuple((math.cos(angle), math.sin(angle)) for angle in angles)
        return Embeddings(vectors, sum(map(len, texts)))
