"""A core behind the OpenAI API. What it says is text: its vocabulary is Unicode.

The rest of the worker speaks in ids, so each character is one: `render` writes a conversation as
the ids of a JSON text, `generate` reads that back and asks the endpoint, and what comes is ids
again. A snapshot of such ids is a text snapshot: any core of the same model goes on with it by
giving the text so far back to its endpoint, where that goes on with what it is given (`prefill`).
Where it does not, a generation is never suspended. Tokens are what the endpoint says they are.
"""

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from aios_broker.contract.cores import OpenAISettings
from aios_broker.contract.errors import CoreBusy, CoreError, KernelError, UnsupportedOption
from aios_broker.contract.llm import Message, Tool, given_fields
from aios_broker.contract.money import Billed
from aios_broker.retry import Backoff
from aios_workers.llm.chat.calls import HERMES
from aios_workers.llm.core import (
    CHARACTERS_PER_TOKEN,
    AccountRates,
    Capabilities,
    CoreInfo,
    Embeddings,
    GenerationRequest,
    Step,
    unit_vector,
)
from aios_workers.llm.cores.base_core import CircuitBreaker, FailureLimit
from aios_workers.llm.cores.openai.answer import Answer, billed_of, content_of
from aios_workers.llm.cores.openai.client import Client, Event, Limits
from aios_workers.llm.cores.openai.forms import (
    choice_form,
    message_form,
    response_form,
    tool_form,
    with_images,
)
from aios_workers.llm.cores.openai.prefill import (
    MODES,
    Mode,
    Seam,
    ids_of,
    judged,
    prefilled,
    seam_of,
    text_of,
    told_apart,
)

logger = logging.getLogger(__name__)

KEEPS = frozenset({"temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"})
NO_SNAPSHOT = "text-to-its-end"  # where no snapshot goes on: nobody's is read there
TEXT = "text"  # the fingerprint of a model that is known by its name alone
UNKNOWN_CONTEXT_TOKENS = 1_000_000_000  # the endpoint refuses what is too long
LONGEST_HELD_S = 30.0  # a longer pause is not waited for with a slot in hand
MAX_PAUSES = 5  # that an endpoint asks for, of one request
FAILURES = FailureLimit(5, window_s=60.0, rest_s=10.0)
HEALTH_LIMIT_S = 5.0  # one that does not come back is given up; where it can, others go on
LONGEST_WAIT_S = 0.5  # between two looks
PROBE = (
    {"role": "user", "content": "Write one sentence about the sea, and one about a mountain."},
)
PROBE_TOKENS = 32
_BREAKER_CODES = frozenset({"core-error"})  # what its own fault is; a busy one is not broken


@dataclass(frozen=True, slots=True)
class Prefilling:
    """How the endpoint goes on with a text: found out, or as its settings say."""

    mode: Mode
    repeats: bool = False


