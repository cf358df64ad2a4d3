"""`POST /v1/embeddings`."""

import base64
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.errors import KernelError
from aios_broker.contract.llm import LlmEmbed
from aios_broker.contract.reply import EmbedResult
from aios_kernel_api.bodies import in_turn, unless_left
from aios_kernel_api.gateway.asking import asking, read, unless_gone
from aios_kernel_api.gateway.completions import token_ids_refused
from aios_kernel_api.gateway.fields import Fields, ignored, kept, refused
from aios_kernel_api.gateway.state import gateway_of
from aios_kernel_api.gateway.streams import reply_of, waiting

Encoding = Literal["float", "base64"]


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """Texts to be embedded."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Encoding | None = None
    priority: int | None = None


_requests = msgspec.json.Decoder(EmbeddingRequest)

EMBEDDING_FIELDS: Fields = {
    "input": kept(
        "text, or up to 2,048; token ids are refused: they are of another model's tokenizer"
    ),
    "model": kept(
        "a core's name, alias or model; any other goes to a core that was made for embeddings, "
        "else to the default core. The answer names the core that it is of"
    ),
    "encoding_format": kept("float, or base64 of little-endian float32"),
    "priority": kept("an addition: a nice value, capped as the header `X-AIOS-Nice`"),
    "dimensions": refused("leave it out: a model has the dimensions that it has"),
    "user": ignored("a label; the token says who asks"),
}


class Embedding(Struct, frozen=True):
    """One vector."""

    index: int
    embedding: Sequence[float] | str
    object: str = "embedding"


class EmbeddingUsage(Struct, frozen=True):
    """What it used, in tokens."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct, frozen=True):
    """One vector per text, in their order."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


async def create(request: Request) -> Response:
    """Turn texts into vectors of length 1."""
    gateway = gateway_of(request)
    asked = await read(request, EMBEDDING_FIELDS, _requests)
    named = await gateway.cores.named(asked.body.model, embeds=True)
    body = LlmEmbed(texts_of(asked.body), named.core)
    ask = await asking(request, left_out=asked.not_kept, priority=asked.body.priority)
    with ExitStack() as held:
        async with in_turn(request):
            pending = ask.submit(body)
            held.enter_context(waiting(gateway.kernel, pending))
        reply = await unless_left(request, reply_of(gateway.kernel, pending))
    if not isinstance(reply.result, EmbedResult):
        raise KernelError("the reply holds no vectors", syscall_id=reply.id)
    answer = embeddings_of(reply.result, asked.body.encoding_format or "float")
    headers = ask.headers(pending)
    return Response(msgspec.json.encode(answer), 200, headers, "application/json")


def texts_of(request: EmbeddingRequest) -> tuple[str, ...]:
    """Return the texts of a request.

    Raises:
        InvalidSyscall: there are token ids among them.
    """
    given = [request.input] if isinstance(request.input, str) else request.input
    texts = tuple(each for each in given if isinstance(each, str))
    if len(texts) < len(given):
        raise token_ids_refused("input")
    return texts


def embeddings_of(result: EmbedResult, encoding: Encoding) -> Embeddings:
    """Return the answer."""
    data = [
        Embedding(number, vector if encoding == "float" else packed(vector))
        for number, vector in enumerate(result.vectors)
    ]
    tokens = result.usage.prompt_tokens
    return Embeddings(data, result.core or result.model, EmbeddingUsage(tokens, tokens))


def packed(vector: Sequence[float]) -> str:
    """Return a vector as base64 of little-endian float32."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


ROUTES = [Route("/v1/embeddings", unless_gone(create), methods=["POST"])]
