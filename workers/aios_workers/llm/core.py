"""A core: one model instance that generates. Token ids go in, token ids come out.

The protocol is what SGLang, llama.cpp and a simulated model have in common: a request is token
ids and sampling values; a generation is a stream of ids that can be aborted at any token; it
is resumed by asking for the same request with the ids so far (`resume_ids`). The core may keep
whatever makes resuming cheap (a KV state in its memory, a radix cache) but nothing that the
result depends on. Text, stop strings, slices and snapshots are the handler's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from aios_broker.contract.errors import CoreAccountExhausted, CoreBusy, CoreError, CoreKeyRefused
from aios_broker.contract.llm import PENALTIES, Image, Message, SamplingOptions, Tool
from aios_broker.contract.money import Billed
from aios_broker.contract.reply import TokenLogprob
from aios_broker.places import Holder
from aios_broker.queues.rate_limits import Permit
from aios_workers.llm.chat.calls import CallFormat
from aios_workers.llm.chat.reasoning import ReasoningTags
from aios_workers.llm.chat.tags import CallTag

T = TypeVar("T")

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]
NOBODY = Holder("", "")
SHORT_CHARACTERS = 16_384  # read in the loop: under 2 ms; a thread costs 0.1 ms more
# The sampling options of a core that samples by itself, by their names in the contract.
SAMPLER_KEEPS = PENALTIES | {"temperature", "top_p", "top_k", "min_p", "logit_bias", "seed"}
CHARACTERS_PER_TOKEN = 4  # about so many, in English text
MAX_CORE_FAILURES = 2  # survived within one attempt; the next one ends the syscall


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a core can do; what it cannot is refused before anything runs."""

    generates: bool = True  # else it makes embeddings alone
    preemptible: bool = True  # a generation can be suspended at any token and resumed
    exact_resume: bool = True  # a resumed generation equals the uninterrupted one, id for id
    # Fields of `LlmChat` that it keeps, of those that have no line of their own here: the sampling
    # options, and `seed` where the same seed draws the same answer.
    keeps: frozenset[str] = frozenset()
    lost_by_suspension: frozenset[str] = frozenset()  # of these: with one it is never suspended
    max_logprobs: int = 0  # alternatives per token; 0: none. Beam search needs 2 x its width
    constraints: bool = False  # a `Constraint` holds
    constraints_preemptible: bool = True  # it holds across a suspension; else there is none
    # `render` shows tools and calls as the model was trained to see them, and so it writes calls;
    # None: the handler shows them in words.
    call_format: CallFormat | None = None
    reasoning: ReasoningTags | None = None  # how it marks what it thinks before it answers
    # Its server holds calls to their form, in a way of its own; what it says of them comes with
    # these marks. Such a generation is never suspended.
    native_calls: bool = False
    forms: frozenset[str] = frozenset({"json", "regex", "grammar"})  # kinds of constraints
    # Its ids are the characters of a text: how many there are says nothing of tokens. Its steps say
    # how many they were (`tokens`), and its answers end when it says so.
    text_ids: bool = False
    embeddings: bool = False
    images: bool = False
    adapters: tuple[str, ...] = ()  # LoRA names that it has loaded
    # Somebody else counts what is paid for: its steps carry `billed`. Else the kernel counts: the
    # prompt once per syscall, and what was generated.
    bills_requests: bool = False

    def can_suspend(self, request: GenerationRequest) -> bool:
        """Whether this generation may be suspended and resumed."""
        if not self.preemptible:
            return False
        if request.constraint is not None and not self.constraints_preemptible:
            return False
        if request.tool_choice is not None and self.native_calls:
            return False
        if request.logprobs is not None and self.text_ids:  # no snapshot keeps those of texts
            return False
        return self.lost_by_suspension.isdisjoint(given_fields(request.sampling))


def given_fields(options: SamplingOptions) -> Iterator[str]:
    """Return the names of the fields that are not as they are when nothing is said."""
    return (name for name, plain in _defaults(type(options)) if getattr(options, name) != plain)


@cache
def _defaults(kind: type[SamplingOptions]) -> tuple[tuple[str, object], ...]:
    return tuple(
        (each.name, each.default if each.default_factory is NODEFAULT else each.default_factory())
        for each in fields(kind)
    )


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """Where a core keeps contexts, and how much of them."""

    name: str = ""  # cores that share it say the same; empty: it is this core's alone
    tokens: int | None = None  # of all contexts together; None: it does not say
    beside_slots: bool = False  # what runs does not count among them


