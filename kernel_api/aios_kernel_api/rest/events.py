"""What is heard of one syscall, as server-sent events.

    GET /v1/syscalls/{id}/events        its chunks from the first on, and then its reply

With `Last-Event-ID` they go on behind that event, whichever process sent it. A reader that leaves
changes nothing: the syscall goes on.
"""

from contextlib import ExitStack, nullcontext

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.reply import decode_reply
from aios_kernel_api.events import EventStream, all_told, place_of, told_of
from aios_kernel_api.identity import caller_of
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.rest.syscalls import id_in


async def events(request: Request) -> Response:
    """Tell of a syscall as it goes on."""
    kernel, owner, syscall_id = kernel_of(request), caller_of(request).asks_as, id_in(request)
    heard = place_of(request)
    found = await kernel.find(syscall_id, owner)
    if heard is None or request.method == "HEAD":
        return Response(status_code=204)
    if found.live is None:
        attached = await kernel.transport.attach(syscall_id, None, owner, heard)
        if attached.reply is not None:
            reply = decode_reply(attached.reply)
            return EventStream(all_told(attached, reply, heard), nullcontext())
    owner = owner if found.live is None else found.live.metadata.owner
    pending = kernel.session.attach(syscall_id, owner)
    with ExitStack() as held:
        held.enter_context(kernel.holding(pending))
        await pending.taken()
        return EventStream(told_of(request, pending, heard), held.pop_all())


ROUTES = [Route("/v1/syscalls/{id}/events", events)]
