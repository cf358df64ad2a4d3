"""Our llama.cpp core beside llama.cpp's own server: same file, slots, threads, prompts, one run.

    python -m benchmarks.llama_server [--gguf FILE] [--slots 1,2,4] [--threads 1,2] [--rounds 5]

Both grades of the core, and for each a server that computes as it does: `exact` with values in
BF16, micro-batches of 63 and plain products; `same-context` with the server's own defaults. Rounds
are interleaved; a ratio is made within each round (above 1: our core is faster), then the median is
taken. Both stream their tokens: the server over HTTP, the core over its pipe. Beside it the time of
processors per token, which neighbours on the machine spare: of the core that of its process and of
the worker's part in this one, of the server that of its process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aios_broker.contract.cores import Grade, LlamaSettings
from aios_broker.contract.llm import Message
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.llama.library import TILED_PRODUCTS, find_weights
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from aios_workers.llm.cores.llama.protocol import MICRO_BATCH_TOKENS

CONTEXT_TOKENS = 1_024
TOPICS = (
    "how a lighthouse keeper counts ships",
    "why queues grow without a bound",
    "a program that sorts a list of names",
    "the history of the printing press",
    "how to pack for a week in the mountains",
    "what a scheduler does when everybody waits",
)
FILLER = "The log says that request 4711 waited 12.5 ms, ran 80 ms and then yielded its slot. "
GRADES: tuple[Grade, ...] = ("exact", "same-context")
Prompts = Sequence[Sequence[int]]


class Contestant(Protocol):
    """Whoever answers prompts."""

    name: str

    def cpu_s(self) -> float:
        """Return the processors' time that it has used."""
        ...

    async def answer(self, number: int, ids: Sequence[int], max_tokens: int) -> int:
        """Return how many tokens were generated."""
        ...


@dataclass
class OurCore:
    """The core, in a process of its own."""

    name: str
    core: LlamaCppCore

    def cpu_s(self) -> float:
        """Add both processes."""
        assert self.core.pid is not None
        return time.process_time() + cpu_s(self.core.pid)

    async def answer(self, number: int, ids: Sequence[int], max_tokens: int) -> int:
        """Generate greedily."""
        request = GenerationRequest(f"{number:032x}", ids, max_tokens, Sampling())
        return sum([len(step.ids) async for step in self.core.generate(request)])


@dataclass
class TheirServer:
    """llama.cpp's server, in a process of its own."""

    name: str
    address: tuple[str, int]
    pid: int

    def cpu_s(self) -> float:
        """Return its process's."""
        return cpu_s(self.pid)

    async def answer(self, number: int, ids: Sequence[int], max_tokens: int) -> int:
        """Generate greedily, over a connection of its own."""
        del number
        body = json.dumps(
            {
                "prompt": list(ids),
                "n_predict": max_tokens,
                "temperature": 0.0,
                "cache_prompt": False,
                "stream": True,
            }
        ).encode()
        reader, writer = await asyncio.open_connection(*self.address)
        head = f"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode())
        writer.write(body)
        told = 0
        async for line in reader:
            if line.startswith(b"data: {") and b'"tokens_predicted"' in line:
                told = max(told, int(json.loads(line[6:])["tokens_predicted"]))
        writer.close()
        if not told:
            raise RuntimeError("the server told of no tokens")
        return told


