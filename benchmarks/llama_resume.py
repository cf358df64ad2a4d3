"""What resuming costs on llama.cpp, and in which settings it is exact.

    python benchmarks/llama_resume.py [--answers 16] [--no-redis]

Prints tables for docs/decisions/0003. About 5 minutes on one core; uses about 1 GB. Computing
is timed in seconds of the processor (there is one thread), Redis on the wall clock.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis
from numpy.typing import NDArray

from aios_broker.contract.llm import Message
from aios_broker.process.child import StandaloneServer
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from aios_workers.llm.core import Sampling
from aios_workers.llm.cores.llama.library import PACKAGE_VERSION, Library, find_weights
from aios_workers.llm.cores.llama.llama_context import Context, Row
from aios_workers.llm.cores.llama.protocol import ContextShape
from aios_workers.llm.cores.llama.sampler import Sampler
from aios_workers.llm.cores.llama.vocabulary import Vocabulary

MICRO_BATCHES = (512, 63, 32, 16)
CONTEXT_TOKENS = 2_048
PREFILL_TOKENS = 512
DECODE_TOKENS = 64
ANSWER_TOKENS = 32
STATE_LENGTHS = (128, 512, 1_024, 1_920)
SAMPLED = Sampling(temperature=1.0, top_p=0.95, seed=11)
FILLER = "Request 4711 waited 12.5 ms, ran 80 ms, yielded its slot and was resumed elsewhere. "


@dataclass(frozen=True, slots=True)
class Bench:
    """The loaded library and a text to compute."""

    library: Library
    weights: Path
    text_ids: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]

    def context(self, micro_batch_tokens: int, *, slots: int = 2) -> Context:
        shape = ContextShape(slots, CONTEXT_TOKENS, micro_batch_tokens=micro_batch_tokens)
        return Context.load(self.library, self.weights, shape)


def read(context: Context, slot: int, ids: Sequence[int], start: int = 0) -> NDArray[np.float32]:
    """Compute ids[start:] in micro-batches; return the last logits."""
    logits: dict[int, NDArray[np.float32]] = {}
    step = context.shape.micro_batch_tokens
    for begin in range(start, len(ids), step):
        end = min(begin + step, len(ids))
        rows = [Row(slot, i, ids[i], i == len(ids) - 1) for i in range(begin, end)]
        logits = context.compute(rows)
    return logits[slot]


def write(
    context: Context, prompt: Sequence[int], output: Sequence[int], sampling: Sampling, count: int
) -> tuple[list[int], NDArray[np.float32]]:
    """Read prompt and output afresh, then generate up to `count` output tokens."""
    context.truncate(0, 0)
    ids, sampler = [*prompt, *output], Sampler(sampling, output)
    logits = read(context, 0, ids)
    while len(ids) < len(prompt) + count:
        ids.append(sampler.choose(logits, len(ids)))
        logits = read(context, 0, ids, len(ids) - 1)
    return ids[len(prompt) :], logits.copy()


def timed_ms(
    action: Callable[[], object],
    *,
    times: int = 3,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Return the least time of an action; by default the processor's, which neighbours spare."""
    spent = []
    for _ in range(times):
        began = clock()
        action()
        spent.append((clock() - began) * 1_000)
    return min(spent)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table as its rows come."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def speeds(bench: Bench) -> Iterable[Sequence[object]]:
    """Prefill, and decoding in 1 and 2 slots at about 100 tokens of context."""
    for micro_batch in MICRO_BATCHES:
        context = bench.context(micro_batch)
        ids = bench.text_ids[:PREFILL_TOKENS]

        def prefill(context: Context = context, ids: Sequence[int] = ids) -> None:
            context.truncate(0, 0)
            read(context, 0, ids)

        prefill_ms = timed_ms(prefill)
        rates = [_decode_rate(context, bench.text_ids, slots) for slots in (1, 2)]
        context.close()
        yield (micro_batch, f"{PREFILL_TOKENS / prefill_ms * 1e3:.0f}", *rates)


