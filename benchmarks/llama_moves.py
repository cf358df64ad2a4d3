"""What it costs to go on with a generation in another process, with and without a state store.

    python benchmarks/llama_moves.py [--rounds 5]

Prints tables for docs/decisions/0010: the time to the first new token after a move, by length of
the context, and what the writing costs the core that hands its slot over. Each round does the same
with all cores, one after the other, on contexts that no round has in common. About 5 minutes on two
shared cores; uses about 1.5 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from aios_broker.contract.llm import Message
from aios_broker.contract.syscall import new_id
from aios_local.embedded.state import SHARED_MEMORY
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore

LENGTHS = (128, 512, 1_024)
SAMPLING = Sampling(temperature=0.9, top_p=0.95, seed=11)
FILLER = "Request 4711 waited 12.5 ms, ran 80 ms, yielded its slot and was resumed elsewhere. "
TEMPLATE_TOKENS = 40  # more than the template and the number of the round take
ANSWER_TOKENS = 400  # more than is ever made


@dataclass(frozen=True, slots=True)
class Cores:
    """The first shares a folder with the second; the others share with nobody."""

    writer: LlamaCppCore
    reader: LlamaCppCore
    lone_writer: LlamaCppCore
    lone_reader: LlamaCppCore


@dataclass(frozen=True, slots=True)
class Round:
    """Times of one round, in ms."""

    with_store_ms: float
    without_ms: float
    cut_beside_writing_ms: float
    cut_alone_ms: float
    writing_cpu_ms: float
    lone_cpu_ms: float


async def measure(cores: Cores, length: int, number: int) -> Round:
    """Suspend a generation with a context of `length` tokens and go on with it elsewhere."""
    request = _request(cores.writer, length, number)
    cuts, cpus, outputs = [], [], []
    for core in (cores.writer, cores.lone_writer):
        output = await _run(core, request, tokens=4)
        await _written(core)
        before_ms = _cpu_ms(core)
        cuts.append(await _handed_over_ms(core, request, output))
        await _written(core)
        cpus.append(_cpu_ms(core) - before_ms)
        outputs.append(output)
    # A core may be a token ahead of being told to stop.
    assert all(a == b for a, b in zip(*outputs, strict=False)), "the cores differ"
    resumed = replace(request, resume_ids=outputs[0])
    moved = [await _first_token(core, resumed) for core in (cores.reader, cores.lone_reader)]
    assert moved[0][1] == moved[1][1], "the resumed answers differ"
    return Round(moved[0][0], moved[1][0], cuts[0], cuts[1], cpus[0], cpus[1])


def _request(core: LlamaCppCore, length: int, number: int) -> GenerationRequest:
    text = f"Round {number} of {length}. " + FILLER * (length // 16 + 1)
    ids = core.render([Message("user", text)])
    assert len(ids) > length
    # The end of the template stays: what follows is an answer.
    ids = ids[: length - TEMPLATE_TOKENS] + ids[-TEMPLATE_TOKENS:]
    return GenerationRequest(new_id(), ids, ANSWER_TOKENS, SAMPLING)


async def _run(core: LlamaCppCore, request: GenerationRequest, *, tokens: int) -> tuple[int, ...]:
    """Generate some tokens and suspend the generation."""
    output: list[int] = []
    async with aclosing(core.generate(request)) as steps:
        async for step in steps:
            output.extend(step.ids)
            if len(output) == tokens:
                await core.abort(request.request_id, keep=True)
    return tuple(output)


async def _handed_over_ms(
    core: LlamaCppCore, request: GenerationRequest, output: Sequence[int]
) -> float:
    """Return the time from a suspension to the first token of the next one in the slot."""
    began = 0.0
    resumed = replace(request, resume_ids=tuple(output))
    async with aclosing(core.generate(resumed)) as steps:
        async for _ in steps:
            if not began:
                began = time.perf_counter()
                await core.abort(request.request_id, keep=True)
    following = GenerationRequest(new_id(), core.render([Message("user", "Hi.")]), 1, SAMPLING)
    async for _ in core.generate(following):
        pass
    return (time.perf_counter() - began) * 1_000


async def _written(core: LlamaCppCore) -> None:
    """Wait until the core has told of what it wrote."""
    before = None
    while before != core.state_counts:
        before = core.state_counts
        await asyncio.sleep(0.15)  # it tells every 50 ms


async def _first_token(
    core: LlamaCppCore, request: GenerationRequest
) -> tuple[float, tuple[int, ...]]:
    began = time.perf_counter()
    async with aclosing(core.generate(request)) as steps:
        async for step in steps:
            return (time.perf_counter() - began) * 1_000, step.ids
    raise AssertionError("nothing was generated")


def _cpu_ms(core: LlamaCppCore) -> float:
    """Return the processor time of all threads of a core's process."""
    fields = Path(f"/proc/{core.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1_000 / os.sysconf("SC_CLK_TCK")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


async def run(rounds: int, folder: Path) -> None:
    """Measure and print."""
    async with AsyncExitStack() as stack:

        async def started(kv_dir: Path | None) -> LlamaCppCore:
            core = LlamaCppCore(LlamaCppConfig(slots=1, kv_dir=kv_dir))
            stack.push_async_callback(core.close)
            await core.start()
            return core

        cores = Cores(
            await started(folder / "kv"),
            await started(folder / "kv"),
            await started(None),
            await started(None),
        )
        found: dict[int, list[Round]] = {length: [] for length in LENGTHS}
        for number in range(rounds):
            for length in LENGTHS:
                found[length].append(await measure(cores, length, number))
        counts = (cores.writer.state_counts, cores.reader.state_counts)
    names = list(Round.__slots__)
    table(
        ["tokens", *names],
        (
            (length, *(_median(getattr(each, name) for each in measured) for name in names))
            for length, measured in found.items()
        ),
    )
    print(f"\nwriter {counts[0]}\nreader {counts[1]}")


def _median(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.0f} ({ordered[0]:.0f} to {ordered[-1]:.0f})"


def main() -> None:
    """Measure in a folder that is gone afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {os.cpu_count()} cores, load {load:.1f}"
    )
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="aios-moves-") as folder:
        asyncio.run(run(options.rounds, Path(folder)))


if __name__ == "__main__":
    main()
