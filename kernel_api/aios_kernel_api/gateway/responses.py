"""`/v1/responses`: OpenAI's Responses API, whose conversations are contexts of the kernel.

POST   /v1/responses                    make one; streamed, or in the background
POST   /v1/responses/input_tokens       count what one would have for a prompt
GET    /v1/responses/{id}               how it stands
DELETE /v1/responses/{id}               forget it
POST   /v1/responses/{id}/cancel        end one that runs in the background
GET    /v1/responses/{id}/input_items   what it was asked
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import InvalidSyscall, KernelError, NotFound
from aios_broker.contract.llm import LlmCount
from aios_broker.contract.reply import Chunk, CountResult, Reply
from aios_kernel_api.bodies import in_turn, query_of, unless_left
from aios_kernel_api.events import KEEP_ALIVE, EventStream, Source, event
from aios_kernel_api.gateway.asking import Ask, asking, read, unless_gone
from aios_kernel_api.gateway.items import Json, conversation_of, listed
from aios_kernel_api.gateway.openai_errors import openai_body
from aios_kernel_api.gateway.response_events import ResponseEvents
from aios_kernel_api.gateway.response_object import PREFIX
from aios_kernel_api.gateway.response_object import Response as Answer
from aios_kernel_api.gateway.response_records import Record, Records, concluded
from aios_kernel_api.gateway.response_request import (
    INPUT_FIELDS,
    RESPONSE_FIELDS,
    InputRequest,
    ResponseRequest,
    chat_of,
    check_request,
    echoed,
    instructions_of,
    toolset,
    unheld_in,
)
from aios_kernel_api.gateway.response_tools import toolset_of
from aios_kernel_api.gateway.state import Gateway, gateway_of
from aios_kernel_api.gateway.streams import Events, Hearing, begun, heard, reply_of, waiting
from aios_kernel_api.identity import caller_of, require_agent
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.problems import told

logger = logging.getLogger(__name__)

encode = msgspec.json.encode
_responses = msgspec.json.Decoder(ResponseRequest)
_inputs = msgspec.json.Decoder(InputRequest)


def now_s() -> int:
    """Return the time of day."""
    return int(time.time())


class ItemsQuery(Struct, frozen=True):
    """Which of the items are wanted."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    include: str | None = None


async def create(request: Request) -> Response:
    """Make a response."""
    gateway = gateway_of(request)
    body = await read(request, RESPONSE_FIELDS, _responses)
    asked = body.body
    check_request(asked)
    records = Records(gateway.kernel, require_agent(caller_of(request)))
    previous = await _previous(records, asked)
    ask = await asking(
        request,
        left_out=(*body.not_kept, *unheld_in(asked)),
        metadata=asked.metadata,
        known_program=None if previous is None else previous.program,
    )
    with ExitStack() as held:
        async with in_turn(request):
            making, pending = await _submitted(gateway, ask, asked, records, previous)
            if not asked.background:
                held.enter_context(waiting(gateway.kernel, pending))
        headers = ask.headers(pending)
        if asked.background:
            return await _in_background(request, gateway, making, pending, headers)
        if not asked.stream:
            reply = await unless_left(request, reply_of(gateway.kernel, pending))
            return _answer(await making.conclude(reply), headers)
        hearing = heard(gateway.kernel, pending)
        first = await unless_left(request, begun(hearing))
        source = _source(hearing, first, making, pending)
        return EventStream(source, held.pop_all(), headers)


async def count_input(request: Request) -> Response:
    """Count what a response would have for a prompt, by the tokenizer of its core."""
    gateway = gateway_of(request)
    body = await read(request, INPUT_FIELDS, _inputs)
    asked = body.body
    records = Records(gateway.kernel, require_agent(caller_of(request)))
    previous = await _previous(records, asked)
    named = await gateway.cores.named(asked.model)
    ask = await asking(request, left_out=body.not_kept)
    with ExitStack() as held:
        async with in_turn(request):
            place = await records.place(
                "",
                instructions_of(asked),
                conversation_of(asked.items),
                previous,
                needs_context=False,
            )
            tools = toolset_of(asked.tools or (), None).tools
            pending = ask.submit(LlmCount(core=named.core, messages=place.messages, tools=tools))
            held.enter_context(waiting(gateway.kernel, pending))
        reply = await unless_left(request, reply_of(gateway.kernel, pending))
    if not isinstance(reply.result, CountResult):
        raise KernelError("the reply holds no count", syscall_id=reply.id)
    counted = {"object": "response.input_tokens", "input_tokens": reply.result.prompt_tokens}
    return Response(encode(counted), 200, ask.headers(pending), "application/json")


