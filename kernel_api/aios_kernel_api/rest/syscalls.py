"""Submit syscalls, look at one, wait for it, cancel it.

    POST /v1/syscalls                   one or a list; ?wait_s= waits for the answers
    GET  /v1/syscalls/{id}              where it stands, and its answer; ?wait_s= waits for that
    GET  /v1/syscalls/{id}/wait         the same, as soon as it has ended
    POST /v1/syscalls/{id}/cancel       end it

A syscall is published as soon as it is acknowledged here, and goes on when its client leaves: only
`cancel` ends it. `Idempotency-Key`, or `key` in the body, names it: the same key, the same syscall.
"""

from contextlib import ExitStack
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.errors import InvalidRequest, InvalidSyscall, from_wire
from aios_broker.contract.names import Module, Name, SyscallId
from aios_broker.contract.syscall import DEFAULT_DEADLINE_S, MAX_DEADLINE_S, Body, Syscall
from aios_kernel_api.bodies import decode, decode_each, in_turn, query_of, read_body
from aios_kernel_api.identity import Caller, caller_of, require_agent
from aios_kernel_api.kernel import Found, Kernel, kernel_of
from aios_kernel_api.large_work import PIECE_BYTES, WorkProgress, weight_of
from aios_kernel_api.rest.syscall_lists import Batch, several
from aios_kernel_api.rest.syscall_view import (
    answer,
    ended,
    ended_view,
    heard,
    standing,
    taken_view,
    view_of,
)

MAX_WAIT_S = 600.0
MAX_LIST = 500
MAX_LIST_BYTES = 16 * 1024 * 1024
KEY_HEADER = "idempotency-key"

Key = Annotated[str, Meta(min_length=1, max_length=256)]
WaitS = Annotated[float, Meta(ge=0.0, le=MAX_WAIT_S)]


