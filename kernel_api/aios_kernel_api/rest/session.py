"""A client's session: what the SDK's HTTP transport asks, many syscalls in one request.

    GET  /v1/session/events             begin one: a hello, then replies and chunks as they come
    POST /v1/session/submit             publish syscalls under ids of the agent's own
    POST /v1/session/attach             hear of syscalls, or fetch their replies
    POST /v1/session/cancel             end syscalls
    GET  /v1/session/status?id=         where one stands

Each event is one message, as workers wrote it. When the answer ends the session is over, and the
client begins another: what it waits for it names again, and gets what it has missed.
"""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.client import http_messages as wire
from aios_broker.client.transport import Attached
from aios_broker.client.transport import Outcome as Found
from aios_broker.contract.errors import AccessDenied, Cancelled, InvalidSyscall, KernelError
from aios_broker.contract.ids import id_refused
from aios_broker.contract.json_text import DuplicateKey, refuse_dropped, refuse_duplicate_keys
from aios_broker.contract.names import Module, Owner, SyscallId
from aios_broker.contract.reply import Heard
from aios_broker.contract.syscall import Syscall, decode_syscall, refuse_shape
from aios_kernel_api.bodies import MAX_BODY_BYTES, ambiguous, in_turn, query_of, read_body
from aios_kernel_api.events import KEEP_ALIVE, EventStream, Guard, Source, event, failed
from aios_kernel_api.identity import Caller, caller_of, require_agent
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.large_work import weight_of
from aios_kernel_api.problems import told
from aios_kernel_api.router import Mailbox, told_message

ASKED_AT_ONCE = 16  # of the syscalls that one request names
MOST_ANSWER_BYTES = 32 * 1024 * 1024  # then the rest is asked for anew

T = TypeVar("T", bound=Struct)
# As what a message is read to see whether it says each thing once: syscalls are looked at one by
# one.
_PLAIN: dict[type[Struct], Any] = {
    wire.Submit: dict[str, msgspec.Raw],
    wire.Attach: object,
    wire.Cancel: object,
}


class StatusQuery(Struct, frozen=True):
    """Of which syscall."""

    id: SyscallId


async def events(request: Request) -> Response:
    """Begin a session."""
    kernel, owner = kernel_of(request), require_agent(caller_of(request))
    if request.method == "HEAD":
        return Response(status_code=204)
    box = kernel.router.begin(owner)
    return EventStream(_told(request, box), closing(_Ended(kernel, box)))


class _Ended:
    """Takes a mailbox away when it is closed."""

    def __init__(self, kernel: Kernel, box: Mailbox) -> None:
        self._kernel = kernel
        self._box = box

    def close(self) -> None:
        self._kernel.router.end(self._box)


async def _told(request: Request, box: Mailbox) -> Source:
    router, guard = kernel_of(request).router, Guard(request)
    yield event(msgspec.json.encode(_hello(kernel_of(request), box)))
    try:
        while not box.is_closed and not router.is_stopping:
            came = await router.hears(box.news(), wire.KEEP_ALIVE_S)
            await guard.check()
            if came:
                yield b"".join(map(event, box.take()))
            else:
                yield KEEP_ALIVE
    except KernelError as error:
        yield failed(error)


def _hello(kernel: Kernel, box: Mailbox) -> wire.Hello:
    owner = box.owner
    return wire.Hello(
        session=box.id,
        tenant=owner.tenant,
        agent=owner.agent,
        ids_key=kernel.session.ids(owner).key.hex(),
        result_ttl_s=kernel.transport.result_ttl_s,
        max_body_bytes=MAX_BODY_BYTES,
    )


async def submit(request: Request) -> Response:
    """Publish syscalls: each stands or falls for itself."""
    kernel, caller = kernel_of(request), caller_of(request)
    owner = require_agent(caller)
    data = await read_body(request)
    async with in_turn(request) as progress:
        asked = _read(data, wire.Submit)
        _require_few(asked.syscalls)
        outcomes: list[wire.Outcome] = [wire.Outcome()] * len(asked.syscalls)
        batches: dict[Module, dict[int, Syscall]] = {}  # by place
        for place, raw in enumerate(asked.syscalls):
            await progress.before(weight_of(bytes(raw)))
            try:
                syscall = _own(_decoded(bytes(raw)), caller, kernel)
            except KernelError as error:
                outcomes[place] = wire.Outcome(error=error.to_wire())
            else:
                batches.setdefault(syscall.module, {})[place] = syscall
        await _publish(kernel, kernel.router.find(asked.session, owner), batches, outcomes)
    return _answer(wire.Outcomes(tuple(outcomes)))


async def _publish(
    kernel: Kernel,
    box: Mailbox | None,
    batches: dict[Module, dict[int, Syscall]],
    outcomes: list[wire.Outcome],
) -> None:
    """Publish syscalls, each under its place, and write down what came of each."""
    for batch in batches.values():
        ids = [syscall.id for syscall in batch.values()]
        kernel.router.join(box, ids)
        found = await kernel.router.transport.submit(list(batch.values()))
        for place, syscall_id, each in zip(batch, ids, found, strict=True):
            outcomes[place] = _outcome(each)
            if isinstance(each, KernelError) or (each is not None and each.reply is not None):
                kernel.router.leave(box, syscall_id)


