"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's Messages API.

Every version of it (`anthropic-version`) is served in the same way.
"""

from contextlib import ExitStack

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.errors import KernelError
from aios_broker.contract.reply import CountResult
from aios_kernel_api.bodies import in_turn, unless_left
from aios_kernel_api.gateway.asking import asking, read, unless_gone
from aios_kernel_api.gateway.message_reply import MessageEvents, message_of
from aios_kernel_api.gateway.message_request import (
    COUNT_FIELDS,
    MESSAGE_FIELDS,
    CountRequest,
    MessageRequest,
    chat_of,
    count_of,
)
from aios_kernel_api.gateway.state import gateway_of
from aios_kernel_api.gateway.streams import chat_result_of, reply_of, streamed, waiting

_messages = msgspec.json.Decoder(MessageRequest)
_counts = msgspec.json.Decoder(CountRequest)


async def create(request: Request) -> Response:
    """Generate the next message of a conversation."""
    gateway = gateway_of(request)
    kernel = gateway.kernel
    asked = await read(request, MESSAGE_FIELDS, _messages)
    named = await gateway.cores.named(asked.body.model)
    async with in_turn(request):
        body, left_out = chat_of(asked.body, named.core)
    ask = await asking(request, left_out=(*asked.not_kept, *left_out), metadata=asked.body.metadata)
    one_call, thoughts = asked.body.one_call, asked.body.shows_thoughts
    with ExitStack() as held:
        async with in_turn(request):
            pending = ask.submit(body)
            held.enter_context(waiting(kernel, pending))
        if body.stream:
            events = MessageEvents(pending.id, named.shown, one_call, thoughts)
            return await streamed(request, ask, pending, held, events.told)
        reply = await unless_left(request, reply_of(kernel, pending))
    answer = message_of(reply, chat_result_of(reply), one_call=one_call, thoughts=thoughts)
    headers = ask.headers(pending)
    return Response(msgspec.json.encode(answer), 200, headers, "application/json")


async def count_tokens(request: Request) -> Response:
    """Count what a request would have for a prompt, by the tokenizer of its core."""
    gateway = gateway_of(request)
    asked = await read(request, COUNT_FIELDS, _counts)
    named = await gateway.cores.named(asked.body.model)
    ask = await asking(request, left_out=asked.not_kept)
    with ExitStack() as held:
        async with in_turn(request):
            pending = ask.submit(count_of(asked.body, named.core))
            held.enter_context(waiting(gateway.kernel, pending))
        reply = await unless_left(request, reply_of(gateway.kernel, pending))
    if not isinstance(reply.result, CountResult):
        raise KernelError("the reply holds no count", syscall_id=reply.id)
    counted = msgspec.json.encode({"input_tokens": reply.result.prompt_tokens})
    return Response(counted, 200, ask.headers(pending), "application/json")


ROUTES = [
    Route("/v1/messages", unless_gone(create), methods=["POST"]),
    Route("/v1/messages/count_tokens", unless_gone(count_tokens), methods=["POST"]),
]
