"""What an SGLang server says it is: its model, its limits, and what its results depend on."""

import hashlib
import re
from typing import Any

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.sglang.client import EngineClient, EngineFailure, Event

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
