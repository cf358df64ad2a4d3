"""Check the kernel on a model server: exactness over cuts, overhead, programs under KV pressure.

    python -m benchmarks.gpu_check pressure --url http://127.0.0.1:30000 --json pressure.json
    python -m benchmarks.gpu_check exactness --start MODEL_FOLDER --sglang-python PYTHON ...
    python -m benchmarks.gpu_check overhead --url http://127.0.0.1:30000
    python -m benchmarks.gpu_check pressure --core llama [--gguf FILE]

Run it in the checkout's root. Any SGLang server that nobody else uses, or one that it starts; the
pressure part also on llama.cpp, whose own order is its core without a kernel. Each part brings a
kernel of its own, prints as it goes, writes its JSON anew with each finding, and ends within
`--limit-s`. docs/how-to-benchmark.md says how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aios_workers.llm.cores.sglang.connection import EngineServer
from aios_workers.llm.cores.sglang.settings import BYTES, SGLangConfig
from benchmarks.gpu.direct import Direct
from benchmarks.gpu.exactness import Cuts, exactness
from benchmarks.gpu.overhead import Levels, overhead
from benchmarks.gpu.pressure import Load, Orders, pressure
from benchmarks.gpu.results import Results, say
from benchmarks.gpu.target import CoreTarget, SGLangTarget, Target
from benchmarks.gpu.worker import OnLlama, OnSGLang, Simulated

TOLD = (
    *("version", "model_path", "dtype", "enable_deterministic_inference", "attention_backend"),
    *("sampling_backend", "max_total_num_tokens", "max_running_requests", "schedule_policy"),
    *("chunked_prefill_size", "disable_cuda_graph", "random_seed"),
)


@asynccontextmanager
async def server_of(options: argparse.Namespace) -> AsyncIterator[str]:
    """Give the address of the server that is checked; one of our own ends with the block."""
    if options.url is not None:
        yield options.url
        return
    config = SGLangConfig(
        model=str(options.start),
        python=options.sglang_python,
        flags=(*shlex.split(options.sglang_flags), "--enable-metrics", "--enable-cache-report"),
    )
    server = await EngineServer.start(config, dict(os.environ))
    try:
        yield server.url
    finally:
        await server.close()


def tokenizer_of(options: argparse.Namespace) -> str | None:
    """Return where the tokenizer is; a model's folder without one is served ids, read as bytes."""
    folder = options.tokenizer or options.start
    if folder is None:
        return None
    return str(folder) if (Path(folder) / "tokenizer.json").is_file() else BYTES


@asynccontextmanager
async def target_of(options: argparse.Namespace) -> AsyncIterator[tuple[Target, dict[str, object]]]:
    """Give what is checked, started, and what it says of itself."""
    if options.core != "sglang":
        target, about = core_target(options)
        await target.core.start()
        try:
            yield target, about
        finally:
            await target.core.close()
        return
    async with server_of(options) as url:
        direct = Direct(url)
        info = await direct.info()
        place = OnSGLang(
            url=url,
            slots=64,
            context_tokens=options.context_tokens,
            tokenizer=tokenizer_of(options),
        )
        on_server = SGLangTarget(direct, place, info.get("max_total_num_tokens") or 0)
        await on_server.core.start()
        try:
            yield on_server, {name: info.get(name) for name in TOLD}
        finally:
            await on_server.core.close()


def core_target(options: argparse.Namespace) -> tuple[CoreTarget, dict[str, object]]:
    """Return llama.cpp or the simulated core as a target."""
    slots = options.slots or 2
    if options.core == "simulated":
        place = Simulated(
            slots=slots, context_tokens=options.context_tokens, kv_tokens=options.kv_tokens
        )
        return CoreTarget(place), {"core": "simulated"}
    weights = str(options.gguf) if options.gguf is not None else None
    on_llama = OnLlama(
        gguf=weights,
        slots=slots,
        context_tokens=options.context_tokens,
        state_budget_bytes=options.state_budget_mb * 1_000_000,
    )
    about: dict[str, object] = {"core": "llama", "state_budget_mb": options.state_budget_mb}
    return CoreTarget(on_llama), {**about, "gguf": weights or "packaged"}


async def check(options: argparse.Namespace) -> int:
    """Run one part."""
    async with target_of(options) as (target, server):
        flags = {name: str(value) for name, value in sorted(vars(options).items())}
        about = {"part": options.part, "server": server, "flags": flags}
        results = Results(options.json, options.limit_s, about)
        try:
            await part_of(options, target, results)
        except BaseException as error:
            results.tell("failed", f"{type(error).__name__}: {error}")
            raise
    return 0


