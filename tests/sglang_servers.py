"""Real SGLang servers on the CPU, for the tests that are marked `sglang`.

They run in the environment that `./aios setup --sglang-cpu` makes; the variable
SGLANG_CPU_ENVIRONMENT names another one.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore

ROOT = Path(__file__).resolve().parents[1]
CPU_FLAGS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "llguidance", "--disable-cuda-graph", "--mem-fraction-static", "0.1"),
    *("--max-total-tokens", "8192", "--sleep-on-idle"),  # else an idle one takes a processor
)
START_LIMIT_S = 240.0


def sglang_python() -> str:
    """Return the Python of the environment; fail, and say how to make it, where there is none."""
    folder = Path(os.environ.get("SGLANG_CPU_ENVIRONMENT") or ROOT / ".aios" / "sglang")
    python = folder / "bin" / "python"
    if not (folder / "aios-sglang-cpu").is_file():
        pytest.fail(f"no SGLang for the CPU in {folder}: make it with `./aios setup --sglang-cpu`")
    return str(python)


def own_server(model: Path, *more: str, slots: int = 3) -> SGLangConfig:
    """Return the settings of a core that starts a server of its own, with more flags.

    In float32: in bfloat16 two tokens may be so near that the order of a sum decides (0007).
    """
    flags = (*CPU_FLAGS, "--dtype", "float32", *more)
    return SGLangConfig(
        model=str(model),
        python=sglang_python(),
        flags=flags,
        slots=slots,
        context_tokens=2_048,
        start_limit_s=START_LIMIT_S,
        stall_limit_s=60.0,
    )


@asynccontextmanager
async def started(config: SGLangConfig) -> AsyncIterator[SGLangCore]:
    """Start a core and its server, and end both with the block."""
    # One thread: for a tiny model, and beside other servers, several are slower.
    core = SGLangCore(config, environ={"OMP_NUM_THREADS": "1", **os.environ})
    try:
        await core.start()
        yield core
    finally:
        await core.close()
