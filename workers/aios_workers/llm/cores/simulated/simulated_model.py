"""What is simulated: the tokens of a model, and how it chooses them.

The tokens are all bytes, some words, and the marks of a chat template. Characters of several bytes
come out in pieces, as they do with real vocabularies, so that whatever reads the output has to put
them together.

The next token is a function of the ids so far, nothing else is remembered. There are three rules.
An answer ends where a hash of the ids says so; a character that was begun is mostly completed; else
one of a few candidates with hashed logits is taken. Seen as logits, a token that a rule wants
stands far above all others.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence

from aios_broker.contract.llm import Message
from aios_workers.llm.core import GenerationRequest, Sampling, ScoredToken

BYTES = 256  # ids 0 to 255 are the bytes themselves
WORDS: tuple[bytes, ...] = tuple(
    word.encode()
    for word in (
        " the",
        " a",
        " queue",
        " waits",
        " worker",
        " runs",
        " and",
        " then",
        " yields",
        " slot",
        " agent",
        " asks",
        " for",
        " of",
        " in",
        " model",
        " tokens",
        " snapshot",
        " resumed",
        " exactly",
        " where",
        " it",
        " was",
        " cut",
        ".",
        ",",
        "!",
        "\n",
        " END",
        " STOP",
        "é",
        " ñandú",
        " 世界",
        " 🚢",
        " naïve",
        " Ω",
    )
)
MARKS = ("system", "user", "assistant", "tool")  # begin a turn; never generated

# Characters that are generated in two tokens: the leading bytes, and what completes them.
SPLIT: tuple[tuple[bytes, bytes], ...] = (
    (b"\xe4\xb8", b"\x96"),  # 世
    (b"\xf0\x9f", b"\x9a\xa2"),  # 🚢
    (b"\xc3", b"\xa9"),  # é
    (b"\xe2", b"\x82\xac"),  # €
)

_FIRST_WORD = BYTES
_FIRST_HEAD = _FIRST_WORD + len(WORDS)
_FIRST_TAIL = _FIRST_HEAD + len(SPLIT)
_FIRST_MARK = _FIRST_TAIL + len(SPLIT)
END_ID = _FIRST_MARK + len(MARKS)  # ends a turn of the prompt, or the answer

# What may follow anything: words and the first halves of split characters.
GENERATED: tuple[int, ...] = tuple(range(_FIRST_WORD, _FIRST_TAIL))

_PIECES: tuple[bytes, ...] = (
    *(bytes([byte]) for byte in range(BYTES)),
    *WORDS,
    *(head for head, _ in SPLIT),
    *(tail for _, tail in SPLIT),
    *(f"<|{mark}|>".encode() for mark in MARKS),
    b"<|end|>",
)


SIZE = len(_PIECES)
_MARK_IDS = range(_FIRST_MARK, SIZE)  # a text that spells a mark is still bytes

CANDIDATES = 8  # tokens that have a chance at each position
MAX_LOGIT = 6.0
MIN_LOGIT = -12.0  # of all other tokens: between this and half of it
WANTED_LOGIT = 40.0  # of the token that a rule wants
COMPLETES = 15 / 16  # how often a character that was begun is completed
_64_BITS = 2**64 - 1
_END, _COMPLETE, _OTHER = 0xE0D, 0xC0, 0x07E5


def constraint_pieces() -> list[bytes]:
    """Return the bytes of all tokens that can be part of a text; marks have none."""
    return [b"" if token in _MARK_IDS else piece for token, piece in enumerate(_PIECES)]


def completing(token: int) -> int | None:
    """Return the id that completes the character which `token` begins; None for whole ones."""
    if _FIRST_HEAD <= token < _FIRST_TAIL:
        return token + len(SPLIT)
    return None


def render(messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the prompt: for each turn its mark, its bytes and the end; then the answer's mark."""
    ids: list[int] = []
    for message in messages:
        ids.append(_FIRST_MARK + MARKS.index(message.role))
        ids.extend(message.content.encode())
        ids.append(END_ID)
    ids.append(_FIRST_MARK + MARKS.index("assistant"))
    return tuple(ids)


def decode(ids: Sequence[int]) -> bytes:
    """Return the bytes of ids, marks included."""
    return b"".join(_PIECES[token] for token in ids)


class Sampler:
    """Chooses the tokens of one generation."""

    def __init__(self, seed: int, end_probability: float, request: GenerationRequest) -> None:
        self._end_below = round(end_probability * 2**64)
        self._sampling = request.sampling
        self._bias = request.sampling.logit_bias
        self._hash = mix(seed & _64_BITS)
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

    def entry(self, token: int, alternatives: int) -> ScoredToken:
        """Return the log-probability of a token that may stand next, and the best ones there."""
        logits = self._all_logits(penalties=False)
        total = math.log(math.fsum(math.exp(logit - WANTED_LOGIT) for logit in logits.values()))
        ranked = sorted(logits, key=lambda each: (-logits[each], each))[:alternatives]

        def logprob(each: int) -> float:
            return logits[each] - WANTED_LOGIT - total

        top = tuple(ScoredToken(each, logprob(each)) for each in ranked)
        return ScoredToken(token, logprob(token), top)

    def append_output(self, token: int) -> None:
        """Add a token to the output."""
        self._append(token)
        self._counts[token] += 1
        self.output_tokens += 1

    def _append(self, token: int) -> None:
        self._hash = mix(self._hash ^ (token + 1))
        self._position += 1
        self._last = token

    def _wanted(self) -> int | None:
        """Return the token that a rule wants, if one does."""
        if mix(self._hash ^ _END) < self._end_below:
            return END_ID
        rest = completing(self._last)
        if rest is not None and unit(mix(self._hash ^ _COMPLETE)) < COMPLETES:
            return rest
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
        after = mix(self._hash ^ _OTHER)
        logits = {token: MIN_LOGIT * (1 - unit(mix(after ^ token)) / 2) for token in range(SIZE)}
        logits.update(self._candidates(penalties=penalties))
        wanted = self._wanted()
        if wanted is not None:
            logits[wanted] = WANTED_LOGIT
        return logits

    def _candidates(self, *, penalties: bool = True) -> dict[int, float]:
        """Return the candidates at this position with their logits."""
        sampling, choices = self._sampling, GENERATED
        logits: dict[int, float] = {}
        for number in range(CANDIDATES):
            bits = mix(self._hash + number)
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