async def retrieve(request: Request) -> Response:
    """Return a response as it stands now."""
    if request.query_params.get("stream", "").lower() in ("true", "1"):
        raise InvalidSyscall(
            "a response that was made is not streamed again",
            field="stream",
            remedy="ask for it without stream until its status is final, or read the events of its "
            "syscall: GET /v1/syscalls/{id}/events, where the id is what follows resp_",
        )
    _, record = await _found(request)
    return _answer(record, {})


async def delete(request: Request) -> Response:
    """Forget a response; one that still runs is ended."""
    records, record = await _found(request)
    await records.drop(record.response.id)
    if not record.is_over:
        await gateway_of(request).kernel.cancel(record.syscall_id, "llm", records.owner)
    gone = {"id": record.response.id, "object": "response", "deleted": True}
    return Response(encode(gone), media_type="application/json")


async def cancel(request: Request) -> Response:
    """End a response that runs in the background; one that has ended stays as it is."""
    records, record = await _found(request)
    if not record.response.echo.get("background"):
        raise InvalidSyscall(
            "only a response in the background can be cancelled",
            field="response_id",
            remedy="close the connection of one that is waited for",
        )
    if not record.is_over:
        await gateway_of(request).kernel.cancel(record.syscall_id, "llm", records.owner)
        record = await records.looked_after(record, now_s())
    return _answer(record, {})


async def input_items(request: Request) -> Response:
    """Return what a response was asked, page by page."""
    query = query_of(request, ItemsQuery)
    _, record = await _found(request)
    items = record.items if query.order == "asc" else record.items[::-1]
    ids = [str(each["id"]) for each in items]
    if query.after is not None:
        if query.after not in ids:
            raise InvalidSyscall(
                "there is no such item", field="after", remedy="take the last id of a page"
            )
        items = items[ids.index(query.after) + 1 :]
    page = items[: query.limit]
    answer = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }
    return Response(encode(answer), media_type="application/json")


# Making one.


@dataclass(frozen=True, slots=True)
class Making:
    """A response that is being made."""

    asked: ResponseRequest
    records: Records
    record: Record

    async def begin(self) -> None:
        """Keep it as one that has no answer yet."""
        await self.records.keep(self.record, known=False)

    async def conclude(self, reply: Reply) -> Record:
        """Return it with its answer; keep it so, unless it is not to be kept."""
        if not self.asked.is_stored:
            return concluded(self.record, reply, now_s())
        is_known = bool(self.asked.background)
        return await self.records.conclude(self.record, reply, now_s(), known=is_known)


async def _previous(records: Records, asked: InputRequest) -> Record | None:
    if asked.previous_response_id is None:
        return None
    record = await records.find(asked.previous_response_id, "previous_response_id")
    return await records.looked_after(record, now_s())


async def _submitted(
    gateway: Gateway,
    ask: Ask,
    asked: ResponseRequest,
    records: Records,
    previous: Record | None,
) -> tuple[Making, Pending]:
    """Publish the syscall of a response; return it with what will be kept."""
    tools, instructions = toolset(asked), instructions_of(asked)
    named = await gateway.cores.named(asked.model)
    syscall_id = ask.new_id()
    response_id = PREFIX + syscall_id
    place = await records.place(
        response_id,
        instructions,
        conversation_of(asked.items),
        previous,
        needs_context=asked.is_stored and (previous is not None or bool(asked.background)),
    )
    limit = gateway.kernel.config.api_default_max_tokens
    body = chat_of(
        asked,
        place.messages,
        tools,
        core=named.core,
        context=place.context or None,
        default_max_tokens=limit,
    )
    answer = Answer(
        id=response_id,
        created_at=now_s(),
        status="queued" if asked.background else "in_progress",
        model=named.shown,
        echo=echoed(asked),
    )
    record = Record(
        answer,
        listed(asked.items, response_id),
        ask.labels.program,
        instructions,
        dict(tools.names),
        one_call=asked.parallel_tool_calls is False,
        context=place.context,
        end=place.end if place.context else 0,
    )
    return Making(asked, records, record), ask.submit(body, syscall_id=syscall_id)


