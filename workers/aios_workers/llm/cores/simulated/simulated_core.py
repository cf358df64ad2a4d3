"""A simulated core: tokens from a seeded function, speed and memory by configuration.

The next token is a function of the model's seed, of all ids so far and of the sampling values,
so that anything that goes wrong in a resumption changes the answer. Prefill and decode take
the time they are told to, on the loop's clock; the KV memory holds a number of tokens, and a
context that was pushed out of it has to be prefilled again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import Message, Tool
from aios_broker.places import Holder
from aios_workers.llm.core import (
    SAMPLER_KEEPS,
    Capabilities,
    Constraint,
    ContextMemory,
    CoreInfo,
    Embeddings,
    FinishReason,
    GenerationRequest,
    Step,
    unit_vector,
)
from aios_workers.llm.cores.simulated import simulated_model
from aios_workers.llm.cores.simulated.simulated_model import Sampler
from aios_workers.llm.options import check_generation, check_texts

if TYPE_CHECKING:
    from aios_workers.llm.constraint import Compiler, Matcher

Check = Callable[[Constraint, Holder, float | None], Awaitable[None]]

MAX_LOGPROBS = 64
EMBEDDING_SIZE = 32


@dataclass(frozen=True, slots=True)
class SimulatedCoreConfig:
    """What kind of machine is simulated. Speeds in tokens/s; 0: as fast as this computer can."""

    model: str = "simulated"
    name: str = ""  # of the core; none: the model's
    seed: int = 0  # another seed, other weights
    slots: int = 4
    context_tokens: int = 4096
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0  # of each slot
    kv_tokens: int = 65_536  # of all contexts in memory together
    end_probability: float = 0.02  # of each token, to be the last
    adapters: tuple[str, ...] = ()  # each is as another seed


@dataclass(slots=True)
class _Running:
    """One generation under way."""

    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    keep: bool = False
    context_tokens: int = 0


class SimulatedCore:
    """The deterministic core for tests and simulation."""

    def __init__(
        self, config: SimulatedCoreConfig | None = None, *, check: Check | None = None
    ) -> None:
        """`check` refuses constraints that cannot be kept; by default it tries each in a child."""
        self.config = config or SimulatedCoreConfig()
        self._check_constraint = check
        self._running: dict[str, _Running] = {}
        self._kept: OrderedDict[str, int] = OrderedDict()  # request id -> tokens, oldest first
        self._slots = asyncio.Semaphore(self.config.slots)
        self._closed = False
        self._forms: tuple[Check, Compiler] | None = None

    @property
    def info(self) -> CoreInfo:
        """What it is."""
        config = self.config
        return CoreInfo(
            model=config.model,
            fingerprint=f"v1-{config.seed:x}-{config.end_probability}",
            slots=config.slots,
            context_tokens=config.context_tokens,
            capabilities=Capabilities(
                keeps=SAMPLER_KEEPS,
                max_logprobs=MAX_LOGPROBS,
                constraints=True,
                embeddings=True,
                adapters=config.adapters,
            ),
            vocabulary_size=simulated_model.SIZE,
            memory=ContextMemory(tokens=config.kv_tokens),
            name=config.name,
        )

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """End what runs as aborted."""
        self._closed = True
        for running in self._running.values():
            running.aborted.set()

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return the prompt ids of a conversation: one per byte, and marks."""
        return simulated_model.render(messages)

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids."""
        return simulated_model.decode(ids)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return token == simulated_model.END_ID

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return vectors that follow from the texts and the seed."""
        tokens = [len(text.encode("utf-8", "replace")) for text in texts]
        check_texts(texts, tokens, self.info)
        return Embeddings(tuple(map(self._vector, texts)), sum(tokens))

    def _vector(self, text: str) -> tuple[float, ...]:
        material = f"{self.config.seed}/{text}".encode("utf-8", "replace")
        rng = random.Random(hashlib.blake2b(material).digest())
        return unit_vector([rng.gauss(0.0, 1.0) for _ in range(EMBEDDING_SIZE)])

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate one token per step; see the protocol."""
        self._check(request)
        running = self._running[request.request_id] = _Running()
        try:
            matcher = await self._matcher(request)
            async with self._slots:
                async for step in self._generate(request, running, matcher):
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
        check_generation(request, self.info)

    async def _matcher(self, request: GenerationRequest) -> Matcher | None:
        """Return what holds the output to its form. llguidance is loaded where it is needed."""
        if request.constraint is None:
            return None
        from aios_workers.llm.constraint import Compiler, ConstraintChecker  # noqa: PLC0415

        if self._forms is None:
            pieces = simulated_model.constraint_pieces()
            check = self._check_constraint or ConstraintChecker().check
            self._forms = check, Compiler(pieces, (simulated_model.END_ID,), tuple)
        check, compiler = self._forms
        await check(request.constraint, request.holder, request.patience_s)
        return await compiler.begin(request.constraint, request.resume_ids)

    async def _generate(
        self, request: GenerationRequest, running: _Running, matcher: Matcher | None
    ) -> AsyncGenerator[Step, None]:
        cached_tokens = await self._prefill(request, running)
        answer = _Answer(
            Sampler(self._seed_of(request), self.config.end_probability, request), request, matcher
        )
        clock, tokens_per_s = asyncio.get_running_loop().time, self.config.decode_tokens_per_s
        interval_s = 1 / tokens_per_s if tokens_per_s else 0.0
        due_s = clock() + interval_s
        if answer.is_complete:
            yield Step((), "stop", cached_tokens)
            return
        while not running.aborted.is_set():
            await _sleep(due_s - clock(), running.aborted)
            due_s += interval_s  # spaced evenly, without drift
            if tokens_per_s and running.aborted.is_set():
                break
            step = answer.step(cached_tokens)
            running.context_tokens += len(step.ids)
            self._evict()
            yield step
            if step.finish_reason is not None:
                return
            cached_tokens = 0

    def _seed_of(self, request: GenerationRequest) -> int:
        """Return the seed of the weights; an adapter changes them."""
        if request.lora is None:
            return self.config.seed
        digest = hashlib.blake2b(request.lora.encode(), digest_size=8).digest()
        return self.config.seed ^ int.from_bytes(digest, "big")

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


class _Answer:
    """An output in the making."""

    def __init__(
        self, sampler: Sampler, request: GenerationRequest, matcher: Matcher | None
    ) -> None:
        self._sampler = sampler
        self._request = request
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether its form lets nothing be added."""
        return self._matcher is not None and self._matcher.must_end

    def step(self, cached_tokens: int) -> Step:
        """Return one more token, or the end."""
        allowed = None if self._matcher is None else self._matcher.allowed().nonzero()[0].tolist()
        token = self._sampler.next(allowed)
        wanted = self._request.logprobs
        entries = () if wanted is None else (self._sampler.entry(token, wanted),)
        if token == simulated_model.END_ID:
            return Step((), "stop", cached_tokens, entries)
        self._sampler.append_output(token)
        if self._matcher is not None:
            self._matcher.add(token)
        full = self._sampler.output_tokens >= self._request.max_tokens
        reason: FinishReason | None = "length" if full else None
        return Step((token,), "stop" if self.is_complete else reason, cached_tokens, entries)


async def _sleep(seconds: float, aborted: asyncio.Event) -> None:
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await aborted.wait()
