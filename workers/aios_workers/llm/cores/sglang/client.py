"""HTTP with an SGLang server: connections are reused, every wait has a limit, answers are typed.

Fields that we do not use are skipped while decoding; SGLang adds some with every release.
`describe` asks what a server is: its model, its limits, and what its results depend on.
"""

import asyncio
import contextlib
import hashlib
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any, Literal

import httpx
import msgspec
from msgspec import Struct

from aios_broker.contract.errors import CoreError, InvalidConfig
from aios_broker.http_client import HttpClient
from aios_workers.llm.core import Embeddings, unit_vector

DATA = b"data:"
DONE = b"[DONE]"
# log-probability (null: minus infinity), token id, text (we decode ourselves)
LogprobEntry = tuple[float | None, int, Any]
CONNECT_LIMIT_S = 5.0
CALL_LIMIT_S = 10.0  # of a call that generates nothing
BATCH_TEXTS = 32  # of one request for embeddings: a failure repeats no more than these
MAX_LINE_BYTES = 64 * 1024 * 1024  # an event repeats all ids and log-probabilities so far
SAID_CHARACTERS = 300
_KEPT_CONNECTIONS = 64


class EngineFailure(Exception):
    """The server did not do its part. `sick`: it counts against the server's health."""

    def __init__(self, message: str, *, sick: bool = True, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.sick = sick
        self.remedy = remedy

    def to_core_error(self) -> CoreError:
        """Return it as the handler knows it."""
        return CoreError(self.message, remedy=self.remedy)


class Finish(Struct, frozen=True):
    """Why a generation ended. `status_code` is set where an abort is a refusal."""

    type: str
    matched: int | str | list[int] | None = None  # the token or string that ended it
    message: str | None = None
    status_code: int | None = None


class Meta(Struct, frozen=True):
    """What is said beside the ids."""

    finish_reason: Finish | None = None
    cached_tokens: int = 0
    completion_tokens: int | None = None
    weight_version: str | None = None
    output_token_logprobs: list[LogprobEntry] | None = None
    output_top_logprobs: list[list[LogprobEntry] | None] | None = None


class Refusal(Struct, frozen=True):
    """Why the server would not do it."""

    message: str = ""
    code: int | str | None = None


class Event(Struct, frozen=True):
    """One event of a stream: the ids so far, or an error."""

    output_ids: list[int] = []
    meta_info: Meta = Meta()
    error: Refusal | str | None = None


class EmbeddingMeta(Struct, frozen=True):
    """What is said beside a vector."""

    prompt_tokens: int


class Embedding(Struct, frozen=True):
    """The vector of one text."""

    embedding: list[float]
    meta_info: EmbeddingMeta


_decoder = msgspec.json.Decoder(Event)
_embeddings_decoder = msgspec.json.Decoder(list[Embedding])


def decode_line(line: bytes) -> Event | Literal["done"] | None:
    """Read a line of a stream; None for empty lines and comments.

    Raises:
        msgspec.DecodeError: It is not what SGLang says.
    """
    if not line.startswith(DATA):
        if line and not line.startswith(b":"):
            raise msgspec.DecodeError(f"{line[:80]!r} is no event")
        return None
    data = line[len(DATA) :].strip()
    return "done" if data == DONE else _decoder.decode(data)


class EngineClient:
    """Talks to one server. Every failure is an `EngineFailure`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = HttpClient(
                base_url=self.url,
                headers=headers,
                # Streams have their own limits, by the kind of silence.
                timeout=httpx.Timeout(CALL_LIMIT_S, connect=CONNECT_LIMIT_S, read=None, pool=None),
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS
                ),
                trust_env=False,  # a proxy for the web is no way to a server of our own
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise InvalidConfig(
                f"{url!r} is not an address: {error}", field="AIOS_SGLANG_URL", remedy="correct it"
            ) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def get(self, path: str, *, limit_s: float = CALL_LIMIT_S) -> dict[str, Any]:
        """Return the object that stands at a path."""
        data = await self._call("GET", path, None, limit_s)
        try:
            found = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise EngineFailure(f"the SGLang server's {path} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise EngineFailure(f"the SGLang server's {path} is not an object")
        return found

    async def health(self, *, limit_s: float) -> None:
        """Return when the server can generate."""
        await self._call("GET", "/health", None, limit_s)

    async def abort(self, rid: str) -> None:
        """End the request of that id. An unknown one is ignored."""
        await self._call("POST", "/abort_request", {"rid": rid}, CALL_LIMIT_S)

    async def embed(self, ids: Sequence[Sequence[int]], limit_s: float) -> Embeddings:
        """Return one vector of length 1 per text, in their order."""
        found: list[Embedding] = []
        for first in range(0, len(ids), BATCH_TEXTS):
            batch = ids[first : first + BATCH_TEXTS]
            data = await self._call("POST", "/encode", {"input_ids": batch}, limit_s)
            with _translated():
                made = _embeddings_decoder.decode(data)
            if len(made) != len(batch):
                raise EngineFailure(
                    f"the SGLang server made {len(made)} vectors of {len(batch)} texts"
                )
            found += made
        if len({len(each.embedding) for each in found}) > 1:
            raise EngineFailure("the SGLang server made vectors of different sizes")
        tokens = sum(each.meta_info.prompt_tokens for each in found)
        return Embeddings(tuple(map(_direction, found)), tokens)

    async def generate(
        self, body: dict[str, Any], first_limit_s: float, next_limit_s: float
    ) -> AsyncGenerator[Event, None]:
        """Stream a generation; ends only after the server said that it is complete.

        Silence before the first bytes, or between two, beyond the limits is a failure.
        """
        complete = False
        with _translated():
            async with self._http.stream(
                "POST",
                "/generate",
                content=msgspec.json.encode(body),
                headers={"Content-Type": "application/json"},
            ) as response:
                if response.status_code != httpx.codes.OK:
                    async with asyncio.timeout(CALL_LIMIT_S):
                        raise refusal(response.status_code, await response.aread())
                async with contextlib.aclosing(
                    _lines(response, first_limit_s, next_limit_s)
                ) as lines:
                    async for line in lines:
                        event = decode_line(line)
                        if event == "done":
                            complete = True  # read on: then the connection is used again
                        elif event is not None:
                            yield event
        if not complete:
            raise EngineFailure("the SGLang server's stream was cut off")

    async def _call(self, method: str, path: str, body: object, limit_s: float) -> bytes:
        content = None if body is None else msgspec.json.encode(body)
        with _translated(f"the SGLang server did not answer {path} within {limit_s:g} s"):
            async with asyncio.timeout(limit_s):
                response = await self._http.request(
                    method, path, content=content, headers={"Content-Type": "application/json"}
                )
        if response.status_code != httpx.codes.OK:
            raise refusal(response.status_code, response.content)
        return response.content


def _direction(found: Embedding) -> tuple[float, ...]:
    if not any(found.embedding) or not all(map(math.isfinite, found.embedding)):
        raise EngineFailure("the SGLang server made a vector that has no direction")
    return unit_vector(found.embedding)


def refusal(status: int, body: bytes) -> EngineFailure:
    """Return what an answer other than 200 means. What we did wrong does not make it sick."""
    said = body.decode("utf-8", "replace").strip()[:SAID_CHARACTERS]
    remedy = None
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        remedy = "set AIOS_SGLANG_API_KEY to the server's key"
    elif status == httpx.codes.NOT_FOUND:
        remedy = "see whether AIOS_SGLANG_URL is the address of an SGLang server"
    server_error = status >= httpx.codes.INTERNAL_SERVER_ERROR
    return EngineFailure(
        f"the SGLang server answered {status}: {said}", sick=server_error, remedy=remedy
    )


async def _lines(
    response: httpx.Response, first_limit_s: float, next_limit_s: float
) -> AsyncGenerator[bytes, None]:
    """Split a stream into lines. Silence beyond the limits is a failure."""
    rest = b""
    chunks = response.aiter_bytes()
    limit_s = first_limit_s
    while (chunk := await _next_chunk(chunks, limit_s)) is not None:
        limit_s = next_limit_s
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise EngineFailure(f"the SGLang server sent a line of over {MAX_LINE_BYTES} bytes")
        for line in whole:
            yield line.rstrip(b"\r")


async def _next_chunk(chunks: AsyncIterator[bytes], limit_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(limit_s):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise EngineFailure(f"the SGLang server made no step for {limit_s:g} s") from error


@contextlib.contextmanager
def _translated(when_late: str = "the SGLang server did not answer in time") -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise EngineFailure(when_late) from error
    except httpx.ConnectError as error:
        raise EngineFailure(f"the SGLang server cannot be reached: {error}") from error
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        raise EngineFailure(f"the connection to the SGLang server failed: {what}") from error
    except msgspec.DecodeError as error:
        raise EngineFailure(f"the SGLang server sent what is not an event: {error}") from error


MAX_NAME = 128
FINGERPRINT_DIGITS = 16
# The same for two servers whose snapshots are exchangeable. Not among them: ports, sizes of pools
# and batches, what is logged; they change when tokens are computed, not which.
_DECIDES_RESULTS = (
    "version",
    "model_path",
    "revision",
    "weight_version",
    "load_format",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "device",
    "tp_size",
    "pp_size",
    "attention_backend",
    "decode_attention_backend",
    "prefill_attention_backend",
    "sampling_backend",
    "enable_deterministic_inference",
    "speculative_algorithm",
    "json_model_override_args",
)

PROBE_LIMIT_S = 60.0
_BIAS = {"0": 100.0, "1": 80.0}  # far over any logit of a model
_RATIO = 1.5


class _Adapter(Struct, frozen=True):
    lora_name: str


class _Load(Struct, frozen=True):
    effective_max_running_requests_per_dp: int | None = None


class Description(Struct, frozen=True, kw_only=True):
    """A server's `/model_info` and `/server_info`, as far as we need them."""

    version: str
    model_path: str
    tokenizer_path: str | None = None
    served_model_name: str | None = None
    is_generation: bool = True
    weight_version: str | None = None
    max_req_input_len: int
    max_total_num_tokens: int | None = None  # of all contexts in its memory
    dp_size: int = 1
    internal_states: list[_Load] = []
    incremental_streaming_output: bool = False
    enable_deterministic_inference: bool = False
    preferred_sampling_params: Any = None
    lora_paths: Any = None
    grammar_backend: str | None = None
    skip_tokenizer_init: bool = False
    fingerprint: str = ""

    @property
    def max_running_requests(self) -> int | None:
        """How many requests the server runs at once; None: it does not say."""
        each = [load.effective_max_running_requests_per_dp for load in self.internal_states]
        known = [number for number in each if number]
        return min(known) * self.dp_size if known else None

    @property
    def constraints_by(self) -> str | None:
        """What holds its answers to a form; None: nothing. That needs its tokenizer, too."""
        return None if self.skip_tokenizer_init else self.grammar_backend

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that were loaded at its start."""
        if isinstance(self.lora_paths, dict):
            return tuple(self.lora_paths)
        try:
            found = msgspec.convert(self.lora_paths or [], list[_Adapter])
        except msgspec.ValidationError:
            return ()
        return tuple(adapter.lora_name for adapter in found)

    @property
    def name(self) -> str:
        """The model's name without folders, of characters that a core's name may have."""
        said = (self.served_model_name or self.model_path).rstrip("/")
        last = said.rsplit("/", 1)[-1] if said.startswith(("/", ".", "~")) else said
        return re.sub(r"[^A-Za-z0-9._:@/-]", "-", last)[:MAX_NAME] or "sglang"

    def is_called(self, model: str) -> bool:
        """Whether a setting means this model."""
        return model.rstrip("/") in (self.model_path.rstrip("/"), self.served_model_name, self.name)


def describe(model_info: dict[str, Any], server_info: dict[str, Any]) -> Description:
    """Read what a server says of itself.

    Raises:
        EngineFailure: It lacks what every SGLang server says.
        InvalidConfig: It would change what syscalls ask for.
    """
    said = {**server_info, **model_info}
    try:
        found = msgspec.convert(said, Description, strict=False)
    except msgspec.ValidationError as error:
        raise EngineFailure(f"this is no SGLang server that we know: {error}") from error
    if found.preferred_sampling_params:
        raise InvalidConfig(
            "the SGLang server has sampling values of its own, which change what syscalls ask for",
            field="AIOS_SGLANG_URL",
            remedy="start it without --preferred-sampling-params",
        )
    return msgspec.structs.replace(found, fingerprint=_fingerprint(said))


def _fingerprint(said: dict[str, Any]) -> str:
    material: dict[str, Any] = {key: said.get(key) for key in _DECIDES_RESULTS}
    if said.get("load_format") == "dummy":  # else the seed is drawn anew at each start
        material["random_seed"] = said.get("random_seed")
    if not said.get("is_generation", True):
        material["is_generation"] = False
    data = msgspec.json.encode(material, order="deterministic")
    return hashlib.sha256(data).hexdigest()[:FINGERPRINT_DIGITS]


async def gives_original_logprobs(client: EngineClient) -> bool:
    """Whether log-probabilities are the model's own, and not those after temperature.

    The server does not say. Asked twice for one token, with two tokens far above all others by
    bias: the distance between them is that of the biases at temperature 1, and half of it at
    temperature 2 where the server divides first. Costs two tokens.
    """
    at_1, at_2 = await _distance(client, 1.0), await _distance(client, 2.0)
    return at_1 < at_2 * _RATIO


async def _distance(client: EngineClient, temperature: float) -> float:
    params: dict[str, Any] = {
        "temperature": temperature,
        "max_new_tokens": 1,
        "ignore_eos": True,
        "logit_bias": _BIAS,
    }
    body = {
        "input_ids": [0],
        "stream": True,
        "return_logprob": True,
        "top_logprobs_num": 2,
        "sampling_params": params,
    }
    last = Event()
    async for event in client.generate(body, PROBE_LIMIT_S, PROBE_LIMIT_S):
        if event.error is not None:
            raise EngineFailure(f"the SGLang server gives no log-probabilities: {event.error}")
        last = event
    try:
        best, second = (last.meta_info.output_top_logprobs or [])[0] or []
        return float(best[0] or 0.0) - float(second[0] or 0.0)
    except (IndexError, ValueError, msgspec.DecodeError) as error:
        raise EngineFailure("the SGLang server gives no log-probabilities") from error
