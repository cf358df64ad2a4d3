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
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import Metric

from aios_broker.contract.errors import (
    ContextTooLong,
    CoreError,
    InvalidConfig,
    InvalidSyscall,
)
from aios_broker.contract.llm import Message, Tool
from aios_broker.contract.reply import Alternative, TokenLogprob
from aios_workers.llm.constraint import ConstraintChecker
from aios_workers.llm.core import Capabilities, CoreInfo, Embeddings, GenerationRequest, Step
from aios_workers.llm.cores.llama.library import PACKAGE_VERSION, Library
from aios_workers.llm.cores.llama.process import CoreProcess
from aios_workers.llm.cores.llama.protocol import (
    Abort,
    Embed,
    Generate,
    Ready,
    Scored,
    ShareStates,
    StateCounts,
)
from aios_workers.llm.cores.llama.sampler import KEPT
from aios_workers.llm.cores.llama.state_folder import check_folder
from aios_workers.llm.cores.llama.state_metrics import state_metrics
from aios_workers.llm.cores.llama.vocabulary import Vocabulary
from aios_workers.llm.cores.llama.weights import Weights, find_weights
from aios_workers.llm.options import check_request, check_texts

logger = logging.getLogger(__name__)

MAX_CONTEXT_TOKENS = 8_192
MAX_SLOTS = 64
MAX_LOGPROBS = 64
MAX_RESTARTS = 3  # within the window below; then the core stays down until it has passed
RESTART_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class LlamaCppConfig:
    """What an embedded core is to be."""

    model: str = "smollm2-135m"  # the name that syscalls use
    weights: Path | None = None  # None: those of the package of the embedded model
    slots: int = 2
    context_tokens: int = 2_048  # of each slot
    threads: int = 1  # 2 are slower than 1 where 2 processors are shared with anything else
    state_budget_bytes: int = 512 * 1024 * 1024  # for KV states of suspended generations
    kv_dir: Path | None = None  # shared with the other cores of this host; None: with none
    kv_max_bytes: int = 512 * 1024 * 1024  # of all files in it
    start_limit_s: float = 120.0
    stall_limit_s: float = 60.0  # without a step while it has work
    health_limit_s: float = 15.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _within("AIOS_LLM_SLOTS", self.slots, 1, MAX_SLOTS)
        _within("AIOS_LLM_CONTEXT_TOKENS", self.context_tokens, 256, MAX_CONTEXT_TOKENS)
        _within("AIOS_LLM_THREADS", self.threads, 1, 256)