class OpenAICore:
    """One model behind one endpoint."""

    def __init__(self, name: str, settings: OpenAISettings, key: str | None) -> None:
        self._name = name
        self._settings = settings
        limits = Limits(
            settings.connect_limit_s, settings.first_token_limit_s, settings.stall_limit_s
        )
        self._client = Client(name, settings.url, key, limits)
        self._breaker = CircuitBreaker(f"core {name!r}", FAILURES)
        self._info: CoreInfo | None = None
        self._prefilling: Prefilling | None = None
        self._running: dict[str, asyncio.Event] = {}
        self.rates: AccountRates | None = None

    @property
    def info(self) -> CoreInfo:
        """What it is; valid after `start`."""
        if self._info is None:
            raise CoreError("the core has not been started", remedy="call start() first")
        return self._info

    async def start(self) -> None:
        """Find out how the endpoint goes on with an answer, unless the settings say it."""
        settings = self._settings
        if settings.prefill == "auto":
            self._prefilling = await self._probed()
        elif settings.prefill != "none":
            self._prefilling = Prefilling(settings.prefill)
        preemptible = self._prefilling is not None
        self._info = CoreInfo(
            name=self._name,
            model=settings.model,
            fingerprint=TEXT if preemptible else NO_SNAPSHOT,
            slots=settings.slots,
            context_tokens=settings.context_tokens or UNKNOWN_CONTEXT_TOKENS,
            capabilities=Capabilities(
                preemptible=preemptible,
                exact_resume=False,
                keeps=KEEPS | frozenset(settings.keeps),
                constraints=True,
                constraints_preemptible=False,
                forms=frozenset({"json"}),
                call_format=HERMES,
                native_calls=True,
                embeddings=True,
                images=True,
                bills_requests=True,
                text_ids=True,
            ),
        )
        logger.info(
            "core %s: model %s at %s, prefill: %s",
            self._name,
            settings.model,
            settings.url,
            self._prefilling.mode if self._prefilling is not None else "none",
        )

    async def close(self) -> None:
        """End what runs and close all connections."""
        for ended in self._running.values():
            ended.set()
        await self._client.aclose()

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return a conversation as the ids of a JSON text."""
        content = {
            "messages": [message_form(message) for message in messages],
            "tools": [tool_form(tool) for tool in tools],
        }
        return ids_of(json.dumps(content, ensure_ascii=False))

    def is_end(self, token: int) -> bool:
        """No id ends an answer: the endpoint says when it is over."""
        del token
        return False

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of characters."""
        return text_of(ids).encode("utf-8", "replace")

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return one vector of length 1 per text."""
        self._breaker.check()
        content = {"model": self._settings.model, "input": list(texts)}
        answer = await self._counted(self._client.post("embeddings", content))
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = tuple(unit_vector([float(x) for x in row["embedding"]]) for row in rows)
            if not all(math.isfinite(x) for vector in vectors for x in vector):
                raise ValueError("not finite")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise CoreError(
                f"core {self._name!r}: its endpoint's embeddings cannot be read"
            ) from error
        if len(vectors) != len(texts):
            raise CoreError(
                f"core {self._name!r}: its endpoint embeds {len(vectors)} texts of {len(texts)}"
            )
        about = sum(map(len, texts)) // CHARACTERS_PER_TOKEN
        return Embeddings(vectors, billed_of(answer).prompt_tokens or about)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Ask the endpoint, and yield its answer character by character.

        Raises:
            CoreError: by kind: the key, the account, a pause that takes too long, a fault.
            UnsupportedOption: it does not know an option.
        """
        content = self._content(request)
        ended = asyncio.Event()
        self._running[request.request_id] = ended
        try:
            for pause in range(MAX_PAUSES + 1):
                await self._rested(ended)
                begun = False
                try:
                    async with (
                        self._permitted(request) as paid,
                        contextlib.aclosing(self._asked(content, request, ended)) as steps,
                    ):
                        async for step in steps:
                            begun = begun or bool(step.ids)
                            paid.note(step.billed)
                            yield step
                    return
                except CoreBusy as busy:
                    is_long = (busy.retry_after_s or 0.0) > LONGEST_HELD_S
                    if pause == MAX_PAUSES or is_long:
                        await self._penalise(busy)
                        raise
                    await self._pause(busy, ended)
                    if begun:  # what has come stands: its caller goes on from there
                        raise CoreError(busy.message) from busy
                if ended.is_set():
                    return
        finally:
            del self._running[request.request_id]

    async def abort(self, request_id: str, *, keep: bool) -> None:
        """End a generation; the endpoint hears it when its connection closes."""
        del keep
        if (ended := self._running.get(request_id)) is not None:
            ended.set()

    async def health(self) -> None:
        """Return when the endpoint answers again, whatever it says."""
        await self._rested(asyncio.Event())
        backoff = Backoff(longest_s=LONGEST_WAIT_S)
        try:
            async with asyncio.timeout(HEALTH_LIMIT_S):
                while not await self._client.answers():
                    await backoff.wait()
        except TimeoutError as error:
            self._breaker.rest()
            raise CoreError(
                f"core {self._name!r}: its endpoint has not answered for {HEALTH_LIMIT_S:g} s",
                remedy="see whether it runs at the address of its core",
            ) from error

    async def _asked(
        self, content: dict[str, object], request: GenerationRequest, ended: asyncio.Event
    ) -> AsyncGenerator[Step, None]:
        seam = Seam(text_of(request.resume_ids), repeats=self._repeats)
        read = self.info.tokens_of(request.prompt_ids) + request.resume_tokens
        answer = Answer(seam, about_prompt_tokens=read)
        events = self._client.stream("chat/completions", content)
        last: Step | None = None
        try:
            async with contextlib.aclosing(_until(ended, events)) as told:
                async for event in told:
                    if (step := answer.take(event)) is not None:
                        yield step
            if answer.is_over or not ended.is_set():
                last = answer.last(self._name)
        except KernelError as error:
            if error.code in _BREAKER_CODES:
                self._breaker.failed()
            if (cost := answer.unpaid()) is not None:
                yield cost
            raise
        self._breaker.succeeded()
        if last is None:
            if (cost := answer.unpaid()) is not None:
                yield cost
            return
        if request.tool_choice in (None, "auto", "none") or answer.has_calls:
            yield last
            return
        yield Step((), tokens=last.tokens, billed=last.billed)
        raise UnsupportedOption(
            f"core {self._name!r}: its endpoint answers without a call although one is required",
            field="body.tool_choice",
            remedy="use auto, or name another core",
        )

    @property
    def _repeats(self) -> bool:
        return self._prefilling is not None and self._prefilling.repeats

    def _content(self, request: GenerationRequest) -> dict[str, object]:
        """Return the body of the request that asks for a generation."""
        conversation = json.loads(text_of(request.prompt_ids))
        sampling = request.sampling
        content: dict[str, object] = {
            "model": self._settings.model,
            "messages": with_images(conversation["messages"], request.images),
            "max_tokens": max(1, request.max_tokens - request.resume_tokens),
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in given_fields(sampling):
            value = getattr(sampling, name)
            content[name] = msgspec.to_builtins(value, str_keys=True)
        if conversation["tools"]:
            content["tools"] = conversation["tools"]
            content["tool_choice"] = choice_form(request.tool_choice)
        if request.constraint is not None:
            content["response_format"] = response_form(request.constraint.source)
        if request.resume_ids:
            assert self._prefilling is not None, "else it is never suspended"
            return prefilled(content, self._prefilling.mode, text_of(request.resume_ids))
        return content

    @contextlib.asynccontextmanager
    async def _permitted(self, request: GenerationRequest) -> AsyncIterator["_Paid"]:
        """Wait until the account has room for a request; set right what it took afterwards."""
        paid = _Paid()
        if self.rates is None:
            yield paid
            return
        about = self.info.tokens_of(request.prompt_ids) + request.max_tokens
        permit = await self.rates.wait(about)
        try:
            yield paid
        except (asyncio.CancelledError, GeneratorExit):
            paid.tokens = paid.tokens or about  # nobody heard what it took
            raise
        finally:
            await self._told(self.rates.settle(permit, paid.tokens))

    async def _told(self, telling: Awaitable[None]) -> None:
        """Tell the fleet's books something; an answer does not wait for them to be well."""
        try:
            await telling
        except KernelError as error:
            logger.warning("core %s: its account could not be kept: %s", self._name, error)

    async def _penalise(self, error: CoreError) -> None:
        if self.rates is not None and error.retry_after_s:
            await self._told(self.rates.penalise(error.retry_after_s))

    async def _rested(self, ended: asyncio.Event) -> None:
        """Wait while the endpoint is left alone, and let the fleet claim nothing for it meanwhile.

        Raises:
            CoreError: it is left alone, and another core is to go on.
        """
        while not ended.is_set():
            try:
                self._breaker.check()
            except CoreError as error:
                if self._settings.fallback:
                    raise
                await self._penalise(error)
                await _waited(ended, error.retry_after_s or 0.0)
            else:
                return

    async def _pause(self, busy: CoreBusy, ended: asyncio.Event) -> None:
        """Wait as long as the endpoint asks, or until the generation is wanted no more."""
        pause_s = busy.retry_after_s or 0.0
        logger.warning("core %s is to wait %.1f s: %s", self._name, pause_s, busy)
        await self._penalise(busy)
        await _waited(ended, pause_s)

    async def _counted(self, asked: Any) -> Event:  # noqa: ANN401  an awaitable of the client's
        """Await a request; note whether the endpoint did what it was asked."""
        try:
            answer: Event = await asked
        except KernelError as error:
            if error.code in _BREAKER_CODES:
                self._breaker.failed()
            raise
        self._breaker.succeeded()
        return answer

    async def _probed(self) -> Prefilling | None:
        """Let the endpoint answer, give it back the beginning, and see whether it goes on.

        Raises:
            CoreError: it does not answer at all.
        """
        content: dict[str, object] = {
            "model": self._settings.model,
            "messages": list(PROBE),
            "max_tokens": PROBE_TOKENS,
            "temperature": 0,
        }
        answer = content_of(await self._client.post("chat/completions", content))
        seam = seam_of(answer)
        if seam is None:
            return None
        for mode in MODES:
            verdict = judged(answer, seam, await self._went_on(content, mode, answer[:seam]))
            if verdict == "goes on":
                return Prefilling(mode)
            odd = told_apart(answer[:seam])
            if verdict != "no" and (await self._went_on(content, mode, odd)).startswith(odd):
                return Prefilling(mode, repeats=True)
        return None

    async def _went_on(self, content: dict[str, object], mode: Mode, beginning: str) -> str:
        """Return what the endpoint says behind a beginning; nothing where it refuses the way."""
        try:
            return content_of(
                await self._client.post("chat/completions", prefilled(content, mode, beginning))
            )
        except (CoreError, UnsupportedOption) as error:
            logger.info("core %s: no prefill by %s: %s", self._name, mode, error)
            return ""


@dataclass(slots=True)
class _Paid:
    """What a request took of the account."""

    tokens: int = 0

    def note(self, billed: Billed | None) -> None:
        if billed is not None:
            self.tokens += billed.prompt_tokens + billed.output_tokens


async def _waited(ended: asyncio.Event, limit_s: float) -> None:
    """Wait so long, or until nobody wants the generation any more."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await ended.wait()


async def _until(
    ended: asyncio.Event, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    """Yield events until there are no more, or nobody wants them."""
    waiting = asyncio.ensure_future(ended.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(events, None))
            try:
                await asyncio.wait({coming, waiting}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait({coming})
            if coming.cancelled() or (event := coming.result()) is None:
                return
            yield event
    finally:
        waiting.cancel()
        await events.aclose()
