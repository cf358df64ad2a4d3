"""What is checked: an SGLang server, llama.cpp, or the simulated core; direct, and by workers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.syscall import new_id
from aios_workers.llm.core import Core, GenerationRequest, Sampling
from benchmarks.gpu.direct import Answer, Direct
from benchmarks.gpu.kernel import Place
from benchmarks.gpu.results import say
from benchmarks.gpu.worker import OnLlama, OnSGLang, Simulated

WORDS = ("the", "map", "of", "an", "island", "where", "two", "rivers", "meet", "by", "night")
FAILURES_SAID = 5
MANY_SLOTS = 64  # a worker has no more

T = TypeVar("T")


class Target(Protocol):
    """One that generates, in its own order."""

    core: Core  # renders; started

    async def ask(self, body: LlmChat) -> Answer:
        """Return the answer to a chat, in the target's own order, uninterrupted."""
        ...

    def places(self, slots: int, workers: int) -> list[Place]:
        """Return what workers with so many slots in all run on."""
        ...

    async def refresh(self) -> None:
        """Forget what earlier runs left in memory."""
        ...

    async def counters(self) -> Counter[str]:
        """Return the tokens it read and found so far; of a worker's own core its notes tell."""
        ...

    def contexts_that_fit(self, context_tokens: int, slots: int) -> float:
        """Return how many contexts of a length are in memory at most."""
        ...


class SGLangTarget:
    """A server that is running."""

    def __init__(self, direct: Direct, place: OnSGLang, memory_tokens: int) -> None:
        self.direct = direct
        self.core = place.core()
        self._place = place
        self._memory_tokens = memory_tokens

    async def ask(self, body: LlmChat) -> Answer:
        """Return the answer straight from the server."""
        seeded = self.core.info.capabilities.exact_resume
        ids = self.core.render(body.messages)
        answer = await self.direct.generate(ids, sampling_params(body, seeded=seeded))
        if answer.ids and self.core.is_end(answer.ids[-1]):  # the kernel's answers lack it
            return Answer(answer.ids[:-1], answer.first_s, answer.total_s, answer.cached_tokens)
        return answer

    def places(self, slots: int, workers: int) -> list[Place]:
        """Return as many workers, all on this server."""
        each = min(MANY_SLOTS, max(1, slots // workers))
        place = OnSGLang(
            url=self._place.url,
            slots=each,
            context_tokens=self._place.context_tokens,
            tokenizer=self._place.tokenizer,
        )
        return [place] * workers

    async def refresh(self) -> None:
        """Empty the prefix cache."""
        await self.direct.flush()

    async def counters(self) -> Counter[str]:
        """Return the server's own counters."""
        return await self.direct.counters()

    def contexts_that_fit(self, context_tokens: int, slots: int) -> float:
        """Return how many the server's KV tokens hold."""
        return self._memory_tokens / context_tokens


class CoreTarget:
    """A core in this process, with the kernel's worker on another one of the same."""

    def __init__(self, place: OnLlama | Simulated) -> None:
        self.core = place.core()
        self._place = place
        self._counted: Counter[str] = Counter()

    async def ask(self, body: LlmChat) -> Answer:
        """Return the answer from the core: what it has no slot for waits there, in order."""
        began_s = asyncio.get_running_loop().time()
        request = GenerationRequest(
            new_id(), self.core.render(body.messages), body.max_tokens, sampling_of(body)
        )
        ids, first_s, cached = [], 0.0, 0
        async with aclosing(self.core.generate(request)) as steps:
            async for step in steps:
                if not ids:
                    first_s = asyncio.get_running_loop().time() - began_s
                    cached = step.cached_tokens
                ids += step.ids
        self._counted["prefill_compute"] += len(request.prompt_ids) - cached
        self._counted["prefill_cache"] += cached
        return Answer(tuple(ids), first_s, asyncio.get_running_loop().time() - began_s, cached)

    def places(self, slots: int, workers: int) -> list[Place]:
        """Return as many workers, each with a core of its own: only one is like the direct one."""
        return [self._place] * workers

    async def refresh(self) -> None:
        """Begin with an empty core."""
        await self.core.close()
        self.core = self._place.core()
        await self.core.start()

    async def counters(self) -> Counter[str]:
        """Return what the core in this process has read."""
        return self._counted.copy()

    def contexts_that_fit(self, context_tokens: int, slots: int) -> float:
        """Return how many its memory holds, or its slots and the states that are kept."""
        memory = self.core.info.memory
        return (memory.tokens or 0) / context_tokens + (slots if memory.beside_slots else 0)


def sampling_params(body: LlmChat, *, seeded: bool) -> dict[str, object]:
    """Return what the kernel's core asks SGLang for, of the same chat."""
    params: dict[str, object] = {
        "max_new_tokens": body.max_tokens,
        "min_new_tokens": 0,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k or -1,
        "min_p": 0.0,
        "ignore_eos": False,
        "n": 1,
    }
    if seeded and body.temperature > 0:
        params["sampling_seed"] = body.seed
    return params


def sampling_of(body: LlmChat) -> Sampling:
    """Return it as a core knows it."""
    return Sampling(
        seed=body.seed or 0, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k
    )


def text_of(core: Core, rng: random.Random, tokens: int) -> str:
    """Return random words whose prompt has so many tokens, the template's included, or few less."""

    def size(text: str) -> int:
        return len(core.render((Message("user", text),)))

    words = rng.choices(WORDS, k=max(1, tokens))
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if size(" ".join(words[:middle])) <= tokens else (low, middle - 1)
        )
    return " ".join(words[:low])


async def all_bounded(
    works: Iterable[Coroutine[object, object, T]], limit_s: float
) -> list[T | None]:
    """Run all; what fails, or is not done in time, is None. Failures are said."""
    tasks = [asyncio.ensure_future(work) for work in works]
    _, late = await asyncio.wait(tasks, timeout=max(1.0, limit_s))
    for task in late:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    failures = Counter(
        f"{type(end).__name__}: {end}"[:300] for end in ends if isinstance(end, Exception)
    )
    for failure, count in failures.most_common(FAILURES_SAID):
        say(f"FAILED {count} times: {failure}")
    return [None if isinstance(end, BaseException) else end for end in ends]


async def through(
    works: Sequence[Callable[[], Awaitable[T]]], in_flight: int, limit_s: float
) -> list[T | None]:
    """Run all in order, so many at a time; what fails or comes too late is None."""
    gate = asyncio.Semaphore(in_flight)

    async def one(work: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await work()

    return await all_bounded([one(work) for work in works], limit_s)