async def _in_background(
    request: Request, gateway: Gateway, making: Making, pending: Pending, headers: dict[str, str]
) -> Response:
    """Answer at once, or stream; either way it goes on without its client."""
    with ExitStack() as held:
        held.enter_context(_going_on(gateway, making, pending))
        await pending.taken()
        await making.begin()
        if not making.asked.stream:
            return _answer(making.record, headers)
        source = _source(heard(gateway.kernel, pending), (), making, pending)
        return EventStream(source, held.pop_all(), headers)


@contextmanager
def _going_on(gateway: Gateway, making: Making, pending: Pending) -> Iterator[None]:
    """Let a syscall go on when the block is left, and see that its answer is kept."""
    pending.waiters += 1
    try:
        yield
    finally:
        pending.waiters -= 1
        gateway.kernel.session.let_go(pending)
        if pending.was_accepted:
            gateway.go_on(_looked_after(gateway.kernel, making))


async def _looked_after(kernel: Kernel, making: Making) -> None:
    """Keep an answer once it is there; where this process stops, whoever asks for it does."""
    records, record = making.records, making.record
    pending = kernel.session.attach(record.syscall_id, records.owner)
    leaving = asyncio.ensure_future(kernel.leaving.wait())
    try:
        await asyncio.wait((pending.ended, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    try:
        if pending.reply is not None:
            await records.looked_after(await records.find(record.response.id), now_s())
    except NotFound:
        logger.info("response %s was deleted before it ended", record.response.id)


async def _source(hearing: Hearing, first: Events, making: Making, pending: Pending) -> Source:
    """Yield the events of a response; it is kept before its last one goes out."""
    record = making.record
    events = ResponseEvents(record.response, record.names, one_call=record.one_call)
    async with aclosing(hearing):
        yield _sent(events.begin())
        async for some in _from(first, hearing):
            if not some:
                yield KEEP_ALIVE
            for each in some:
                if isinstance(each, Chunk):
                    yield _sent(events.hear(each))
                else:
                    yield await _last(events, each, making, is_real=pending.reply is not None)


async def _last(events: ResponseEvents, reply: Reply, making: Making, *, is_real: bool) -> bytes:
    """Return the last events; `is_real`: the reply is the kernel's, not this process' good-bye."""
    try:
        if is_real:
            await making.conclude(reply)
    except KernelError as error:
        logger.warning("response %s is not kept: %s", making.record.response.id, error)
        said = openai_body(told(error)).error
        failed = {"type": "error", "code": said.code, "message": said.message, "param": said.param}
        return _sent([{**failed, "sequence_number": events.number}])
    return _sent(events.end(reply, now=now_s()))


async def _from(first: Events, hearing: Hearing) -> AsyncIterator[Events]:
    if first:
        yield first
    async for events in hearing:
        yield events


def _sent(events: Iterable[Json]) -> bytes:
    return b"".join(event(encode(each), str(each["type"])) for each in events)


def _answer(record: Record, headers: Mapping[str, str]) -> Response:
    return Response(encode(record.response.shown()), 200, headers, "application/json")


async def _found(request: Request) -> tuple[Records, Record]:
    """Return the response that a path names, as it stands now."""
    records = Records(gateway_of(request).kernel, require_agent(caller_of(request)))
    record = await records.find(request.path_params["id"])
    return records, await records.looked_after(record, now_s())


ROUTES = [
    Route("/v1/responses", unless_gone(create), methods=["POST"]),
    Route("/v1/responses/input_tokens", unless_gone(count_input), methods=["POST"]),
    Route("/v1/responses/{id}", retrieve),
    Route("/v1/responses/{id}", delete, methods=["DELETE"]),
    Route("/v1/responses/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/responses/{id}/input_items", input_items),
]
