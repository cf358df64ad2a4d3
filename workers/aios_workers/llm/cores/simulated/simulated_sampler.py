"""How SimulatedCore chooses tokens: a function of the ids so far, nothing else is remembered.

The model has three rules. An answer ends where a hash of the ids says so; a character that was
begun is mostly completed; else one of a few candidates with hashed logits is taken. Seen as
logits, a token that a rule wants stands far above all others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

from aios_broker.contract.llm import PENALTIES
from aios_broker.contract.reply import Alternative, TokenLogprob
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.simulated import simulated_vocabulary as vocabulary

# The options that it keeps, by their names in the contract.
KEPT = PENALTIES | {"temperature", "top_p", "top_k", "min_p", "logit_bias", "seed"}

CANDIDATES = 8  # tokens that have a chance at each position
MAX_LOGIT = 6.0
MIN_LOGIT = -12.0  # of all other tokens: between this and half of it
WANTED_LOGIT = 40.0  # of the token that a rule wants
COMPLETES = 15 / 16  # how often a character that was begun is completed
_64_BITS = 2**64 - 1
_END, _COMPLETE, _OTHER = 0xE0D, 0xC0, 0x07E5


class Sampler:
    """Chooses the tokens of one generation."""

    def __init__(self, seed: int, end_probability: float, request: GenerationRequest) -> None:
        self._end_below = round(end_probability * 2**64)
        self._sampling = request.sampling
        self._bias = request.sampling.logit_bias
        self._state = mix(seed & _64_BITS)
        self._position = 0
        self._last = -1
        self._counts: Counter[int] = Counter()
        self.output_tokens = 0
        for token in request.prompt_ids:
            self._append(token)
        for token in request.resume_ids:
            self.append_output(token)

    def next(self, allowed: Collection[int] | None = None) -> int:
        """Return the next id; `END_ID`: the answer ends here."""
        if allowed is None and not self._bias:
            wanted = self._wanted()
            return wanted if wanted is not None else self._choose(self._candidates())
        logits = self._all_logits()
        for token, bias in self._bias.items():
            logits[token] += bias
        if allowed is not None:
            logits = {token: logits[token] for token in allowed}
        return self._choose(logits)

    def entry(self, token: int, alternatives: int) -> TokenLogprob:
        """Return the log-probability of a token that may stand next, and the best ones there."""
        logits = self._all_logits(penalties=False)
        total = math.log(math.fsum(math.exp(logit - WANTED_LOGIT) for logit in logits.values()))
        ranked = sorted(logits, key=lambda each: (-logits[each], each))[:alternatives]

        def logprob(each: int) -> float:
            return logits[each] - WANTED_LOGIT - total

        def text(each: int) -> str:
            return vocabulary.decode((each,)).decode("utf-8", "replace")

        top = tuple(Alternative(each, logprob(each), text(each)) for each in ranked)
        return TokenLogprob(token, logprob(token), text(token), top)

    def append_output(self, token: int) -> None:
        """Add a token to the output."""
        self._append(token)
        self._counts[token] += 1
        self.output_tokens += 1

    def _append(self, token: int) -> None:
        self._state = mix(self._state ^ (token + 1))
        self._position += 1
        self._last = token

    def _wanted(self) -> int | None:
        """Return the token that a rule wants, if one does."""
        if mix(self._state ^ _END) < self._end_below:
            return vocabulary.END_ID
        completing = vocabulary.completing(self._last)
        if completing is not None and unit(mix(self._state ^ _COMPLETE)) < COMPLETES:
            return completing
        return None

    def _choose(self, logits: dict[int, float]) -> int:
        sampling = self._sampling
        ranked = sorted(logits, key=lambda token: (-logits[token], token))
        if sampling.temperature == 0.0:
            return ranked[0]
        if sampling.top_k:
            ranked = ranked[: sampling.top_k]
        ranked = _likely(_nucleus(ranked, logits, sampling), logits, sampling)
        noise = mix((sampling.seed ^ mix(self._position)) & _64_BITS)
        gumbel = {token: -math.log(-math.log(unit(mix(noise ^ token)))) for token in ranked}
        return max(ranked, key=lambda token: logits[token] / sampling.temperature + gumbel[token])

    def _all_logits(self, *, penalties: bool = True) -> dict[int, float]:
        """Return the logits of all tokens at this position."""
        state = mix(self._state ^ _OTHER)
        logits = {
            token: MIN_LOGIT * (1 - unit(mix(state ^ token)) / 2)
            for token in range(vocabulary.SIZE)
        }
        logits.update(self._candidates(penalties=penalties))
        wanted = self._wanted()
        if wanted is not None:
            logits[wanted] = WANTED_LOGIT
        return logits

    def _candidates(self, *, penalties: bool = True) -> dict[int, float]:
        """Return the candidates at this position with their logits."""
        sampling, choices = self._sampling, vocabulary.GENERATED
        logits: dict[int, float] = {}
        for number in range(CANDIDATES):
            bits = mix(self._state + number)
            token = choices[bits % len(choices)]
            logit = MAX_LOGIT * unit(mix(bits))
            seen = self._counts[token]
            if seen and penalties:
                logit /= sampling.repetition_penalty
                logit -= sampling.presence_penalty + sampling.frequency_penalty * seen
            logits[token] = logit
        return logits


def _nucleus(ranked: list[int], logits: dict[int, float], sampling: Sampling) -> list[int]:
    """Return the most likely ids that together have probability `top_p`."""
    if sampling.top_p >= 1.0:
        return ranked
    best = logits[ranked[0]]
    weights = [math.exp((logits[token] - best) / sampling.temperature) for token in ranked]
    left = sampling.top_p * math.fsum(weights)  # sum rounds otherwise before Python 3.12
    kept: list[int] = []
    for token, weight in zip(ranked, weights, strict=True):
        kept.append(token)
        left -= weight
        if left <= 0:
            break
    return kept


def _likely(ranked: list[int], logits: dict[int, float], sampling: Sampling) -> list[int]:
    """Return the ids with at least `min_p` of the best one's probability."""
    if sampling.min_p <= 0.0:
        return ranked
    least = logits[ranked[0]] + math.log(sampling.min_p) * sampling.temperature
    return [token for token in ranked if logits[token] >= least]


def mix(value: int) -> int:
    """Return 64 bits that depend on all bits of `value` (SplitMix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _64_BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return value ^ (value >> 31)


def unit(bits: int) -> float:
    """Return a number between 0 and 1, both excluded."""
    return ((bits >> 11) + 0.5) / 2**53