@dataclass(frozen=True, slots=True)
class CoreInfo:
    """What a started core says of itself."""

    model: str  # what its weights are: cores of one model stand for each other
    fingerprint: str  # of weights and build: snapshots resume only where it is equal
    slots: int  # generations it runs at the same time
    context_tokens: int  # prompt and answer together
    capabilities: Capabilities = field(default_factory=Capabilities)
    vocabulary_size: int | None = None  # token ids are below it; None: it does not say
    memory: ContextMemory = ContextMemory()
    name: str = ""  # of the core, as syscalls and `cores.toml` have it; none: its model's
    # What a person is told of it: a word, such as `template`, and where that is from.
    report: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A core without a name of its own has its model's."""
        if not self.name:
            object.__setattr__(self, "name", self.model)

    def tokens_of(self, ids: Sequence[int]) -> int:
        """Return how many tokens ids are; where they are characters, an estimate."""
        if not self.capabilities.text_ids:
            return len(ids)
        return -(-len(ids) // CHARACTERS_PER_TOKEN)

    @property
    def snapshot_model(self) -> str:
        """The model name that a snapshot carries."""
        return f"{self.model}#{self.fingerprint}"


class Sampling(SamplingOptions, frozen=True, kw_only=True, omit_defaults=True):
    """A chat's options, with its seed. Temperature 0 is greedy and ignores the seed.

    The random choice at an absolute position (prompt included) is a function of `seed` and
    that position alone, so that it does not matter how often a generation was
    suspended. Penalties count output tokens, those of earlier slices included.
    """

    seed: int = 0


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole output must be; checked before it comes here (`constraint.check`)."""

    kind: Literal["json", "regex", "grammar"]
    source: str  # a JSON schema as text, a regular expression, or a grammar in Lark's notation
    # Where the grammar is that of a message that may call tools: its calls, and what begins one.
    # For servers that have a notation of their own for it.
    calls: tuple[CallTag, ...] = ()
    trigger: str = ""  # nothing: an answer that begins with a brace is a call


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation. `max_tokens` counts all output tokens, `resume_ids` included."""

    request_id: str  # the syscall's id (32 hex digits): the same across slices
    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling
    resume_ids: Sequence[int] = ()  # output so far, in an earlier slice
    logprobs: int | None = None  # steps carry log-probabilities and so many alternatives
    constraint: Constraint | None = None  # counts from the first output id, resumed or not
    lora: str | None = None
    images: Sequence[Image] = ()  # those of the prompt, in order
    tool_choice: str | None = None  # None: nothing may be called
    resume_tokens: int = 0  # how many tokens `resume_ids` were, where ids are characters
    # Only what was read for the same owner needs no prefill: how much that was, and how fast,
    # would tell what others have sent. Empty: whoever it was read for.
    kv_owner: str = ""
    holder: Holder = NOBODY  # whose turn it takes where its form is tried
    # How long its slot waits for that, see verdicts.py; None: until it is known.
    patience_s: float | None = None
    asks_for_seed: bool = True  # else it is the kernel's: nobody waits for the same draw again


def kv_key(owner: str, of: str = "") -> str:
    """Return what stands for an owner (and for one request of his) where contexts are kept."""
    return hashlib.blake2b(f"{owner}/{of}".encode(), digest_size=16).hexdigest() if owner else of


class ScoredToken(Struct, frozen=True, array_like=True):
    """A token's log-probability, and the best ones at its place, best first.

    The model's own (softmax of the logits), before penalties, bias, temperature and constraints.
    """

    id: int
    logprob: float
    top: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """New output ids, in order. The last step of a finished generation has a finish reason.

    An end-of-generation token is not among the ids. A stream that ends without a finish reason
    was aborted; all ids that were generated have been yielded. `cached_tokens` is set on the
    first step: how many tokens of prompt + resume_ids needed no prefill.

    With `logprobs` each id has its entry. A step that ends with `stop` because the model chose an
    end token has one entry more, of that token: beam search weighs it against the others. Where ids
    are characters there are entries of tokens instead, by their texts (`text_logprobs`).
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    logprobs: tuple[ScoredToken, ...] = ()
    # None: as many as ids. An endpoint's last step may set right what those before have said.
    tokens: int | None = None
    text_logprobs: tuple[TokenLogprob, ...] = ()
    # With `bills_requests`: what the endpoint charges for this request, as far as it is known, or
    # the next part of that. All are added up, none is negative; where a request failed, a step
    # without ids says what it cost before the error is raised.
    billed: Billed | None = None

    @property
    def token_count(self) -> int:
        """How many tokens it has."""
        return len(self.ids) if self.tokens is None else self.tokens


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector of length 1 per text, and what they cost."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int


def unit_vector(values: Sequence[float]) -> tuple[float, ...]:
    """Return a vector of the same direction and of length 1."""
    length = math.sqrt(math.fsum(value * value for value in values))
    return tuple(value / length for value in values)


# Asking once more changes nothing.
HOPELESS = (CoreKeyRefused, CoreAccountExhausted, CoreBusy)


class CoreRetries:
    """Lets one generation go on when its core failed, a few times within one attempt."""

    def __init__(self, core: Core, subject: str) -> None:
        self._core = core
        self._subject = subject  # of the log's lines
        self._failures = 0

    async def recover(self, error: CoreError, tokens: int = 0) -> None:
        """Return when the core is well again; raise the error where it failed too often."""
        self._failures += 1
        if self._failures > MAX_CORE_FAILURES or isinstance(error, HOPELESS):
            raise error
        logger.warning(
            "%s: the core failed after %d tokens, once more: %s", self._subject, tokens, error
        )
        await self._core.health()


class Core(Protocol):
    """One model instance. Started once; methods may be called concurrently from one loop."""

    @property
    def info(self) -> CoreInfo:
        """What it is; valid after `start`."""
        ...

    async def start(self) -> None:
        """Load the model. Raises CoreError when it cannot."""
        ...

    async def close(self) -> None:
        """Free everything; generations under way end as aborted. Safe to call twice."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return the prompt ids of a conversation, by the model's own template.

        `tools` are shown only where there is a `call_format`; elsewhere the handler shows them.
        """
        ...

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        ...

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return one vector of length 1 per text; only with `embeddings`.

        Raises ContextTooLong, with both numbers, for a text that does not fit.
        """
        ...

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of output ids; the end may be a cut-off UTF-8 character."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Generate until an end token, `max_tokens`, or `abort`.

        At most `info.slots` at a time; more wait inside the core. Raises CoreError when the
        core fails (the handler's caller retries on another attempt) and ContextTooLong when
        prompt + max_tokens exceed `info.context_tokens`. Closing the stream ends the generation
        at once and keeps nothing, wherever it is: waiting, prefilling or generating.
        """
        ...

    async def abort(self, request_id: str, *, keep: bool) -> None:
        """End a generation at the next token; its stream yields what is left, then ends.

        `keep`: it will be resumed soon; the core may hold its KV state in memory.
        An unknown id is ignored.
        """
        ...

    async def health(self) -> None:
        """Return when the core answers; raise CoreError when it does not within its limit."""
        ...


class AccountRates(Protocol):
    """The account behind a core, as all workers of the fleet count it."""

    async def wait(self, tokens: int) -> Permit:
        """Return when a request of about so many tokens may be sent."""
        ...

    async def settle(self, permit: Permit, tokens: int) -> None:
        """Set right how many it was."""
        ...

    async def penalise(self, for_s: float) -> None:
        """Let nobody send anything for so long."""
        ...


@runtime_checkable
class Accounted(Protocol):
    """A core whose endpoint keeps an account. Who runs it says by whom that is counted."""

    rates: AccountRates | None


class Reader:
    """Reads for one core, one conversation at a time: a tokenizer is no friend of two threads.

    A core turns text into tokens at some 10 MB/s, and a context may hold 4 MiB: in the loop that
    would hold up every other syscall of the worker, and the renewal of its leases. Tokenizers work
    without Python's lock, so long ones are read in a thread.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aios-reader")
        self._last: Future[Any] | None = None

    async def read(self, characters: int, work: Callable[[], T]) -> T:
        """Return what `work` does with so many characters of text.

        If the caller is cancelled the thread ends what it has begun, for nobody.
        """
        idle = self._last is None or self._last.done()
        if characters <= SHORT_CHARACTERS and idle:
            return work()
        future = self._thread.submit(work)
        self._last = future
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Return when nothing is read any more: the core may free its tokenizer."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)


def characters_of(messages: Sequence[Message]) -> int:
    """Return how much there is to read in a conversation."""
    return sum(
        len(message.content) + sum(len(call.arguments) for call in message.tool_calls)
        for message in messages
    )