async def attach(request: Request) -> Response:
    """Let a session hear of syscalls; what has ended is answered here."""
    kernel, owner = kernel_of(request), require_agent(caller_of(request))
    data = await read_body(request)
    async with in_turn(request):
        asked = _read(data, wire.Attach)
    _require_few(asked.asks)
    box = kernel.router.find(asked.session, owner)
    standings: list[wire.Standing] = []
    size_bytes = 0
    for first in range(0, len(asked.asks), ASKED_AT_ONCE):
        some = asked.asks[first : first + ASKED_AT_ONCE]
        found = await asyncio.gather(*(_attach(kernel, box, owner, ask) for ask in some))
        standings.extend(map(_standing, found))
        size_bytes += sum(map(_size_bytes, found))
        if size_bytes >= MOST_ANSWER_BYTES:
            break
    return _answer(wire.Standings(tuple(standings)))


async def _attach(kernel: Kernel, box: Mailbox | None, owner: Owner, ask: wire.Ask) -> Attached:
    transport = kernel.router.transport
    if not kernel.session.ids(owner).owns(ask.id):  # another agent's, or a stock producer's
        known = await transport.attach(ask.id, ask.module, owner)
        if known.state is None:  # nothing of it comes to this box, not even for a moment
            return known
    kernel.router.join(box, [ask.id])
    heard = None if ask.heard is None else Heard(*ask.heard)
    attached = await transport.attach(ask.id, ask.module, owner, heard)
    if attached.state is None or attached.reply is not None:
        kernel.router.leave(box, ask.id)
    return attached


def _size_bytes(attached: Attached) -> int:
    return len(attached.reply or b"") + sum(len(each.text) for each in attached.missing)


async def cancel(request: Request) -> Response:
    """End syscalls of one module."""
    kernel, owner = kernel_of(request), require_agent(caller_of(request))
    data = await read_body(request)
    async with in_turn(request):
        asked = _read(data, wire.Cancel)
    _require_few(asked.ids)
    reason = Cancelled(asked.reason or "its agent cancelled it")
    transport = kernel.router.transport
    done = await transport.cancel(asked.ids, asked.module, reason, owner) if asked.ids else []
    return _answer(wire.Cancellations(tuple(done)))


async def status(request: Request) -> Response:
    """Show where a syscall stands; null: it has ended, or is none of this agent's."""
    kernel, owner = kernel_of(request), require_agent(caller_of(request))
    syscall_id = query_of(request, StatusQuery).id
    return _answer(await kernel.router.transport.status(syscall_id, owner))


def _read(data: bytes, kind: type[T]) -> T:
    """Return a message; the syscalls in it are not read yet."""
    try:
        message = msgspec.json.decode(data, type=kind)
        refuse_dropped(data, msgspec.json.decode(data, type=_PLAIN[kind]))
    except DuplicateKey as error:
        raise ambiguous(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSyscall(
            f"not what is sent here: {error}",
            field="body",
            remedy="use an SDK and a kernel of the same release",
        ) from error
    return message


def _decoded(data: bytes) -> Syscall:
    """Return a syscall that a client has written.

    Raises:
        InvalidSyscall: it is none, or says one thing twice.
    """
    refuse_shape(data)
    try:
        refuse_duplicate_keys(data)
    except DuplicateKey as error:
        raise ambiguous(error) from error
    return decode_syscall(data, is_flat=True)


def _require_few(asked: Sequence[object]) -> None:
    if len(asked) > wire.MOST_ASKED:
        raise InvalidSyscall(
            f"{len(asked)} syscalls are more than one request may name: {wire.MOST_ASKED}",
            field="body",
            remedy="send them in several requests",
        )


def _own(syscall: Syscall, caller: Caller, kernel: Kernel) -> Syscall:
    """Return a syscall with the token that it came with."""
    if syscall.owner != caller.owner:
        raise AccessDenied(
            f"the token is one of agent {caller.agent!r} of tenant {caller.tenant!r}",
            field="agent",
            remedy="name that agent, or use a token of the other one",
            syscall_id=syscall.id,
        )
    if not kernel.session.ids(caller.owner).owns(syscall.id):
        raise id_refused(caller.owner)
    return msgspec.structs.replace(syscall, token=caller.token)


def _outcome(found: Found) -> wire.Outcome:
    if found is None:
        return wire.Outcome()
    if isinstance(found, KernelError):
        return wire.Outcome(error=told(found).to_wire())
    return wire.Outcome(standing=_standing(found))


def _standing(attached: Attached) -> wire.Standing:
    return wire.Standing(
        attached.state,
        attached.module,
        wire.NOTHING if attached.reply is None else msgspec.Raw(told_message(attached.reply)),
        attached.missing,
    )


def _answer(message: object) -> Response:
    return Response(msgspec.json.encode(message), media_type="application/json")


ROUTES = [
    Route(wire.EVENTS, events),
    Route(wire.SUBMIT, submit, methods=["POST"]),
    Route(wire.ATTACH, attach, methods=["POST"]),
    Route(wire.CANCEL, cancel, methods=["POST"]),
    Route(wire.STATUS, status),
]