def _decode_rate(context: Context, ids: Sequence[int], slots: int) -> str:
    for slot in range(slots):
        context.truncate(slot, 0)
        read(context, slot, ids[:100])
    positions = itertools.count(100)

    def decode() -> None:
        for i in itertools.islice(positions, DECODE_TOKENS):
            context.compute([Row(slot, i, ids[i], wants_logits=True) for slot in range(slots)])

    return f"{slots * DECODE_TOKENS * 1e3 / timed_ms(decode):.0f}"


def exactness(bench: Bench) -> Iterable[Sequence[object]]:
    """Answers cut once at a random token and read again: ids, and the last logits' bits."""
    for micro_batch in MICRO_BATCHES:
        context = bench.context(micro_batch)
        for name, sampling in (("greedy", Sampling()), ("sampled", SAMPLED)):
            rng = random.Random(5)
            same_ids = same_bits = 0
            for prompt in bench.prompts:
                expected, logits = write(context, prompt, (), sampling, ANSWER_TOKENS)
                cut = rng.randrange(1, ANSWER_TOKENS)
                actual, again = write(context, prompt, expected[:cut], sampling, ANSWER_TOKENS)
                same_ids += actual == expected
                same_bits += bool(np.array_equal(logits, again))
            total = len(bench.prompts)
            yield micro_batch, name, f"{same_ids} of {total}", f"{same_bits} of {total}"
        context.close()


def states(bench: Bench, server: redis.Redis | None) -> Iterable[Sequence[object]]:
    """Both ways to resume, by length; and the same bytes through Redis."""
    context = bench.context(63)
    for length in STATE_LENGTHS:
        ids = (bench.text_ids * 8)[:length]
        context.truncate(0, 0)
        prefill_ms = timed_ms(lambda ids=ids: read(context, 0, ids), times=1)  # type: ignore[misc]
        state = context.export_state(0)
        export_ms = timed_ms(lambda: context.export_state(0))
        import_ms = timed_ms(lambda state=state: context.import_state(1, state))  # type: ignore[misc]
        times = (f"{prefill_ms:.0f}", f"{export_ms:.1f}", f"{import_ms:.1f}")
        sizes = (f"{len(state) / 1e6:.1f}", f"{len(state) / length / 1e3:.1f}")
        through = _through_redis(server, state) if server else ("", "")
        yield (length, *times, *sizes, *through)
    context.close()


def _through_redis(server: redis.Redis, state: bytes) -> tuple[str, str]:
    set_ms = timed_ms(lambda: server.set("state", state), clock=time.perf_counter)
    get_ms = timed_ms(lambda: server.get("state"), clock=time.perf_counter)
    server.delete("state")
    return f"{set_ms:.0f}", f"{get_ms:.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=16, help="answers of each kind to cut")
    parser.add_argument("--no-redis", action="store_true")
    options = parser.parse_args()
    library = Library.load()
    weights = find_weights()
    bench = Bench(library, weights, *_texts(library, weights, options.answers))
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {_machine()}, one thread,")
    print(f"xllamacpp {PACKAGE_VERSION}, {weights.name}; {library.system_info}")
    head = ("micro-batch", "prefill tok/s", "1 slot tok/s", "2 slots tok/s")
    table("Speed", head, speeds(bench))
    head = ("micro-batch", "sampling", "same ids", "same logits")
    table("Cut at a random token, read again", head, exactness(bench))
    columns = (
        "tokens",
        "read again ms",
        "export ms",
        "import ms",
        "MB",
        "kB/token",
        "SET ms",
        "GET ms",
    )
    if options.no_redis:
        table("Cost of resuming", columns, states(bench, None))
        return
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as folder:
        state = StateDir.open(Path(folder))
        address = RedisServer.of(state)
        with (
            StandaloneServer(address.service(), state.log_dir / "redis.log"),
            redis.Redis.from_url(address.url) as server,
        ):
            table("Cost of resuming", columns, states(bench, server))


def _texts(
    library: Library, weights: Path, answers: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    vocabulary = Vocabulary.load(library, weights)
    text_ids = vocabulary.tokenize(FILLER * 40)
    prompts = tuple(
        vocabulary.render([Message("user", f"{FILLER * (n % 4)}Explain log line {n}.")])
        for n in range(answers)
    )
    vocabulary.close()
    return text_ids, prompts


def _machine() -> str:
    cpu = next(
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
        if line.startswith("model name")
    )
    return f"{cpu}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
