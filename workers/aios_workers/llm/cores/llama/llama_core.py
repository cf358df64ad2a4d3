"""The embedded core: llama.cpp in a process of its own, on the CPU, with a real small model.

The worker's process holds the tokenizer alone; the weights, the sampler and the batch live in a
child (`aios_workers.llm.cores.llama`) that ends with the worker. A child that dies is a
`CoreError` for the generations it ran; the next one starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aios_broker.contract.cores import Grade, LlamaSettings
from aios_broker.contract.errors import CoreError, InvalidConfig
from aios_workers.llm.constraint import ConstraintChecker
from aios_workers.llm.core import (
    SAMPLER_KEEPS,
    Capabilities,
    ContextMemory,
    CoreInfo,
    Embeddings,
    GenerationRequest,
    Step,
    kv_key,
)
from aios_workers.llm.cores.base_core import (
    MAX_RESTARTS,
    BaseCore,
    CircuitBreaker,
    FailureLimit,
    text_ids,
)
from aios_workers.llm.cores.llama.gguf import GgufInfo, read_gguf
from aios_workers.llm.cores.llama.library import (
    PACKAGE_VERSION,
    Library,
    find_weights,
    weights_checksum,
)
from aios_workers.llm.cores.llama.memory import (
    check_memory,
    default_context_tokens,
    free_bytes,
    memory_need,
)
from aios_workers.llm.cores.llama.process import CoreProcess
from aios_workers.llm.cores.llama.protocol import (
    MICRO_BATCH_TOKENS,
    Abort,
    ContextShape,
    Embed,
    Generate,
    Load,
    Ready,
    ShareStates,
    StateCounts,
    Tokens,
)
from aios_workers.llm.cores.llama.state_folder import check_folder
from aios_workers.llm.cores.llama.vocabulary import Vocabulary
from aios_workers.llm.options import check_generation

logger = logging.getLogger(__name__)

MAX_LOGPROBS = 64
MAX_DEFAULT_THREADS = 8
LARGE_MICRO_BATCH_TOKENS = 512  # llama.cpp's own; a third faster at reading, not exact
RESTARTS = FailureLimit(MAX_RESTARTS, window_s=60.0, rest_s=60.0)


def state_metrics(counts: StateCounts) -> Iterable[Metric]:
    """Yield the metrics of the state store of one worker."""
    states = CounterMetricFamily(
        "aios_core_kv_states", "Shared KV states, by what became of them.", labels=["outcome"]
    )
    for outcome in ("written", "read", "refused", "passed_over", "failed"):
        states.add_metric([outcome], getattr(counts, outcome))
    yield states
    yield GaugeMetricFamily(
        "aios_core_kv_state_bytes",
        "Files of all cores in the folder, when this one wrote last.",
        value=counts.used_bytes,
    )


@dataclass(frozen=True, slots=True)
class LlamaCppConfig:
    """What an embedded core is to be."""

    model: str = "smollm2-135m"
    name: str = ""  # of the core; none: the model's
    weights: Path | None = None  # None: those of the package of the embedded model
    slots: int = 2
    context_tokens: int | None = 2_048  # of each slot; None: the model's, as far as memory goes
    threads: int | None = 1  # None: `default_threads`
    gpu_layers: int = 0
    grade: Grade = "exact"
    state_budget_bytes: int = 512 * 1024 * 1024  # for KV states of suspended generations
    kv_dir: Path | None = None  # shared with the other cores of this host; None: with none
    kv_max_bytes: int = 512 * 1024 * 1024  # of all files in it
    start_limit_s: float = 120.0
    stall_limit_s: float = 60.0  # without a step while it has work
    health_limit_s: float = 15.0

    @classmethod
    def of(
        cls, name: str, settings: LlamaSettings, *, kv_dir: Path | None, kv_max_bytes: int
    ) -> LlamaCppConfig:
        """Return what an entry of the catalogue describes."""
        usual = cls()
        gguf = Path(settings.gguf).expanduser() if settings.gguf is not None else None
        tokens = settings.context_tokens
        if tokens is None and gguf is None:
            tokens = usual.context_tokens
        return cls(
            model=usual.model if gguf is None else gguf.stem,
            name=name,
            weights=gguf,
            slots=settings.slots,
            context_tokens=tokens,
            threads=settings.threads,
            gpu_layers=settings.gpu_layers,
            grade=settings.grade,
            kv_dir=kv_dir,
            kv_max_bytes=kv_max_bytes,
        )


def default_threads() -> int:
    """Return how many threads compute where nobody says: one processor is left to the others.

    Threads wait for one another by spinning: with as many as there are processors, each of the
    kernel's own steps stops all of them (docs/decisions/0023).
    """
    return max(1, min(MAX_DEFAULT_THREADS, len(os.sched_getaffinity(0)) - 1))


class LlamaCppCore(BaseCore[Vocabulary]):
    """A `Core` on llama.cpp. Its results do not depend on cuts, neighbours or restarts."""

    def __init__(self, config: LlamaCppConfig | None = None) -> None:
        super().__init__()
        self.config = config or LlamaCppConfig()
        self._constraints = ConstraintChecker()
        self._weights: GgufInfo | None = None
        self._shapes: tuple[ContextShape, ...] = ()
        self._process: CoreProcess | None = None
        self._starting = asyncio.Lock()
        self._restarts = CircuitBreaker("the core process", RESTARTS)
        self._numbers = itertools.count(1)
        self._streams: dict[int, str] = {}  # request ids of the streams under way
        self._earlier_counts = StateCounts()  # of processes that are gone

    @property
    def pid(self) -> int | None:
        """The core process, while there is one."""
        running = self._process is not None and not self._process.failed
        return self._process.pid if self._process is not None and running else None

    @property
    def state_counts(self) -> StateCounts:
        """What its processes have done with shared KV states since the worker began."""
        process = self._process
        return self._earlier_counts + process.state_counts if process else self._earlier_counts

    def metrics(self) -> Iterable[Metric]:
        """Yield what was done with shared KV states; nothing where none are shared."""
        return state_metrics(self.state_counts) if self.config.kv_dir is not None else ()

    async def start(self) -> None:
        """Load the model (about 1 s). Does nothing when it runs.

        Raises:
            InvalidConfig: package or weights are missing, or are not those we know; the folder for
                KV states cannot be used.
            CoreError: the process did not come up.
        """
        async with self._starting:
            if self._process is None or self._process.failed:
                await self._start()

    async def close(self) -> None:
        """End the process and free the tokenizer; generations under way end as aborted."""
        await self._constraints.close()
        async with self._starting:
            process, self._process = self._process, None
            if process is not None:
                self._earlier_counts += process.state_counts
                await process.close()
            vocabulary, self._vocabulary = self._vocabulary, None
            if vocabulary is not None:
                vocabulary.close()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return the mean hidden state of each text; see `Embedder` for what it is worth.

        Raises:
            InvalidSyscall: a text is empty.
            ContextTooLong: a text does not fit.
            CoreError: the core failed.
        """
        ids = await text_ids(
            texts,
            lambda text: self.vocabulary.tokenize(text),  # may be closed between two
            self.info,
            longest_piece_bytes=self.vocabulary.longest_piece_bytes,
        )
        process = await self._running()
        vectors = [await process.embed(Embed(next(self._numbers), each)) for each in ids]
        return Embeddings(tuple(vectors), sum(len(each) for each in ids))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate until an end token, `max_tokens`, or `abort`; see `Core.generate`."""
        check_generation(request, self.info)
        if request.constraint is not None:
            await self._constraints.check(request.constraint, request.holder, request.patience_s)
        process = await self._running()
        stream = next(self._numbers)
        self._streams[stream] = request.request_id
        message = Generate(
            stream,
            kv_key(request.kv_owner, request.request_id),  # by which its states are found again
            tuple(request.prompt_ids),
            tuple(request.resume_ids),
            request.max_tokens,
            request.sampling,
            request.logprobs,
            request.constraint,
            kv_key(request.kv_owner),
            self.vocabulary.turn_ends,
        )
        try:
            async with contextlib.aclosing(process.events(message)) as events:
                async for event in events:
                    assert isinstance(event, Tokens)
                    yield Step(event.ids, event.finish_reason, event.cached_tokens, event.scores)
        finally:
            del self._streams[stream]

    async def abort(self, request_id: str, *, keep: bool) -> None:
        """End a generation at the next token; its stream yields what is left, then ends."""
        if self._process is None:
            return
        for stream, running_id in self._streams.items():
            if running_id == request_id:
                self._process.send(Abort(stream, keep))

    async def health(self) -> None:
        """Return when the core answers; start it if it is down.

        Raises:
            CoreError: it does not answer within `health_limit_s`, or cannot be started.
        """
        process = await self._running()
        try:
            async with asyncio.timeout(self.config.health_limit_s):
                await process.ping(next(self._numbers))
        except TimeoutError as error:
            limit_s = self.config.health_limit_s
            raise CoreError(f"the core did not answer within {limit_s:g} s") from error

    async def _running(self) -> CoreProcess:
        async with self._starting:
            if self._vocabulary is None:
                raise CoreError("the core is not started", remedy="call start() first")
            if self._process is None or self._process.failed:
                self._restarts.check()
                self._restarts.failed()
                logger.warning("the core process is gone; starting another")
                await self._start()
            assert self._process is not None
            return self._process

    async def _start(self) -> None:
        if self._info is None and self.config.kv_dir is not None:
            check_folder(self.config.kv_dir)
        if self._process is not None:
            self._earlier_counts += self._process.state_counts
            await self._process.close()
            self._process = None
        if self._weights is None:
            weights = await asyncio.to_thread(read_gguf, find_weights(self.config.weights))
            self._shapes = self._plan(weights)
            self._weights = weights
        checksum = asyncio.create_task(asyncio.to_thread(weights_checksum, self._weights))
        try:
            self._process, ready = await CoreProcess.start(
                self._command(self._weights),
                start_limit_s=self.config.start_limit_s,
                stall_limit_s=self.config.stall_limit_s,
            )
        finally:
            sha256 = await checksum
        if self._vocabulary is None:  # only now: a file that kills its reader has killed the child
            self._vocabulary = Vocabulary.load(Library.load(), self._weights.path)
        self._info = self._describe(ready, sha256)
        if self.config.kv_dir is not None:
            folder = str(self.config.kv_dir.absolute())
            self._process.send(
                ShareStates(folder, self._info.fingerprint, self.config.kv_max_bytes)
            )
        logger.info(
            "core process %d: %s, %d slots of %d tokens, %d threads, %s, loaded in %.0f ms, "
            "probed in %.0f ms, KV states in %s",
            self._process.pid,
            self._info.snapshot_model,
            self._info.slots,
            self._info.context_tokens,
            ready.shape.threads,
            "exact" if ready.exact_resume else "not exact",
            ready.load_ms,
            ready.probe_ms,
            self.config.kv_dir or "this process alone",
        )

    def _plan(self, info: GgufInfo) -> tuple[ContextShape, ...]:
        """Return the shapes to try; refuse what there is no room or no device for."""
        config = self.config
        if config.gpu_layers and not Library.load().offloads:
            raise InvalidConfig(
                f"this build of llama.cpp ({PACKAGE_VERSION}) has no GPU to put layers on",
                field="gpu_layers",
                remedy="set it to 0, or serve the model by SGLang or another server",
            )
        exact = config.grade == "exact"
        rows = MICRO_BATCH_TOKENS if exact else LARGE_MICRO_BATCH_TOKENS
        free = free_bytes()
        tokens = config.context_tokens
        if tokens is None:
            tokens = default_context_tokens(info, slots=config.slots, free_bytes=free)
        need = memory_need(info, slots=config.slots, context_tokens=tokens, micro_batch_tokens=rows)
        check_memory(need, free, info, slots=config.slots, tokens=tokens)
        threads = config.threads or default_threads()
        if exact and info.latent_attention:
            threads = 1
        shape = ContextShape(
            config.slots, tokens, threads, rows, rows, config.grade, info.latent_attention
        )
        return (shape, replace(shape, joint_rows=1)) if exact else (shape,)

    def _command(self, weights: GgufInfo) -> list[str]:
        config = self.config
        load = Load(str(weights.path), self._shapes, config.state_budget_bytes, config.gpu_layers)
        text = msgspec.json.encode(load).decode()
        return [sys.executable, "-P", "-m", "aios_workers.llm.cores.llama", text]

    def _describe(self, ready: Ready, sha256: str) -> CoreInfo:
        # What decides over bits, beside the weights: an exact answer goes on where all are equal.
        built = (PACKAGE_VERSION, ready.system_info, sha256, ready.shape.grade)
        material = "\n".join(built).encode()
        return CoreInfo(
            model=self.config.model,
            fingerprint=hashlib.sha256(material).hexdigest()[:16],
            slots=ready.shape.slots,
            context_tokens=ready.shape.context_tokens,
            capabilities=Capabilities(
                exact_resume=ready.exact_resume,
                keeps=SAMPLER_KEEPS,
                max_logprobs=MAX_LOGPROBS,
                constraints=True,
                call_format=self.vocabulary.speech.call_format,
                reasoning=self.vocabulary.reasoning,
                embeddings=True,
            ),
            vocabulary_size=self.vocabulary.size,
            memory=ContextMemory(
                tokens=self.config.state_budget_bytes // max(1, ready.state_token_bytes),
                beside_slots=True,
            ),
            name=self.config.name,
        )
