"""Greedy generations on two real SGLang servers: cut, resumed here or there, compared.

    python -m benchmarks.sglang_resume [--cuts 200] [--model FOLDER] [--dtype float32] [--json FILE]

Run it in the checkout's root. Without a model, a tiny Llama with random weights is served
(tests/tiny_llama.py). Half of the cuts happen alone, half beside other generations; about half of
the resumptions go to the other server process. An answer that differs from the uninterrupted one
is explained by the distance, in log-probability, between the two tokens where it parts.

The servers run in the environment that `./aios setup --sglang-cpu` makes. 5.4 GB of memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from benchmarks.provenance import commit_of, today
from tests.exactness import Mismatch, Report, check_cuts
from tests.sglang_servers import CPU_FLAGS, sglang_python, started
from tests.tiny_llama import write_model

ROOT = Path(__file__).resolve().parents[1]
SEED = 7  # of the tiny model's weights
TIE = 0.125  # two steps of bfloat16, in which logits between 8 and 16 are computed
ALTERNATIVES = 5
RESUME_COST_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where an answer parted from the uninterrupted one, and how near the two tokens were."""

    at: int
    of: int
    cuts: tuple[int, ...]
    resumed_on: tuple[str, ...]
    expected: int | None
    actual: int | None
    distance: float | None  # in log-probability; None: not among the best
    near_tie: bool


@dataclass(frozen=True, slots=True)
class ResumeCost:
    """Seconds to the first token of a resumed generation, by what the server had."""

    tokens: int
    cached_s: float
    cached_tokens: int
    uncached_s: float


async def measure(config: SGLangConfig, cuts: int, seed: int) -> dict[str, object]:
    """Run both servers, cut and compare, and return the figures."""
    began = time.monotonic()
    async with started(config) as one, started(config) as other:
        ready_s = time.monotonic() - began
        assert one.info == other.info, "two servers of one seed differ"
        report = await check_cuts(one, other, cuts=cuts, seed=seed, greedy=True)
        explained = [await explain(one, mismatch) for mismatch in report.mismatches]
        cost = await resume_cost(one, other)
    return {
        "date": today(),
        "commit": commit_of(ROOT),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "core": one.info.snapshot_model,
        "flags": list(config.flags),
        "both_servers_ready_s": round(ready_s, 1),
        **figures(report),
        "mismatches": [asdict(each) for each in explained],
        "resume": asdict(cost),
    }


def figures(report: Report) -> dict[str, object]:
    """Return a report's sums."""
    return {
        "cuts": report.cuts,
        "answers": report.answers,
        "resumed_here": report.same_core,
        "resumed_there": report.other_core,
        "beside_others": report.beside_others,
        "answers_that_differ": len(report.mismatches),
        "seconds": round(report.wall_s, 1),
    }


async def explain(core: SGLangCore, mismatch: Mismatch) -> Explanation:
    """Ask the server how near the two tokens were where an answer parted."""
    expected, actual = mismatch.expected.ids, mismatch.actual.ids
    pairs = zip(expected, actual, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(actual)))
    request = replace(
        mismatch.request,
        request_id=uuid.uuid4().hex,
        resume_ids=expected[:at],
        max_tokens=at + 1,
        logprobs=ALTERNATIVES,
    )
    steps = [step async for step in core.generate(request)]
    tops = {each.id: each.logprob for each in steps[0].logprobs[0].top}
    wanted = expected[at] if at < len(expected) else None
    found = actual[at] if at < len(actual) else None
    both = [tops[each] for each in (wanted, found) if each in tops]
    # An answer that ends where the other goes on: the second token is the end token.
    best_two = sorted(tops.values(), reverse=True)[:2]
    pair = both if len(both) == 2 else best_two
    distance = abs(pair[0] - pair[1])
    return Explanation(
        at,
        len(expected),
        mismatch.cut_at,
        mismatch.resumed_on,
        wanted,
        found,
        distance,
        distance <= TIE,
    )


async def resume_cost(one: SGLangCore, other: SGLangCore) -> ResumeCost:
    """Time the first token where the server has the context, and where it has not."""
    size = one.info.vocabulary_size or 256
    prompt = tuple(3 + (n * 37) % min(250, size - 3) for n in range(RESUME_COST_TOKENS))
    request = GenerationRequest(uuid.uuid4().hex, prompt, 1, Sampling())
    await first_token(one, request)
    cached_s, cached_tokens = await first_token(one, request)
    uncached_s, _ = await first_token(other, request)
    return ResumeCost(RESUME_COST_TOKENS, cached_s, cached_tokens, uncached_s)


async def first_token(core: SGLangCore, request: GenerationRequest) -> tuple[float, int]:
    """Return the seconds to the end of a request of one token, and the tokens that were cached."""
    began = time.perf_counter()
    steps = [step async for step in core.generate(replace(request, request_id=uuid.uuid4().hex))]
    return round(time.perf_counter() - began, 4), steps[0].cached_tokens


def settings(model: Path, dtype: str) -> SGLangConfig:
    """Return the settings of a server of our own."""
    return SGLangConfig(
        model=str(model),
        python=sglang_python(),
        flags=(*CPU_FLAGS, "--dtype", dtype),
        slots=3,
        context_tokens=2_048,
        start_limit_s=240.0,
        stall_limit_s=120.0,
        first_token_limit_s=240.0,
    )


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of prompts and cut points")
    parser.add_argument("--model", type=Path, help="a folder with weights")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aios-sglang-") as folder:
        model = options.model or write_model(Path(folder) / "tiny-llama", seed=SEED)
        found = asyncio.run(measure(settings(model, options.dtype), options.cuts, options.seed))
    text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
