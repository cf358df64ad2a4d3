"""An llm worker as it is, on a core of the check's own, that notes what its requests found cached.

python -m benchmarks.gpu.worker '{"redis_url": ..., "core": {"kind": "sglang", ...}}'
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TextIO

import msgspec
import uvloop
from msgspec import Struct

from aios_broker.queues.keys import Keys
from aios_workers.llm.core import Core, GenerationRequest, Step
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.loop import Limits, WorkerSpec
from aios_workers.runtime.registry import llm_module, open_worker


class OnSGLang(Struct, frozen=True, kw_only=True, tag_field="kind", tag="sglang"):
    """A server that is running."""

    url: str
    slots: int
    context_tokens: int
    tokenizer: str | None = None

    def core(self) -> Core:
        """Return a core on it."""
        return SGLangCore(
            SGLangConfig(
                url=self.url,
                slots=self.slots,
                context_tokens=self.context_tokens,
                tokenizer=self.tokenizer,
            )
        )


class OnLlama(Struct, frozen=True, kw_only=True, tag_field="kind", tag="llama"):
    """llama.cpp in a process of its own."""

    gguf: str | None  # None: the packaged model
    slots: int
    context_tokens: int
    state_budget_bytes: int

    def core(self) -> Core:
        """Return a core of it."""
        return LlamaCppCore(
            LlamaCppConfig(
                weights=Path(self.gguf) if self.gguf is not None else None,
                slots=self.slots,
                context_tokens=self.context_tokens,
                state_budget_bytes=self.state_budget_bytes,
            )
        )


class Simulated(Struct, frozen=True, kw_only=True, tag_field="kind", tag="simulated"):
    """The simulated core: the check itself is tried on it."""

    slots: int
    context_tokens: int
    kv_tokens: int
    prefill_tokens_per_s: float = 4_000.0
    decode_tokens_per_s: float = 400.0

    def core(self) -> Core:
        """Return one."""
        return SimulatedCore(
            SimulatedCoreConfig(**msgspec.structs.asdict(self), end_probability=0.0)
        )


class Note(Struct, frozen=True):
    """One request to the core, as a worker notes it."""

    id: str
    worker: str
    prompt: int
    resume: int
    cached: int
    made: int
    first_s: float


class WorkerSettings(Struct, frozen=True):
    """What a worker of the check is started with: its argument, in JSON."""

    name: str
    redis_url: str
    core: OnSGLang | OnLlama | Simulated
    notes: str


def noting(core: Core, worker: str, notes: TextIO) -> Core:
    """Return the core, which from now on notes each request."""
    plain = core.generate

    async def generate(request: GenerationRequest) -> AsyncGenerator[Step, None]:
        began_s, first_s, cached, made = time.perf_counter(), 0.0, 0, 0
        try:
            async with aclosing(plain(request)) as steps:
                async for step in steps:
                    if made == 0:
                        first_s, cached = time.perf_counter() - began_s, step.cached_tokens
                    made += len(step.ids)
                    yield step
        finally:
            known = (len(request.prompt_ids), len(request.resume_ids))
            note = Note(request.request_id, worker, *known, cached, made, round(first_s, 4))
            notes.write(msgspec.json.encode(note).decode() + "\n")

    core.generate = generate  # type: ignore[method-assign]
    return core


def read_notes(paths: Iterable[Path]) -> list[Note]:
    """Return what workers have noted, each worker's in order."""
    decoder = msgspec.json.Decoder(Note)
    return [decoder.decode(line) for path in paths for line in path.read_text().splitlines()]


async def serve(settings: WorkerSettings, notes: TextIO) -> None:
    """Run the worker until it is told to stop."""
    core = noting(settings.core.core(), settings.name, notes)
    spec = WorkerSpec(settings.name, "llm", settings.redis_url, Keys(), Limits())
    async with open_worker(spec, await llm_module(core)) as worker:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=WorkerSettings)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with Path(settings.notes).open("a", buffering=1) as notes:
        uvloop.run(serve(settings, notes))


if __name__ == "__main__":
    main()
