"""The slots in time: what ran in each lately, what runs now, and how much waits. For operators.

    GET /slots?module=            the picture
    GET /slots/events?module=     its data, as server-sent events: `slices`, a few times a second

The data is no part that is rendered anew (`live.py`): of a minute of slices only the new ones are
sent, and a canvas draws them.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import nullcontext

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.errors import KernelError, Unauthenticated
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.retry import now_s
from aios_broker.views.slots import WINDOW_MS
from aios_kernel_api.events import RETRY, EventStream
from aios_kernel_api.identity import caller_of, require
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.live import BEAT_S
from aios_kernel_api.page.login import who_looks
from aios_kernel_api.page.pages import page
from aios_kernel_api.page.parts import query_from
from aios_kernel_api.page.runs.slot_feed import FOLLOW_EVERY_S, Place, SlotFeed, SlotFeeds
from aios_kernel_api.problems import told


class SlotQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Of which module."""

    module: Module = "llm"


async def view(request: Request) -> Response:
    """Show the picture; its data comes when it is in view."""
    require(caller_of(request), "operator")
    module = _module(request)
    return await page(
        request, "runs/slots.html", module=module, modules=MODULES, window_ms=WINDOW_MS
    )


async def events(request: Request) -> Response:
    """Begin to tell what the slots do."""
    require(caller_of(request), "operator")
    feeds: SlotFeeds = request.app.state.slot_feeds
    feed = feeds.of(kernel_of(request), _module(request))
    if request.method == "HEAD":
        return Response(status_code=204)
    return EventStream(_told(request, feed), nullcontext())


def _module(request: Request) -> Module:
    return query_from(dict(request.query_params), SlotQuery).module


async def _told(request: Request, feed: SlotFeed) -> AsyncGenerator[bytes, None]:
    kernel, place = kernel_of(request), Place()
    looked_at_s = now_s()
    yield RETRY
    while not kernel.stopping.is_set():
        try:
            if now_s() - looked_at_s > BEAT_S:
                await who_looks(request.headers, kernel)
                looked_at_s = now_s()
            yield _event("slices", await feed.news(place))
        except Unauthenticated:
            yield _event("over", None)
            return
        except KernelError as error:
            yield _event("trouble", str(told(error)))
        try:
            async with asyncio.timeout(FOLLOW_EVERY_S):
                await kernel.stopping.wait()
        except TimeoutError:
            continue


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


ROUTES = [shows("/slots", view), shows("/slots/events", events)]
