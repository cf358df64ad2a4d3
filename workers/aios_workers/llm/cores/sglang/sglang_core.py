"""A core on an SGLang server: ids go in over HTTP, ids come out as they are made.

A generation is cut by the server's own abort, which leaves the KV of prompt and output in its
radix tree; it is resumed by asking for prompt and output together. Nothing that the result
depends on stays in the server, so any server of the same fingerprint can go on.

Unsliced by design: penalties and forms, which the server counts from the beginning of a request.
Refused: images. A server that was started for embeddings makes those, and nothing else.
"""

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from aios_broker.contract.errors import CoreError, InvalidConfig, UnsupportedOption
from aios_broker.contract.llm import PENALTIES
from aios_workers.llm.constraint import FIELDS, Compiler, ConstraintChecker
from aios_workers.llm.core import (
    Capabilities,
    Constraint,
    ContextMemory,
    CoreInfo,
    Embeddings,
    GenerationRequest,
    Step,
)
from aios_workers.llm.cores.base_core import (
    BaseCore,
    FailureLimit,
    text_ids,
)
from aios_workers.llm.cores.sglang.client import Description, EngineFailure
from aios_workers.llm.cores.sglang.connection import REQUESTS, Connection, EngineServer
from aios_workers.llm.cores.sglang.request import (
    BACKENDS,
    LLGUIDANCE,
    check_kept,
    generate_body,
    kept_options,
    read_constraint,
)
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.steps import ConstrainedAnswer, StepMaker
from aios_workers.llm.cores.sglang.tokenizer import (
    TextReader,
    Vocabulary,
    load_text_reader,
    load_vocabulary,
)
from aios_workers.llm.options import check_generates, check_generation

logger = logging.getLogger(__name__)

MAX_LOGPROBS = 32  # twice the widest beam


@dataclass(slots=True, eq=False)
class _Stream:
    """One request under way on the server."""

    request_id: str
    # Never the syscall's id: the server aborts by prefix, and two slices may overlap.
    rid: str = field(default_factory=lambda: uuid.uuid4().hex)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)


