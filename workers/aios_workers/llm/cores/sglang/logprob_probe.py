"""Whether a server's log-probabilities are the model's own, or those after temperature.

It does not say. Asked twice for one token, with two tokens far above all others by bias: the
distance between them is that of the biases at temperature 1, and half of it at temperature 2
where the server divides first.
"""

from __future__ import annotations

from typing import Any

import msgspec

from aios_workers.llm.cores.sglang.client import EngineClient, StreamLimits
from aios_workers.llm.cores.sglang.failure import EngineFailure
from aios_workers.llm.cores.sglang.wire import Event

_LIMITS = StreamLimits(60.0, 60.0)
_BIAS = {"0": 100.0, "1": 80.0}  # far over any logit of a model
_RATIO = 1.5


async def gives_original_logprobs(client: EngineClient) -> bool:
    """Ask a server; costs two tokens."""
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
    async for event in client.generate(body, _LIMITS):
        if event.error is not None:
            raise EngineFailure(f"the SGLang server gives no log-probabilities: {event.error}")
        last = event
    try:
        best, second = (last.meta_info.output_top_logprobs or [])[0] or []
        return float(best[0] or 0.0) - float(second[0] or 0.0)
    except (IndexError, ValueError, msgspec.DecodeError) as error:
        raise EngineFailure("the SGLang server gives no log-probabilities") from error
