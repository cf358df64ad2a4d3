"""A core on an SGLang server: ids go in over HTTP, ids come out as they are made.

A generation is cut by the server's own abort, which leaves the KV of prompt and output in its
radix tree; it is resumed by asking for prompt and output together. Nothing that the result
depends on stays in the server, so any server of the same fingerprint can go on.

Unsliced by design: penalties, which the server counts from the beginning of a request. Refused:
constraints, images and embeddings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from aios_broker.contract.errors import ContextTooLong, CoreError, UnsupportedOption
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.core import Capabilities, CoreInfo, Embeddings, GenerationRequest, Step
from aios_workers.llm.sglang.breaker import BreakerPolicy
from aios_workers.llm.sglang.client import StreamLimits
from aios_workers.llm.sglang.connection import Connection
from aios_workers.llm.sglang.description import Description
from aios_workers.llm.sglang.failure import EngineFailure
from aios_workers.llm.sglang.request import check_request, generate_body
from aios_workers.llm.sglang.server import EngineServer
from aios_workers.llm.sglang.settings import SGLangConfig
from aios_workers.llm.sglang.steps import StepMaker, StreamKind
from aios_workers.llm.sglang.tokenizer import Vocabulary, load_vocabulary

logger = logging.getLogger(__name__)

MAX_LOGPROBS = 32  # twice the widest beam


@dataclass(slots=True, eq=False)
class _Stream:
    """One request under way on the server."""

    request_id: str
    # Never the syscall's id: the server aborts by prefix, and two slices may overlap.
    rid: str = field(default_factory=lambda: uuid.uuid4().hex)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)


class SGLangCore:
    """A `Core` on SGLang 0.5.11 to 0.5.17; others may work and are not tested."""

    def __init__(
        self,
        config: SGLangConfig,
        *,
        environ: Mapping[str, str] | None = None,
        breaker: BreakerPolicy | None = None,
    ) -> None:
        """Keep what it is told.

        Args:
            config: Which server.
            environ: The environment of our own server.
            breaker: When a server that fails is left alone.
        """
        self.config = config
        self._connection = Connection(config, environ or {}, breaker or BreakerPolicy())
        self._info: CoreInfo | None = None
        self._vocabulary: Vocabulary | None = None
        self._slots = asyncio.Semaphore(config.slots)
        self._streams: set[_Stream] = set()
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def info(self) -> CoreInfo:
        """What it is; valid after `start`."""
        if self._info is None:
            raise CoreError("the core has not been started", remedy="call start() first")
        return self._info

    @property
    def server(self) -> EngineServer | None:
        """Our own server, while there is one."""
        return self._connection.server

    async def start(self) -> None:
        """Start or find the server, and read what it is.

        Raises:
            InvalidConfig: The settings, the model's tokenizer or the server's flags do not fit.
            CoreError: The server does not answer, or serves another model.
        """
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line per request
        found = (await self._connection.open()).description
        path = found.tokenizer_path or found.model_path
        self._vocabulary = self._vocabulary or load_vocabulary(self.config.tokenizer, path)
        self._info = info = self._describe(found, self._vocabulary)
        self._slots = asyncio.Semaphore(info.slots)
        logger.info(
            "core %s: %d slots of %d tokens", info.snapshot_model, info.slots, info.context_tokens
        )

    async def close(self) -> None:
        """End our own server, or leave another's alone; generations under way end as aborted."""
        await asyncio.gather(*(self._abort_stream(stream) for stream in self._streams))
        if self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)
        await self._connection.close()

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return the prompt ids of a conversation, by the model's own template.

        Raises:
            ContextTooLong: It could not fit whatever its tokens are; this spares reading it.
            InvalidSyscall: The model's template refuses these messages.
        """
        vocabulary = self._loaded_vocabulary()
        byte_count = sum(len(message.content.encode("utf-8", "replace")) for message in messages)
        least_tokens = byte_count // vocabulary.longest_piece_bytes
        if least_tokens > self.info.context_tokens:
            raise ContextTooLong(
                f"the prompt has at least {least_tokens} tokens, more than the "
                f"{self.info.context_tokens} of this core's context",
                field="body.messages", remedy="shorten the messages",
            )  # fmt: skip
        return vocabulary.render(messages, tools)

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of output ids; the end may be a cut-off UTF-8 character."""
        return self._loaded_vocabulary().decode(ids)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return self._loaded_vocabulary().is_end(token)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Refuse: SGLang makes embeddings on a server of their own."""
        raise UnsupportedOption(
            f"core {self.info.model!r} makes no embeddings", field="body.core",
            remedy="name a core that does",
        )  # fmt: skip

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate until an end token, `max_tokens`, or `abort`; see `Core.generate`."""
        self._check(request)
        if len(request.resume_ids) >= request.max_tokens:
            yield Step((), "length")
            return
        stream = _Stream(request.request_id)
        self._streams.add(stream)
        try:
            async with self._slot(stream) as free:
                if not free:
                    return
                async with contextlib.aclosing(self._generate(request, stream)) as steps:
                    async for step in steps:
                        yield step
        finally:
            self._streams.discard(stream)

    async def abort(self, request_id: str, *, keep: bool) -> None:
        """End a generation at the next token; its stream yields what is left, then ends.

        The server keeps the KV either way, as long as it has room.
        """
        del keep
        for stream in list(self._streams):
            if stream.request_id == request_id:
                await self._abort_stream(stream)

    async def health(self) -> None:
        """Return when the server can generate; start our own again if it is down.

        Raises:
            CoreError: It does not answer within the limit, or cannot be started.
        """
        await self._connection.health()

    # A generation.

    async def _generate(
        self, request: GenerationRequest, stream: _Stream
    ) -> AsyncGenerator[Step, None]:
        engine = await self._connection.admitted()
        body = generate_body(
            request, stream.rid, seeded=engine.description.enable_deterministic_inference
        )
        limits = StreamLimits(self.config.first_token_limit_s, self.config.stall_limit_s)
        maker = self._step_maker(request, engine.description)
        try:
            async with contextlib.aclosing(engine.client.generate(body, limits)) as events:
                first = True
                async for event in events:
                    if first and stream.aborted.is_set():
                        # The first abort may have come before the server knew the request.
                        self._start_abort(stream)
                    first = False
                    step = maker.take(event, aborted=stream.aborted.is_set())
                    if step is not None:
                        yield step
            if not maker.ended:
                raise EngineFailure("the SGLang server ended a stream without a reason")
            self._connection.succeeded()
        except EngineFailure as failure:  # the connection is closed: the server ends it too
            if self._connection.closed or maker.ended:
                return
            self._connection.note(failure)
            raise await self._connection.explain(failure) from failure
        except (GeneratorExit, asyncio.CancelledError):
            if not maker.ended:
                self._start_abort(stream)
            raise

    def _step_maker(self, request: GenerationRequest, description: Description) -> StepMaker:
        return StepMaker(StreamKind(
            wanted_tokens=request.max_tokens - len(request.resume_ids),
            is_end=self.is_end,
            text_of=lambda token: self.decode((token,)).decode("utf-8", "replace"),
            incremental=description.incremental_streaming_output,
            logprobs=request.logprobs is not None,
            weight_version=description.weight_version,
        ))  # fmt: skip

    @contextlib.asynccontextmanager
    async def _slot(self, stream: _Stream) -> AsyncIterator[bool]:
        """Wait for a slot; False: it was aborted before there was one."""
        waiting = asyncio.ensure_future(self._slots.acquire())
        aborted = asyncio.ensure_future(stream.aborted.wait())
        try:
            await asyncio.wait({waiting, aborted}, return_when=asyncio.FIRST_COMPLETED)
            yield not stream.aborted.is_set()
        finally:
            aborted.cancel()
            waiting.cancel()
            if waiting.done() and not waiting.cancelled():
                self._slots.release()

    async def _abort_stream(self, stream: _Stream) -> None:
        stream.aborted.set()
        engine = self._connection.engine
        if engine is None:
            return
        try:
            await engine.client.abort(stream.rid)
        except EngineFailure as failure:  # its stream fails too, and that is where it counts
            logger.warning("request %s could not be aborted: %s", stream.rid, failure.message)

    def _start_abort(self, stream: _Stream) -> None:
        task = asyncio.get_running_loop().create_task(self._abort_stream(stream))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _describe(self, found: Description, vocabulary: Vocabulary) -> CoreInfo:
        config = self.config
        return CoreInfo(
            model=config.name or found.name,
            fingerprint=found.fingerprint,
            slots=min(config.slots, found.max_running_requests or config.slots),
            context_tokens=min(config.context_tokens, found.max_req_input_len),
            capabilities=Capabilities(
                exact_resume=found.enable_deterministic_inference,
                seeds=found.enable_deterministic_inference,
                penalties_preemptible=False,
                logit_bias=True,
                max_logprobs=MAX_LOGPROBS,
                tools_template=vocabulary.shows_tools,
                adapters=found.adapters,
            ),
            vocabulary_size=vocabulary.size,
        )

    def _loaded_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            raise CoreError("the core is not started", remedy="call start() first")
        return self._vocabulary

    def _check(self, request: GenerationRequest) -> None:
        engine = self._connection.engine
        original = engine is not None and engine.original_logprobs
        check_request(request, self.info, original_logprobs=original)
