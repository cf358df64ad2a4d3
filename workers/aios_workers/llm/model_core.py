"""A simulated core: tokens from a seeded function, speed and memory by configuration.

The next token is a function of the model's seed, of all ids so far and of the sampling values,
so that anything that goes wrong in a resumption changes the answer. Prefill and decode take
the time they are told to, on the loop's clock; the KV memory holds a number of tokens, and a
context that was pushed out of it has to be prefilled again.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from aios_broker.contract.errors import ContextTooLong, CoreError, UnsupportedOption
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm import model_vocabulary as vocabulary
from aios_workers.llm.core import CoreInfo, Embeddings, GenerationRequest, Sampling, Step

CANDIDATES = 8  # tokens that have a chance at each position
MAX_LOGIT = 6.0
COMPLETES = 15 / 16  # how often a character that was begun is completed
_64_BITS = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ModelCoreConfig:
    """What kind of machine is simulated. Speeds in tokens/s; 0: as fast as this computer can."""

    model: str = "model-core"
    seed: int = 0  # another seed, other weights
    slots: int = 4
    context_tokens: int = 4096
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0  # of each slot
    kv_tokens: int = 65_536  # of all contexts in memory together
    end_probability: float = 0.02  # of each token, to be the last


@dataclass(slots=True)
class _Running:
    """One generation under way."""

    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    keep: bool = False
    context_tokens: int = 0


class ModelCore:
    """The deterministic core for tests and simulation."""

    def __init__(self, config: ModelCoreConfig | None = None) -> None:
        self.config = config or ModelCoreConfig()
        self._running: dict[str, _Running] = {}
        self._kept: OrderedDict[str, int] = OrderedDict()  # request id -> tokens, oldest first
        self._slots = asyncio.Semaphore(self.config.slots)
        self._closed = False

    @property
    def info(self) -> CoreInfo:
        """What it is."""
        config = self.config
        return CoreInfo(
            model=config.model, fingerprint=f"v1-{config.seed:x}-{config.end_probability}",
            slots=config.slots, context_tokens=config.context_tokens,
        )  # fmt: skip

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """End what runs as aborted."""
        self._closed = True
        for running in self._running.values():
            running.aborted.set()

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return the prompt ids of a conversation: one per byte, and marks."""
        return vocabulary.render(messages)

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids."""
        return vocabulary.decode(ids)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return token == vocabulary.END_ID

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Refuse: see `Capabilities.embeddings`."""
        raise UnsupportedOption(
            f"core {self.info.model!r} makes no embeddings", field="body.core",
            remedy="name a core that does",
        )  # fmt: skip

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate one token per step; see the protocol."""
        self._check(request)
        running = self._running[request.request_id] = _Running()
        try:
            async with self._slots:
                async for step in self._generate(request, running):
                    yield step
        finally:
            if self._running.get(request.request_id) is running:
                del self._running[request.request_id]
            if running.keep:
                self._kept[request.request_id] = running.context_tokens
                self._evict()

    async def abort(self, request_id: str, *, keep: bool) -> None:
        """End a generation at its next token."""
        running = self._running.get(request_id)
        if running is None:
            if not keep:
                self._kept.pop(request_id, None)
            return
        running.keep = keep
        running.aborted.set()

    async def health(self) -> None:
        """Return, unless it was closed."""
        if self._closed:
            raise CoreError("the core was closed", remedy="start a new one")

    @property
    def resident_tokens(self) -> int:
        """How many tokens of context are in the simulated KV memory."""
        running = sum(each.context_tokens for each in self._running.values())
        return running + sum(self._kept.values())

    def _check(self, request: GenerationRequest) -> None:
        if self._closed:
            raise CoreError("the core was closed", remedy="start a new one")
        if request.request_id in self._running:
            raise CoreError(f"generation {request.request_id} is running already")
        wanted = len(request.prompt_ids) + request.max_tokens
        if wanted > self.config.context_tokens:
            raise ContextTooLong(
                f"prompt and answer have {wanted} tokens, the context holds "
                f"{self.config.context_tokens}", remedy="shorten the conversation",
            )  # fmt: skip

    async def _generate(
        self, request: GenerationRequest, running: _Running
    ) -> AsyncGenerator[Step, None]:
        cached_tokens = await self._prefill(request, running)
        sampler = _Sampler(self.config, request)
        pace = _Pace(self.config.decode_tokens_per_s)
        while not running.aborted.is_set():
            await pace.next(running.aborted)
            if self.config.decode_tokens_per_s and running.aborted.is_set():
                break
            token = sampler.next()
            if token is None:
                yield Step((), "stop", cached_tokens)
                return
            running.context_tokens += 1
            self._evict()
            full = sampler.output_tokens >= request.max_tokens
            yield Step((token,), "length" if full else None, cached_tokens)
            if full:
                return
            cached_tokens = 0

    async def _prefill(self, request: GenerationRequest, running: _Running) -> int:
        """Take the time that the tokens cost which are not in memory; return those that are."""
        total = len(request.prompt_ids) + len(request.resume_ids)
        cached = min(self._kept.pop(request.request_id, 0), total)
        running.context_tokens = total
        self._evict()
        if self.config.prefill_tokens_per_s:
            cost_s = (total - cached) / self.config.prefill_tokens_per_s
            await _sleep(cost_s, running.aborted)
        return cached

    def _evict(self) -> None:
        """Push the contexts that were kept longest out of memory; those that run stay."""
        while self._kept and self.resident_tokens > self.config.kv_tokens:
            self._kept.popitem(last=False)


class _Pace:
    """Spaces tokens evenly, without drift."""

    def __init__(self, tokens_per_s: float) -> None:
        self._interval_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self._clock = asyncio.get_running_loop().time
        self._next_s = self._clock() + self._interval_s

    async def next(self, aborted: asyncio.Event) -> None:
        """Wait until the next token is due, or the generation is aborted."""
        if not self._interval_s:
            await asyncio.sleep(0)
            return
        await _sleep(self._next_s - self._clock(), aborted)
        self._next_s += self._interval_s


async def _sleep(seconds: float, aborted: asyncio.Event) -> None:
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await aborted.wait()
    except TimeoutError:
        pass


class _Sampler:
    """Chooses tokens: a function of the ids so far, nothing else is remembered."""

    def __init__(self, config: ModelCoreConfig, request: GenerationRequest) -> None:
        self._end_below = round(config.end_probability * 2**64)
        self._sampling = request.sampling
        self._state = _mix(config.seed & _64_BITS)
        self._position = 0
        self._last = -1
        self._counts: Counter[int] = Counter()
        self.output_tokens = 0
        for token in request.prompt_ids:
            self._append(token)
        for token in request.resume_ids:
            self._append_output(token)

    def next(self) -> int | None:
        """Return the next id, or None: the answer ends here."""
        if _mix(self._state ^ 0xE0D) < self._end_below:
            return None
        completing = vocabulary.completing(self._last)
        if completing is not None and _unit(_mix(self._state ^ 0xC0)) < COMPLETES:
            token = completing
        else:
            token = self._choose()
        self._append_output(token)
        return token

    def _append(self, token: int) -> None:
        self._state = _mix(self._state ^ (token + 1))
        self._position += 1
        self._last = token

    def _append_output(self, token: int) -> None:
        self._append(token)
        self._counts[token] += 1
        self.output_tokens += 1

    def _choose(self) -> int:
        logits = self._logits()
        sampling = self._sampling
        ranked = sorted(logits, key=lambda token: (-logits[token], token))
        if sampling.temperature == 0.0:
            return ranked[0]
        if sampling.top_k:
            ranked = ranked[: sampling.top_k]
        ranked = _nucleus(ranked, logits, sampling)
        noise = _mix((sampling.seed ^ _mix(self._position)) & _64_BITS)
        gumbel = {token: -math.log(-math.log(_unit(_mix(noise ^ token)))) for token in ranked}
        return max(ranked, key=lambda token: logits[token] / sampling.temperature + gumbel[token])

    def _logits(self) -> dict[int, float]:
        """Return the candidates at this position with their logits, penalties applied."""
        sampling, choices = self._sampling, vocabulary.GENERATED
        logits: dict[int, float] = {}
        for number in range(CANDIDATES):
            bits = _mix(self._state + number)
            token = choices[bits % len(choices)]
            logit = MAX_LOGIT * _unit(_mix(bits))
            seen = self._counts[token]
            if seen:
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
    left = sampling.top_p * sum(weights)
    kept: list[int] = []
    for token, weight in zip(ranked, weights, strict=True):
        kept.append(token)
        left -= weight
        if left <= 0:
            break
    return kept


def _mix(value: int) -> int:
    """Return 64 bits that depend on all bits of `value` (SplitMix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _64_BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return value ^ (value >> 31)


def _unit(bits: int) -> float:
    """Return a number between 0 and 1, both excluded."""
    return ((bits >> 11) + 0.5) / 2**53
