"""The same requests straight at the server and through the kernel, in turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aios_broker.contract.llm import LlmChat, Message
from benchmarks.gpu.kernel import Kernel, Rules, kernel_on
from benchmarks.gpu.results import Results, quantile, say
from benchmarks.gpu.target import SGLangTarget, text_of, through

QUANTUM_TOKENS = 64
PER_LEVEL = 8  # requests per one in flight, for low levels
LEAST_REQUESTS = 16
LEAST_S = 15.0  # a run is not begun with less
MARGIN_S = 5.0
WORKERS = 2

Row = dict[str, float | int | dict[str, float] | None]
Ask = Callable[[int], Awaitable[tuple[float, int]]]  # its seconds, its tokens


@dataclass(frozen=True, slots=True)
class Levels:
    """What is asked, and how many at once."""

    in_flight: tuple[int, ...]
    requests: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    seed: int


async def overhead(target: SGLangTarget, results: Results, levels: Levels) -> None:
    """Measure both at each level, in turns: A B, B A."""
    rng = random.Random(levels.seed)
    bodies = [
        LlmChat(
            (Message("user", text_of(target.core, rng, levels.prompt_tokens)),),
            max_tokens=levels.new_tokens,
        )
        for _ in range(levels.requests)
    ]
    places = target.places(max(levels.in_flight), WORKERS)
    async with kernel_on(places, Rules("rr", QUANTUM_TOKENS)) as kernel:
        await kernel.chat(LlmChat((Message("user", "warm up"),), max_tokens=4), "warm", 60.0)
        table: dict[str, object] = {}
        for level in levels.in_flight:
            table[str(level)] = await _level(target, kernel, results, levels, bodies, level)
            results.tell("levels", table)


async def _level(
    target: SGLangTarget,
    kernel: Kernel,
    results: Results,
    levels: Levels,
    bodies: Sequence[LlmChat],
    level: int,
) -> dict[str, object]:
    async def straight(number: int) -> tuple[float, int]:
        answer = await target.ask(bodies[number])
        return answer.total_s, len(answer.ids)

    async def by_kernel(number: int) -> tuple[float, int]:
        began_s = time.perf_counter()
        result, _ = await kernel.chat(bodies[number], f"program-{number}", 600.0)
        return time.perf_counter() - began_s, result.usage.output_tokens

    count = min(len(bodies), max(LEAST_REQUESTS, PER_LEVEL * level))
    arms: list[tuple[str, Ask]] = [("direct", straight), ("kernel", by_kernel)]
    rows: dict[str, list[Row]] = {"direct": [], "kernel": []}
    for turn in range(levels.rounds):
        for name, ask in arms if turn % 2 == 0 else arms[::-1]:
            if results.left_s < LEAST_S:
                say(f"{level} in flight, {name}: no time left")
                continue
            await target.refresh()
            rows[name].append(await _run(kernel, ask, count, level, results.left_s - MARGIN_S))
            say(f"{level} in flight, {name}: {rows[name][-1]}")
    return {**rows, "ratios": _ratios(rows)}


async def _run(kernel: Kernel, ask: Ask, count: int, level: int, limit_s: float) -> Row:
    before, began_s = kernel.cpu_s(), time.monotonic()
    works = [lambda number=number: ask(number) for number in range(count)]
    done = [each for each in await through(works, level, limit_s) if each is not None]
    wall_s = time.monotonic() - began_s
    used = {name: round(value - before[name], 2) for name, value in kernel.cpu_s().items()}
    latencies = [seconds for seconds, _ in done]
    return {
        "tokens_per_s": round(sum(tokens for _, tokens in done) / wall_s, 1),
        "failed": count - len(done),
        "wall_s": round(wall_s, 2),
        "p50_s": quantile(latencies, 0.5),
        "p99_s": quantile(latencies, 0.99),
        "cpu_s": used,
    }


def _ratios(rows: dict[str, list[Row]]) -> dict[str, float]:
    """Return kernel / direct, the median over the rounds."""
    found: dict[str, float] = {}
    for key in ("tokens_per_s", "p50_s", "p99_s"):
        pairs = [
            (through_kernel, straight)
            for a, b in zip(rows["kernel"], rows["direct"], strict=False)
            if isinstance(through_kernel := a[key], float) and isinstance(straight := b[key], float)
        ]
        if pairs:
            found[key] = round(statistics.median(a / b for a, b in pairs if b), 4)
    return found
