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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from aios_broker.contract.cores import OpenAISettings
from aios_broker.contract.errors import CoreBusy, CoreError, KernelError, UnsupportedOption
from aios_broker.contract.llm import Message, Tool
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
    given_fields,
    unit_vector,
)
from aios_workers.llm.cores.base_core import CircuitBreaker, FailureLimit
from aios_workers.llm.cores.openai.answer import (
    THOUGHTS,
    Answer,
    PartialAnswer,
    billed_of,
    content_of,
)
from aios_workers.llm.cores.openai.client import Client, Event, Limits
from aios_workers.llm.cores.openai.defaults import Defaults
from aios_workers.llm.cores.openai.forms import (
    choice_form,
    message_form,
    response_form,
    tool_form,
    with_images,
)
from aios_workers.llm.cores.openai.prefill import ids_of, prefilled, text_of
from aios_workers.llm.cores.openai.probe import Prefilling, probed

logger = logging.getLogger(__name__)

KEEPS = frozenset({"temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"})
NO_SNAPSHOT = "text-to-its-end"  # where no snapshot goes on: nobody's is read there
TEXT = "text"  # the fingerprint of a model that is known by its name alone
UNKNOWN_CONTEXT_TOKENS = 1_000_000_000  # the endpoint refuses what is too long
LONGEST_HELD_S = 30.0  # a longer pause is not waited for with a slot in hand
LEAST_PAUSE_S = 0.1
MAX_LOGPROBS = 20  # the API's own limit
MAX_PAUSES = 5  # that an endpoint asks for, of one request
FAILURES = FailureLimit(5, window_s=60.0, rest_s=10.0)
HEALTH_LIMIT_S = 5.0  # one that does not come back is given up; where it can, others go on
LONGEST_WAIT_S = 0.5  # between two looks
_BREAKER_CODES = frozenset({"core-error"})  # what its own fault is; a busy one is not broken


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
        self._defaults = Defaults()
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
            self._prefilling = await probed(self._asked_at_start, settings.model, self._name)
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
                max_logprobs=MAX_LOGPROBS,
                reasoning=THOUGHTS,
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
        """Return one vector of length 1 per text, when the account has room for them."""
        about = sum(map(len, texts)) // CHARACTERS_PER_TOKEN
        content: dict[str, object] = {"model": self._settings.model, "input": list(texts)}
        answer = await self._embedded(content, max(1, about))
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
        return Embeddings(vectors, billed_of(answer).prompt_tokens or about)

    async def _embedded(self, content: dict[str, object], about_tokens: int) -> Event:
        nobody, pauses = asyncio.Event(), 0
        while True:
            await self._rested(nobody)
            try:
                async with self._permitted(about_tokens) as paid:
                    answer = await self._counted(self._client.post("embeddings", content))
                    paid.tokens = billed_of(answer).prompt_tokens or about_tokens
                    return answer
            except CoreBusy as busy:
                await self._pause(busy, nobody, pauses)
                pauses += 1

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Ask the endpoint, and yield its answer character by character.

        Raises:
            CoreError: by kind: the key, the account, a pause that takes too long, a fault.
            UnsupportedOption: it does not know an option.
        """
        content, about_tokens = self._content(request), self._about_tokens(request)
        ended = asyncio.Event()
        self._running[request.request_id] = ended
        refused, pauses = self._defaults.refused, 0
        try:
            while not ended.is_set():
                await self._rested(ended)
                begun = False
                said = self._defaults.said(content, refused)
                try:
                    async with (
                        self._permitted(about_tokens) as paid,
                        contextlib.aclosing(self._asked(said, request, ended)) as steps,
                    ):
                        async for step in steps:
                            begun = begun or bool(step.ids)
                            paid.note(step.billed)
                            yield step
                    self._defaults.refused |= refused
                    return
                except UnsupportedOption as refusal:
                    more = self._defaults.also_refused(refused, refusal, content)
                    if begun or more is None:
                        raise
                    refused = more
                except CoreBusy as busy:
                    await self._pause(busy, ended, pauses)
                    pauses += 1
                    if begun:  # what has come stands: its caller goes on from there
                        raise CoreError(busy.message) from busy
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
        read = self.info.tokens_of(request.prompt_ids) + request.resume_tokens
        answer = Answer(read, PartialAnswer.of(request.resume_ids), repeats=self._repeats)
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
        if (missing := self._missing(request, answer)) is not None:
            yield Step((), tokens=last.tokens, billed=last.billed)
            raise missing
        yield last

    def _missing(self, request: GenerationRequest, answer: Answer) -> UnsupportedOption | None:
        """Return what an answer lacks that was asked for; None: nothing."""
        if request.tool_choice not in (None, "auto", "none") and not answer.has_calls:
            lacks = "answers without a call although one is required"
            option, remedy = "tool_choice", "use auto, or name another core"
        elif request.logprobs is not None and answer.has_text and not answer.has_logprobs:
            lacks = "gives no log-probabilities"
            option, remedy = "logprobs", "leave it out, or name another core"
        else:
            return None
        return UnsupportedOption(
            f"core {self._name!r}: its endpoint {lacks}", field=f"body.{option}", remedy=remedy
        )

    @property
    def _repeats(self) -> bool | None:
        return None if self._prefilling is None else self._prefilling.repeats

    def _content(self, request: GenerationRequest) -> dict[str, object]:
        """Return the body of the request that asks for a generation."""
        conversation = json.loads(text_of(request.prompt_ids))
        sampling = request.sampling
        content: dict[str, object] = {
            "model": self._settings.model,
            "messages": with_images(conversation["messages"], request.images),
            "max_tokens": max(1, request.max_tokens - request.resume_tokens),
            "temperature": sampling.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in given_fields(sampling):
            value = getattr(sampling, name)
            content[name] = msgspec.to_builtins(value, str_keys=True)
        content.pop("seed", None)
        if request.asks_for_seed:
            content["seed"] = sampling.seed
        if request.logprobs is not None:
            content["logprobs"] = True
            content |= {"top_logprobs": request.logprobs} if request.logprobs else {}
        if conversation["tools"]:
            content["tools"] = conversation["tools"]
            content["tool_choice"] = choice_form(request.tool_choice)
        if request.constraint is not None:
            content["response_format"] = response_form(request.constraint.source)
        if text := PartialAnswer.of(request.resume_ids).text:
            assert self._prefilling is not None, "else it is never suspended"
            return prefilled(content, self._prefilling.mode, text)
        return content

    async def _asked_at_start(self, content: Mapping[str, object]) -> str:
        """Return the text of an answer, however long the endpoint asks to be left alone."""
        refused = self._defaults.refused
        while True:
            try:
                said = self._defaults.said(content, refused)
                events = self._client.stream("chat/completions", {**said, "stream": True})
                async with contextlib.aclosing(events) as told:
                    text = "".join([content_of(event) async for event in told])
            except UnsupportedOption as refusal:
                more = self._defaults.also_refused(refused, refusal, content)
                if more is None:
                    raise
                refused = more
            except CoreBusy as busy:
                pause_s = max(LEAST_PAUSE_S, busy.retry_after_s or 0.0)
                logger.warning("core %s: its start waits %.1f s: %s", self._name, pause_s, busy)
                await asyncio.sleep(pause_s)
            else:
                self._defaults.refused |= refused
                return text

    def _about_tokens(self, request: GenerationRequest) -> int:
        """Return how many tokens a request takes of the account, at most."""
        return self.info.tokens_of(request.prompt_ids) + request.max_tokens

    @contextlib.asynccontextmanager
    async def _permitted(self, about_tokens: int) -> AsyncIterator["_Paid"]:
        """Wait until the account has room for a request; set right what it took afterwards."""
        paid = _Paid()
        if self.rates is None:
            yield paid
            return
        permit = await self.rates.wait(about_tokens)
        try:
            yield paid
        except (asyncio.CancelledError, GeneratorExit):
            paid.tokens = paid.tokens or about_tokens  # nobody heard what it took
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

    async def _pause(self, busy: CoreBusy, ended: asyncio.Event, pauses: int) -> None:
        """Wait as long as the endpoint asks, or until the generation is wanted no more.

        Raises:
            CoreBusy: it asks too often, or for too long a time.
        """
        pause_s = busy.retry_after_s or 0.0
        await self._penalise(busy)
        if pauses == MAX_PAUSES or pause_s > LONGEST_HELD_S:
            raise busy
        logger.warning("core %s is to wait %.1f s: %s", self._name, pause_s, busy)
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