class LlamaCppCore:
    """A `Core` on llama.cpp. Its results do not depend on cuts, neighbours or restarts."""

    def __init__(self, config: LlamaCppConfig | None = None) -> None:
        self.config = config or LlamaCppConfig()
        self._info: CoreInfo | None = None
        self._vocabulary: Vocabulary | None = None
        self._weights: Weights | None = None
        self._process: CoreProcess | None = None
        self._starting = asyncio.Lock()
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._numbers = itertools.count(1)
        self._constraints = ConstraintChecker()
        self._streams: dict[int, str] = {}  # request ids of the streams under way
        self._earlier_counts = StateCounts()  # of processes that are gone

    @property
    def info(self) -> CoreInfo:
        """What it is; valid after `start`."""
        if self._info is None:
            raise CoreError("the core has not been started", remedy="call start() first")
        return self._info

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
        async with self._starting:
            process, self._process = self._process, None
            if process is not None:
                self._earlier_counts += process.state_counts
                await process.close()
            vocabulary, self._vocabulary = self._vocabulary, None
            if vocabulary is not None:
                vocabulary.close()

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return the prompt ids of a conversation, by the model's own template.

        Raises:
            ContextTooLong: it could not fit whatever its tokens are; this spares reading it.
        """
        vocabulary = self._loaded_vocabulary()
        byte_count = sum(len(message.content.encode("utf-8", "replace")) for message in messages)
        least_tokens = vocabulary.least_tokens(byte_count)
        if least_tokens > self.info.context_tokens:
            raise self._too_long(f"at least {least_tokens}", 1)
        return vocabulary.render(messages)

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of output ids; the end may be a cut-off UTF-8 character."""
        return self._loaded_vocabulary().decode(ids)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return self._loaded_vocabulary().is_end(token)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return the mean hidden state of each text; see `llama.embedder` for what it is worth.

        Raises:
            InvalidSyscall: a text is empty.
            ContextTooLong: a text does not fit.
            CoreError: the core failed.
        """
        ids: list[tuple[int, ...]] = []
        for place, text in enumerate(texts):
            vocabulary = self._loaded_vocabulary()  # may be closed between two texts
            least_tokens = vocabulary.least_tokens(len(text.encode("utf-8", "replace")))
            if least_tokens <= self.info.context_tokens:  # else reading it is spared
                ids.append(vocabulary.tokenize(text))
                least_tokens = len(ids[-1])
            check_texts([text], [least_tokens], self.info, first=place)
            await asyncio.sleep(0)  # each may take 40 ms: others have their turn
        process = await self._running()
        vectors = [await process.embed(Embed(next(self._numbers), each)) for each in ids]
        return Embeddings(tuple(vectors), sum(len(each) for each in ids))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate until an end token, `max_tokens`, or `abort`; see `Core.generate`."""
        self._check(request)
        if request.constraint is not None:
            await self._constraints.check(request.constraint)
        process = await self._running()
        stream = next(self._numbers)
        self._streams[stream] = request.request_id
        message = Generate(
            stream,
            request.request_id,
            tuple(request.prompt_ids),
            tuple(request.resume_ids),
            request.max_tokens,
            request.sampling,
            request.logprobs,
            request.constraint,
        )
        try:
            async with contextlib.aclosing(process.stream(message)) as events:
                async for event in events:
                    scores = tuple(map(self._entry, event.scores))
                    yield Step(event.ids, event.finish_reason, event.cached_tokens, scores)
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
                self._count_restart()
                await self._start()
            assert self._process is not None
            return self._process

    def _count_restart(self) -> None:
        now = asyncio.get_running_loop().time()
        full = len(self._restarts) == MAX_RESTARTS
        if full and now - self._restarts[0] < RESTART_WINDOW_S:
            wait_s = RESTART_WINDOW_S - (now - self._restarts[0])
            raise CoreError(
                f"the core process died {MAX_RESTARTS} times within {RESTART_WINDOW_S:g} s",
                remedy="see the worker's log for its last words",
                retry_after_s=wait_s,
            )
        self._restarts.append(now)
        logger.warning("the core process is gone; starting another")

    async def _start(self) -> None:
        if self._info is None and self.config.kv_dir is not None:
            check_folder(self.config.kv_dir)
        if self._process is not None:
            self._earlier_counts += self._process.state_counts
            await self._process.close()
            self._process = None
        if self._weights is None:
            self._weights = find_weights(self.config.weights)
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.load(Library.load(), self._weights.path)
        checksum = asyncio.create_task(asyncio.to_thread(self._weights.checksum))
        try:
            self._process, ready = await CoreProcess.start(
                self._command(self._weights),
                start_limit_s=self.config.start_limit_s,
                stall_limit_s=self.config.stall_limit_s,
            )
        finally:
            sha256 = await checksum
        self._info = self._describe(ready, sha256)
        if self.config.kv_dir is not None:
            folder = str(self.config.kv_dir.absolute())
            self._process.send(
                ShareStates(folder, self._info.fingerprint, self.config.kv_max_bytes)
            )
        logger.info(
            "core process %d: %s, %d slots of %d tokens, loaded in %.0f ms, probed in %.0f ms, "
            "KV states in %s",
            self._process.pid,
            self._info.snapshot_model,
            self._info.slots,
            self._info.context_tokens,
            ready.load_ms,
            ready.probe_ms,
            self.config.kv_dir or "this process alone",
        )

    def _command(self, weights: Weights) -> list[str]:
        config = self.config
        return [
            *(sys.executable, "-P", "-m", "aios_workers.llm.cores.llama"),
            *("--weights", str(weights.path)),
            *("--slots", str(config.slots)),
            *("--context-tokens", str(config.context_tokens)),
            *("--threads", str(config.threads)),
            *("--state-budget-bytes", str(config.state_budget_bytes)),
        ]

    def _describe(self, ready: Ready, sha256: str) -> CoreInfo:
        material = "\n".join((PACKAGE_VERSION, ready.system_info, sha256)).encode()
        return CoreInfo(
            model=self.config.model,
            fingerprint=hashlib.sha256(material).hexdigest()[:16],
            slots=self.config.slots,
            context_tokens=self.config.context_tokens,
            capabilities=Capabilities(
                exact_resume=ready.exact_resume,
                keeps=KEPT,
                max_logprobs=MAX_LOGPROBS,
                constraints=True,
                embeddings=True,
            ),
            vocabulary_size=self._loaded_vocabulary().size,
        )

    def _entry(self, scored: Scored) -> TokenLogprob:
        top = tuple(Alternative(each, value, self._text(each)) for each, value in scored.top)
        return TokenLogprob(scored.id, scored.logprob, self._text(scored.id), top)

    def _text(self, token: int) -> str:
        return self.decode((token,)).decode("utf-8", "replace")

    def _loaded_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            raise CoreError("the core is not started", remedy="call start() first")
        return self._vocabulary

    def _check(self, request: GenerationRequest) -> None:
        prompt_tokens = len(request.prompt_ids)
        if prompt_tokens + request.max_tokens > self.info.context_tokens:
            raise self._too_long(str(prompt_tokens), request.max_tokens)
        size = self._loaded_vocabulary().size
        ids = (*request.prompt_ids, *request.resume_ids)
        if not request.prompt_ids or min(ids) < 0 or max(ids) >= size:
            raise InvalidSyscall(
                f"the prompt is empty or has ids that are not in the vocabulary of {size}",
                field="prompt_ids",
                remedy="send ids of this model's tokenizer",
            )
        check_request(request, self.info)

    def _too_long(self, prompt_tokens: str, max_tokens: int) -> ContextTooLong:
        return ContextTooLong(
            f"the prompt has {prompt_tokens} tokens and the answer may have {max_tokens}, "
            f"together more than the {self.info.context_tokens} of this core's context",
            field="body.messages",
            remedy="shorten the messages or ask for fewer max_tokens",
        )


def _within(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidConfig(
            f"{value} is not between {least} and {most}", field=field, remedy="set it in range"
        )