def cpu_s(pid: int) -> float:
    """Return the processors' time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def our_core(gguf: Path, grade: Grade, slots: int, threads: int) -> AsyncIterator[OurCore]:
    """Start our core."""
    settings = LlamaSettings(
        gguf=str(gguf), slots=slots, threads=threads, context_tokens=CONTEXT_TOKENS, grade=grade
    )
    core = LlamaCppCore(LlamaCppConfig.of("bench", settings, kv_dir=None, kv_max_bytes=0))
    await core.start()
    try:
        yield OurCore(f"core, {grade}", core)
    finally:
        await core.close()


@contextlib.asynccontextmanager
async def their_server(
    gguf: Path, grade: Grade, slots: int, threads: int
) -> AsyncIterator[TheirServer]:
    """Start llama.cpp's server in a child, computing as the grade does."""
    arguments = json.dumps([str(gguf), grade, slots, threads])
    process = await asyncio.create_subprocess_exec(
        *("env", f"{TILED_PRODUCTS}={0 if grade == 'exact' else 1}", sys.executable, "-P"),
        *(__file__, "--serve", arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if line.startswith(b"listening "):
                host, _, port = line.split()[1].decode().rpartition(":")
                break
        else:
            raise RuntimeError("llama.cpp's server did not start")
        address = host.removeprefix("http://"), int(port)
        yield TheirServer(f"server, {grade}", address, process.pid)
    finally:
        process.stdin.close()
        await process.wait()


def serve(gguf: str, grade: Grade, slots: int, threads: int) -> None:
    """Be llama.cpp's server until standard input ends."""
    import xllamacpp  # noqa: PLC0415  loads llama.cpp's server

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel, params.n_ctx = slots, slots * CONTEXT_TOKENS
    params.kv_unified = False
    params.port = 0
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if grade == "exact":
        params.n_batch = params.n_ubatch = MICRO_BATCH_TOKENS
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_BF16
        params.no_extra_bufts = True
    server = xllamacpp.Server(params)
    sys.stdout.write(f"listening {server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


@dataclass(frozen=True)
class Round:
    """What one contestant did with all prompts."""

    tokens_per_s: float
    cpu_ms_per_token: float


@dataclass
class Figures:
    """Every round, by contestant."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return a row for each grade: both speeds, their ratio, that of the processors' time."""
        rows = []
        for grade in GRADES:
            pairs = list(
                zip(*(self.rounds[f"{who}, {grade}"] for who in ("core", "server")), strict=True)
            )
            speeds = [ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs]
            costs = [ours.cpu_ms_per_token / theirs.cpu_ms_per_token for ours, theirs in pairs]
            rows.append(
                f"{grade} | {self.speed('core', grade):.1f} | {self.speed('server', grade):.1f} | "
                f"{statistics.median(speeds):.3f} ({min(speeds):.3f}-{max(speeds):.3f}) | "
                f"{statistics.median(costs):.3f} ({min(costs):.3f}-{max(costs):.3f})"
            )
        exact, other = (self.speed("core", grade) for grade in GRADES)
        rows.append(f"exact of same-context |  |  | {exact / other:.3f} |")
        return rows

    def speed(self, who: str, grade: Grade) -> float:
        """Return the median of its rounds in tokens/s."""
        return statistics.median(each.tokens_per_s for each in self.rounds[f"{who}, {grade}"])


async def load(contestant: Contestant, prompts: Prompts, slots: int, max_tokens: int) -> Round:
    """Answer all prompts, `slots` at a time."""
    waiting = iter(enumerate(prompts))

    async def client() -> int:
        done = 0
        for number, ids in waiting:
            done += await contestant.answer(number, ids, max_tokens)
        return done

    began, before_s = time.perf_counter(), contestant.cpu_s()
    tokens = sum(await asyncio.gather(*(client() for _ in range(slots))))
    took_s, cpu_taken_s = time.perf_counter() - began, contestant.cpu_s() - before_s
    return Round(tokens / took_s, cpu_taken_s * 1_000 / tokens)


async def compare(gguf: Path, slots: int, threads: int, options: argparse.Namespace) -> Figures:
    """Run all four, interleaved."""
    figures = Figures()
    async with contextlib.AsyncExitStack() as stack:
        cores = [
            await stack.enter_async_context(our_core(gguf, grade, slots, threads))
            for grade in GRADES
        ]
        servers = [
            await stack.enter_async_context(their_server(gguf, grade, slots, threads))
            for grade in GRADES
        ]
        everybody: list[Contestant] = [*cores, *servers]
        prompts = prompts_of(cores[0].core, max(slots * 2, options.prompts))
        for number in range(options.rounds + 1):  # the first warms up
            for contestant in everybody if number % 2 else reversed(everybody):
                done = await load(contestant, prompts, slots, options.tokens)
                if number:
                    figures.rounds.setdefault(contestant.name, []).append(done)
    return figures


def prompts_of(core: LlamaCppCore, count: int) -> Prompts:
    """Return prompts that begin differently, so that nobody goes on from what it has computed."""
    return [
        core.render(
            [Message("user", f"{n}. {FILLER * (n % 3)}Write a long text on {TOPICS[n % 6]}.")]
        )
        for n in range(count)
    ]


def numbers(text: str) -> list[int]:
    """Read `1,2,4`."""
    return [int(each) for each in text.split(",")]


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, help="the small model of the package without it")
    parser.add_argument("--slots", type=numbers, default=[1, 2, 4])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4, help="in a round; two per slot at least")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    options = parser.parse_args()
    gguf = find_weights(options.gguf)
    print(f"{gguf.name}, {options.rounds} rounds, answers of {options.tokens} tokens")
    print("threads | slots | grade | core tok/s | server tok/s | core / server (range) | CPU")
    for threads in options.threads:
        for slots in options.slots:
            figures = await compare(gguf, slots, threads, options)
            for line in figures.lines():
                print(f"{threads} | {slots} | {line}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*json.loads(sys.argv[2]))
    else:
        asyncio.run(main())
