"""What is in view of a page is sent again when it has changed: one stream for all of it.

    GET /live?part=...&part=...     server-sent events: each part that has changed
    GET /parts?part=...&part=...    the same at once, for where streams do not get through

A stream ends when the process stops, and the page opens another one; or when the token is no longer
good, and the page asks for a login.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext

from markupsafe import Markup
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.errors import InvalidRequest
from aios_kernel_api.events import EventStream
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.operations import json_response
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.parts import EVERY_S, Parts
from aios_kernel_api.page.streams import follow, page_event

MAX_PARTS = 16


class PartEvent(Struct, frozen=True):
    """A part that has changed."""

    part: str
    html: str


def parts_of(request: Request) -> Parts:
    """Return what makes the parts."""
    made: Parts = request.app.state.page_parts
    return made


def part_of(address: str, html: Markup) -> Markup:
    """Return a part as it stands in a page, where the stream finds it."""
    return Markup('<div data-live="{}">{}</div>').format(address, html)


async def live(request: Request) -> Response:
    """Begin a stream."""
    addresses = _addresses(request)
    for each in addresses:  # what may not be seen is refused here, and not in the stream
        await parts_of(request).html(kernel_of(request), caller_of(request), each)
    if request.method == "HEAD":
        return Response(status_code=204)
    return EventStream(_told(request, addresses), nullcontext())


async def parts(request: Request) -> Response:
    """Return parts as they are."""
    kernel, caller = kernel_of(request), caller_of(request)
    made = [
        PartEvent(each, str(await parts_of(request).html(kernel, caller, each)))
        for each in _addresses(request)
    ]
    return json_response(made)


def _addresses(request: Request) -> Sequence[str]:
    found = list(dict.fromkeys(request.query_params.getlist("part")))
    if not 0 < len(found) <= MAX_PARTS:
        raise InvalidRequest(
            f"{len(found)} parts", field="query.part", remedy=f"name 1 to {MAX_PARTS} of them"
        )
    return found


def _told(request: Request, addresses: Sequence[str]) -> AsyncGenerator[bytes, None]:
    kernel = kernel_of(request)
    sent: dict[str, Markup] = {}

    async def changed(caller: Caller) -> AsyncGenerator[bytes, None]:
        for each in addresses:
            html = await parts_of(request).html(kernel, caller, each)
            if sent.get(each) != html:
                sent[each] = html
                yield page_event("part", PartEvent(each, str(html)))

    return follow(request, changed, EVERY_S)


ROUTES = [shows("/live", live), shows("/parts", parts)]