class SyscallRequest(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A syscall, as the agent of the token asks for it."""

    body: Body
    program: Name = "main"  # one run of the agent towards one task
    nice: Annotated[int, Meta(ge=-20, le=19)] = 0  # lower goes first
    deadline_s: Annotated[float, Meta(gt=0.0, le=MAX_DEADLINE_S)] = DEFAULT_DEADLINE_S
    key: Key | None = None  # the same key, the same syscall


_REQUESTS: msgspec.json.Decoder[SyscallRequest | list[SyscallRequest]] = msgspec.json.Decoder(
    SyscallRequest | Annotated[list[SyscallRequest], Meta(min_length=1, max_length=MAX_LIST)]
)
_REQUEST = msgspec.json.Decoder(SyscallRequest)


class SubmitQuery(Struct, frozen=True):
    """How long to wait for the answers."""

    wait_s: WaitS = 0.0


class WaitQuery(Struct, frozen=True):
    """How long to wait for the answer."""

    wait_s: WaitS = 30.0


async def submit(request: Request) -> Response:
    """Publish one syscall, or several."""
    kernel, caller = kernel_of(request), caller_of(request)
    require_agent(caller)
    wait_s = query_of(request, SubmitQuery).wait_s
    data = await read_body(request, most_bytes=MAX_LIST_BYTES)
    async with in_turn(request) as progress:
        asked = await _read(data, progress)
    key = _key_in(request, alone=isinstance(asked, SyscallRequest))
    if isinstance(asked, SyscallRequest):
        return await _one(request, _syscall(kernel, caller, asked, key), wait_s)
    batches = [
        (size_bytes, [_syscall(kernel, caller, each, None) for each in batch])
        for size_bytes, batch in asked
    ]
    return await several(request, batches, wait_s)


async def _read(
    data: bytes, progress: WorkProgress
) -> SyscallRequest | list[Batch[SyscallRequest]]:
    """Return what a body asks for: one syscall, or several in the batches that they go on in."""
    if len(data) <= PIECE_BYTES or data.lstrip()[:1] != b"[":
        asked = decode(data, _REQUESTS)
        return asked if isinstance(asked, SyscallRequest) else [(len(data), asked)]
    batches: list[Batch[SyscallRequest]] = []
    count, size_bytes = 0, 0
    async for each, each_bytes in decode_each(data, _REQUEST, progress):
        count += 1
        if count > MAX_LIST:
            raise InvalidSyscall(
                f"the list has more than {MAX_LIST} syscalls",
                field="body",
                remedy="send them in several requests",
            )
        size_bytes += each_bytes
        if not batches or size_bytes > PIECE_BYTES:
            batches.append((0, []))
            size_bytes = each_bytes
        batches[-1] = (size_bytes, batches[-1][1])
        batches[-1][1].append(each)
    return batches


async def get(request: Request) -> Response:
    """Show where a syscall stands; who waits hears as soon as it has ended."""
    wait_s = query_of(request, SubmitQuery).wait_s
    if wait_s > 0:
        return await _waited(request, wait_s)
    found = await kernel_of(request).find(id_in(request), caller_of(request).asks_as)
    return await _shown(request, id_in(request), found)


async def wait(request: Request) -> Response:
    """Answer as soon as a syscall has ended; 202 where it has not by then."""
    return await _waited(request, query_of(request, WaitQuery).wait_s)


async def _waited(request: Request, wait_s: float) -> Response:
    kernel, syscall_id = kernel_of(request), id_in(request)
    found = await kernel.find(syscall_id, caller_of(request).asks_as)
    if found.live is None:
        return await _shown(request, syscall_id, found)
    pending = kernel.session.attach(syscall_id, found.live.metadata.owner)
    with kernel.holding(pending):
        await ended(request, [pending.ended], wait_s)
        reply = heard(pending)
    if reply is not None:
        return answer(ended_view(reply))
    found = await kernel.find(syscall_id, caller_of(request).asks_as)
    return await _shown(request, syscall_id, found, 202 if found.live is not None else 200)


async def _shown(request: Request, syscall_id: str, found: Found, status: int = 200) -> Response:
    """Return what shows a syscall; a large reply is read in its tenant's turn."""
    async with kernel_of(request).large_work.of(caller_of(request).owner) as progress:
        await progress.before(weight_of(found.reply or b""))
        return answer(view_of(syscall_id, found), status)


async def cancel(request: Request) -> Response:
    """End a syscall; one that has ended stays as it is, and is shown."""
    kernel, caller, syscall_id = kernel_of(request), caller_of(request), id_in(request)
    found = await kernel.find(syscall_id, caller.asks_as)
    if found.live is not None:
        module = msgspec.convert(found.live.module, Module)
        await kernel.cancel(syscall_id, module, caller.asks_as)
        found = await kernel.find(syscall_id, caller.asks_as)
    return await _shown(request, syscall_id, found)


def _syscall(
    kernel: Kernel, caller: Caller, asked: SyscallRequest, header_key: str | None
) -> Syscall:
    syscall = Syscall(
        id="",
        agent=caller.agent,
        tenant=caller.tenant,
        token=caller.token,
        body=asked.body,
        program=asked.program,
        nice=asked.nice,
        deadline_s=asked.deadline_s,
        traceparent=caller.traceparent,
    )
    if header_key is not None and asked.key not in (None, header_key):
        raise InvalidRequest(
            "the body has another key than the header Idempotency-Key",
            field="key",
            remedy="give it in one of them",
        )
    return kernel.session.identified(syscall, asked.key or header_key)


async def _one(request: Request, syscall: Syscall, wait_s: float) -> Response:
    kernel = kernel_of(request)
    with ExitStack() as held:
        async with in_turn(request):
            pending = kernel.session.submit(syscall)
            held.enter_context(kernel.holding(pending))
        await pending.taken()
        await ended(request, [pending.ended], wait_s)
        reply = heard(pending)
    if reply is None:
        view = taken_view(pending)
        if wait_s > 0:
            view = (await standing(kernel, {syscall.id: syscall.module})).get(syscall.id, view)
        return answer(view, 202)
    if wait_s <= 0:  # it had ended before, under the same key: it is shown, whatever came of it
        return answer(ended_view(reply))
    if reply.error is not None:
        error = from_wire(reply.error)
        error.syscall_id = reply.id
        raise error
    return answer(ended_view(reply))


def id_in(request: Request) -> str:
    """Return the id in the path of a request."""
    try:
        return msgspec.convert(request.path_params["id"], SyscallId)
    except msgspec.ValidationError as error:
        raise InvalidSyscall(
            "an id has 32 hex digits", field="id", remedy="take it from the answer to the submit"
        ) from error


def _key_in(request: Request, *, alone: bool) -> str | None:
    """Return the key that a header gives to the one syscall of a request."""
    given = request.headers.getlist(KEY_HEADER)
    if not given:
        return None
    if len(given) > 1 or not alone:
        raise InvalidRequest(
            "one key is for one syscall",
            field=KEY_HEADER,
            remedy="give each syscall of a list its own `key`",
        )
    try:
        return msgspec.convert(given[0], Key)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"the key will not do: {error}",
            field=KEY_HEADER,
            remedy="use 1 to 256 characters",
        ) from error


ROUTES = [
    Route("/v1/syscalls", submit, methods=["POST"]),
    Route("/v1/syscalls/{id}", get),
    Route("/v1/syscalls/{id}/wait", wait),
    Route("/v1/syscalls/{id}/cancel", cancel, methods=["POST"]),
]
