"""The slots in time: what ran in each lately, what runs now, and how much waits. For operators.

    GET /slots?module=            the picture
    GET /slots/events?module=     its data, as server-sent events: `slices`, a few times a second

The data is no part that is rendered anew (`live.py`): of a minute of slices only the new ones are
sent, and a canvas draws them.
"""

from collections.abc import AsyncGenerator
from contextlib import nullcontext

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.views.slots import WINDOW_MS
from aios_kernel_api.events import EventStream
from aios_kernel_api.identity import Caller, caller_of, require
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.pages import page
from aios_kernel_api.page.parts import query_from
from aios_kernel_api.page.runs.slot_feed import FOLLOW_EVERY_S, Place, SlotFeed, SlotFeeds
from aios_kernel_api.page.streams import follow, page_event


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


def _told(request: Request, feed: SlotFeed) -> AsyncGenerator[bytes, None]:
    place = Place()

    async def news(_caller: Caller) -> AsyncGenerator[bytes, None]:
        yield page_event("slices", await feed.news(place))

    return follow(request, news, FOLLOW_EVERY_S)


ROUTES = [shows("/slots", view), shows("/slots/events", events)]
