"""`POST /v1/chat/completions`."""

import time
from contextlib import ExitStack

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_kernel_api.bodies import in_turn, unless_left
from aios_kernel_api.gateway.asking import asking, read, unless_gone
from aios_kernel_api.gateway.chat_answer import ChatPieces, completion_of
from aios_kernel_api.gateway.chat_request import CHAT_FIELDS, ChatRequest, chat_asked
from aios_kernel_api.gateway.state import gateway_of
from aios_kernel_api.gateway.streams import chat_result_of, reply_of, streamed, waiting

_requests = msgspec.json.Decoder(ChatRequest)


async def create(request: Request) -> Response:
    """Generate the next message of a conversation."""
    gateway = gateway_of(request)
    kernel = gateway.kernel
    asked = await read(request, CHAT_FIELDS, _requests)
    named = await gateway.cores.named(asked.body.model)
    async with in_turn(request):
        chat = chat_asked(asked.body, named.core, kernel.config.api_default_max_tokens)
    ask = await asking(
        request,
        left_out=(*asked.not_kept, *chat.not_kept),
        metadata=asked.body.metadata,
        priority=asked.body.priority,
    )
    created_s = int(time.time())
    with ExitStack() as held:
        async with in_turn(request):
            pending = ask.submit(chat.body)
            held.enter_context(waiting(kernel, pending))
        if chat.body.stream:
            pieces = ChatPieces(pending.id, created_s, named.shown, chat.with_usage, chat.one_call)
            return await streamed(request, ask, pending, held, pieces.told)
        reply = await unless_left(request, reply_of(kernel, pending))
    answer = completion_of(reply, chat_result_of(reply), created_s, one_call=chat.one_call)
    headers = ask.headers(pending)
    return Response(msgspec.json.encode(answer), 200, headers, "application/json")


ROUTES = [Route("/v1/chat/completions", unless_gone(create), methods=["POST"])]
