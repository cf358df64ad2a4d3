"""What is in view of a page is sent again when it has changed: one stream for all of it.

    GET /live?part=...&part=...     server-sent events: each part that has changed
    GET /parts?part=...&part=...    the same at once, for where streams do not get through

A stream ends when the process stops or the token is no longer good; the page opens another one.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext

import msgspec
from markupsafe import Markup
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.errors import InvalidRequest, KernelError, Unauthenticated
from aios_broker.retry import now_s
from aios_kernel_api.events import RETRY, EventStream
from aios_kernel_api.identity import caller_of, with_rights
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.operations import json_response
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.login import who_looks
from aios_kernel_api.page.parts import EVERY_S, Parts
from aios_kernel_api.problems import told

MAX_PARTS = 16
BEAT_S = 5.0  # so often it says that it lives, and looks whether the token still does


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


async def _told(request: Request, addresses: Sequence[str]) -> AsyncGenerator[bytes, None]:
    kernel, caller = kernel_of(request), caller_of(request)
    sent: dict[str, Markup] = {}
    trouble, beat_s = "", 0.0
    yield RETRY
    while not kernel.stopping.is_set():
        try:
            if now_s() >= beat_s:
                caller = await with_rights(await who_looks(request.headers, kernel), kernel)
                beat_s = now_s() + BEAT_S
                yield _event("beat", None)
            for each in addresses:
                html = await parts_of(request).html(kernel, caller, each)
                if sent.get(each) != html:
                    sent[each] = html
                    yield _event("part", PartEvent(each, str(html)))
            if trouble:
                trouble = ""
                yield _event("trouble", "")
        except Unauthenticated:
            yield _event("over", None)
            return
        except KernelError as error:
            if (said := str(told(error))) != trouble:
                trouble = said
                yield _event("trouble", said)
        await _pause(kernel)


async def _pause(kernel: Kernel) -> None:
    """Wait a moment, or until the process is told to stop."""
    try:
        async with asyncio.timeout(EVERY_S):
            await kernel.stopping.wait()
    except TimeoutError:
        return


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


ROUTES = [shows("/live", live), shows("/parts", parts)]