async def part_of(options: argparse.Namespace, target: Target, results: Results) -> None:
    """Run the part that was asked for."""
    match options.part:
        case "pressure":
            load = Load(
                programs=options.programs,
                turns=options.turns,
                turn_tokens=options.turn_tokens,
                new_tokens=options.new_tokens,
                rate=options.rate,
                pause_cap_s=options.pause_cap_s,
                seed=options.seed,
            )
            arms = tuple(options.arms.split(","))
            workers = options.workers or (2 if options.core == "sglang" else 1)
            slots = options.slots or 2 * workers
            orders = Orders(arms, slots, workers, options.quantum, options.arm_limit_s)
            await pressure(target, results, load, orders)
        case "exactness":
            assert isinstance(target, SGLangTarget)
            cuts = Cuts(
                kinds=tuple(options.kinds.split(",")),
                count=options.count,
                prompt_tokens=options.prompt_tokens,
                answer_tokens=options.new_tokens,
                quantum_tokens=options.quantum,
                slots=options.slots or 16,
                in_flight=options.in_flight,
                control=options.control,
                seed=options.seed,
            )
            await exactness(target, results, cuts, options.url2)
        case "overhead":
            assert isinstance(target, SGLangTarget)
            levels = Levels(
                in_flight=tuple(int(level) for level in options.levels.split(",")),
                requests=options.requests,
                prompt_tokens=options.prompt_tokens,
                new_tokens=options.new_tokens,
                rounds=options.rounds,
                seed=options.seed,
            )
            await overhead(target, results, levels)


def parser_of() -> argparse.ArgumentParser:
    """Return the parser: parts, each with its flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(dest="part", required=True)
    common = argparse.ArgumentParser(add_help=False)
    flag = common.add_argument
    flag("--core", choices=("sglang", "llama", "simulated"), default="sglang")
    flag("--url", help="of an SGLang server with --enable-metrics")
    flag("--start", type=Path, metavar="FOLDER", help="start a server of this model instead")
    flag("--sglang-python", default=sys.executable, help="that has sglang")
    flag("--sglang-flags", default="", help="of the server that is started")
    flag("--tokenizer", type=Path, metavar="FOLDER", help="if the server's is not here")
    flag("--gguf", type=Path, help="of --core llama; none: the packaged model")
    flag("--state-budget-mb", type=int, default=512, help="of --core llama: suspended contexts")
    flag("--kv-tokens", type=int, default=4_096, help="of --core simulated")
    flag("--context-tokens", type=int, default=32_768)
    flag("--slots", type=int, default=0, help="of all workers together; 0: a few")
    flag("--limit-s", type=float, default=400.0, help="of the whole part")
    flag("--json", type=Path, default=Path("gpu-check.json"))
    flag("--seed", type=int, default=1)
    flag("--new-tokens", type=int, default=128)
    flag("--quantum", type=int, default=64, help="tokens of a slice")
    add_parts(parts, common)
    return parser


def add_parts(
    parts: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add what each part has of its own."""
    flag = parts.add_parser("exactness", parents=[common]).add_argument
    flag("--url2", help="of a second server of the same weights")
    flag("--kinds", default="greedy,sampled")
    flag("--count", type=int, default=200, help="of answers of each kind")
    flag("--prompt-tokens", type=int, default=360, help="of the longest prompt; 60: the shortest")
    flag("--in-flight", type=int, default=32, help="of the uncut run")
    flag("--control", type=int, default=128, help="in flight in a second uncut run; 0: none")
    flag = parts.add_parser("overhead", parents=[common]).add_argument
    flag("--levels", default="1,8,32,128", help="requests in flight")
    flag("--requests", type=int, default=256, help="per run at most")
    flag("--prompt-tokens", type=int, default=512)
    flag("--rounds", type=int, default=2)
    flag = parts.add_parser("pressure", parents=[common]).add_argument
    flag("--arms", default="direct,fifo,rr")
    flag("--workers", type=int, default=0, help="0: two on one SGLang server, else one")
    flag("--programs", type=int, default=64)
    flag("--turns", type=int, default=4)
    flag("--turn-tokens", type=int, default=3_000, help="that a turn adds, its answer included")
    flag("--rate", type=float, default=1.0, help="programs that arrive per second")
    flag("--pause-cap-s", type=float, default=10.0)
    flag("--arm-limit-s", type=float, default=130.0)


def main() -> int:
    parser = parser_of()
    options = parser.parse_args()
    if options.core == "sglang" and (options.url is None) == (options.start is None):
        parser.error("name a server by --url, or a model by --start")
    if options.core != "sglang" and options.part != "pressure":
        parser.error(f"{options.part} is a part for SGLang servers")
    say(f"{options.part}: results in {options.json}")
    return asyncio.run(check(options))


if __name__ == "__main__":
    sys.exit(main())