class SGLangCore(BaseCore[Vocabulary]):
    """A `Core` on SGLang 0.5.11 to 0.5.17; others may work and are not tested."""

    def __init__(
        self,
        config: SGLangConfig,
        *,
        environ: Mapping[str, str] | None = None,
        failures: FailureLimit = REQUESTS,
    ) -> None:
        """Keep what it is told.

        Args:
            config: Which server.
            environ: The environment of our own server.
            failures: When a server that fails is left alone.
        """
        super().__init__()
        self.config = config
        self._constraints = ConstraintChecker()
        self._connection = Connection(config, environ or {}, failures)
        self._reader: TextReader | None = None  # of a server that makes embeddings
        self._compiling = asyncio.Lock()
        self._compiler: Compiler | None = None
        self._slots = asyncio.Semaphore(config.slots)
        self._streams: set[_Stream] = set()
        self._chores: set[asyncio.Task[None]] = set()

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
        if found.is_generation:
            self._vocabulary = self._vocabulary or load_vocabulary(self.config.tokenizer, path)
        else:
            self._reader = self._reader or load_text_reader(self.config.tokenizer, path)
        self._info = info = self._describe(found)
        self._slots = asyncio.Semaphore(info.slots)
        logger.info(
            "core %s: %d slots of %d tokens", info.snapshot_model, info.slots, info.context_tokens
        )

    async def close(self) -> None:
        """End our own server, or leave another's alone; generations under way end as aborted."""
        await self._constraints.close()
        await asyncio.gather(*(self._abort_stream(stream) for stream in self._streams))
        if self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)
        await self._connection.close()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return one vector of length 1 per text, on a server that was started for them.

        Raises:
            UnsupportedOption: This one was not.
            InvalidSyscall: A text is empty.
            ContextTooLong: A text does not fit.
            CoreError: The server failed.
        """
        if self._reader is None:
            raise UnsupportedOption(
                f"core {self.info.name!r} makes no embeddings",
                field="body.core",
                remedy="name a core whose SGLang server runs with --is-embedding",
            )
        engine = await self._connection.admitted()
        ids = await text_ids(texts, self._reader.ids, self.info)
        if any(max(each, default=self._reader.size) >= self._reader.size for each in ids):
            raise InvalidConfig(
                f"the tokenizer makes ids beyond the model's vocabulary of {self._reader.size}",
                field="AIOS_SGLANG_TOKENIZER",
                remedy="name the folder of the model that is served",
            )
        try:
            async with self._slots:
                made = await engine.client.embed(ids, self.config.first_token_limit_s)
        except EngineFailure as failure:
            self._connection.note(failure)
            raise await self._connection.explain(failure) from failure
        self._connection.succeeded()
        return made

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate until an end token, `max_tokens`, or `abort`; see `Core.generate`."""
        self._check(request)
        if request.constraint is not None:  # before the server compiles it: it could die of it
            await self._constraints.check(request.constraint, request.holder, request.patience_s)
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
        ends = self.vocabulary.turn_ends
        body = generate_body(request, stream.rid, engine.description, ends)
        maker = await self._step_maker(request, engine.description)
        config = self.config
        said = engine.client.generate(body, config.first_token_limit_s, config.stall_limit_s)
        try:
            async with contextlib.aclosing(said) as events:
                first = True
                async for event in events:
                    if first and stream.aborted.is_set():
                        # The first abort may have come before the server knew the request.
                        self._start_abort(stream)
                    first = False
                    was_complete = maker.complete
                    step = maker.take(event, aborted=stream.aborted.is_set())
                    if was_complete and not maker.ended and not stream.aborted.is_set():
                        self._start_abort(stream)  # it should have come to its end by itself
                    if step is not None:
                        yield step
            if not maker.ended:
                raise EngineFailure("the SGLang server ended a stream without a reason")
            self._connection.succeeded()
        except EngineFailure as failure:  # the connection is closed: the server ends it too
            if self._connection.closed or maker.complete or maker.ended:
                return
            self._connection.note(failure)
            raise await self._explained(failure, request) from failure
        except BaseException:  # nobody listens any more, or the answer has left its form
            if not maker.ended:
                self._start_abort(stream)
            raise

    async def _explained(
        self, failure: EngineFailure, request: GenerationRequest
    ) -> CoreError | UnsupportedOption:
        """Return a generation's error. A form that the server could not compile is the asker's."""
        form = request.constraint
        if form is not None and not failure.sick and "grammar" in failure.message.lower():
            return UnsupportedOption(
                failure.message,
                field=FIELDS[form.kind],
                remedy="correct it, simplify it, or start the server with "
                "--grammar-backend llguidance",
            )
        return await self._connection.explain(failure)

    async def _step_maker(self, request: GenerationRequest, description: Description) -> StepMaker:
        return StepMaker(
            wanted_tokens=request.max_tokens - len(request.resume_ids),
            is_end=self.is_end,
            form=await self._constrained_answer(request.constraint, description.constraints_by),
            incremental=description.incremental_streaming_output,
            logprobs=request.logprobs is not None,
            weight_version=description.weight_version,
        )

    async def _constrained_answer(
        self, constraint: Constraint | None, grammar_backend: str | None
    ) -> ConstrainedAnswer | None:
        if constraint is None:
            return None
        async with self._compiling:  # half a second for a vocabulary of 128,000, once
            if self._compiler is None:
                self._compiler = await asyncio.to_thread(self.vocabulary.compiler)
        matcher = await self._compiler.begin(
            read_constraint(constraint, grammar_backend), narrow=grammar_backend == LLGUIDANCE
        )
        return ConstrainedAnswer(matcher, grammar_backend)

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
        stream.aborted.set()
        task = asyncio.get_running_loop().create_task(self._abort_stream(stream))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _describe(self, found: Description) -> CoreInfo:
        config = self.config
        return CoreInfo(
            model=found.name,
            fingerprint=found.fingerprint,
            slots=min(config.slots, found.max_running_requests or config.slots),
            context_tokens=min(
                config.context_tokens or found.max_req_input_len, found.max_req_input_len
            ),
            capabilities=self._capabilities(found),
            vocabulary_size=(self._reader or self.vocabulary).size,
            memory=ContextMemory(_shared_name(config.url), found.max_total_num_tokens),
            name=config.name,
        )

    def _capabilities(self, found: Description) -> Capabilities:
        if self._reader is not None:
            return Capabilities(generates=False, embeddings=True)
        return Capabilities(
            exact_resume=found.enable_deterministic_inference,
            keeps=kept_options(found),
            lost_by_suspension=PENALTIES,
            max_logprobs=MAX_LOGPROBS,
            constraints=found.constraints_by in BACKENDS,
            constraints_preemptible=False,
            forms=_forms(found.constraints_by),
            call_format=self.vocabulary.speech.call_format,
            reasoning=self.vocabulary.reasoning,
            adapters=found.adapters,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of a model that generates; valid after `start`."""
        if self._reader is not None:
            check_generates(self.info)
        return super().vocabulary

    def _check(self, request: GenerationRequest) -> None:
        check_generates(self.info)
        # A token id beyond the vocabulary has to be found here: it ends an SGLang server.
        check_generation(request, self.info)
        engine = self._connection.engine
        check_kept(
            request,
            self.info,
            original_logprobs=engine is not None and engine.original_logprobs,
            grammar_backend=engine.description.constraints_by if engine is not None else None,
        )


def _shared_name(url: str | None) -> str:
    """Return the same for all workers of one server: its address, which nobody reads back."""
    return hashlib.sha256(url.encode()).hexdigest()[:16] if url is not None else ""


def _forms(backend: str | None) -> frozenset[str]:
    """Return the kinds of constraints that a grammar backend holds."""
    return frozenset({"json", "regex"} | ({"grammar"} if backend == LLGUIDANCE else set()))
