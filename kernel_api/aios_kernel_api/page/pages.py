"""A page for who has logged in: its head line, its navigation, and parts that stay up to date."""

from markupsafe import Markup
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from aios_kernel_api.identity import SCOPES, Caller, Scope, caller_of
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.page.csrf import csrf_of
from aios_kernel_api.page.html import HEADERS, rendered
from aios_kernel_api.page.live import part_of, parts_of
from aios_kernel_api.page.parts import Part, address_of, query_from

# Where the navigation leads, for whom: the least scope.
NAVIGATION: tuple[tuple[str, str, Scope], ...] = (
    ("/", "Programs", "agent"),
    ("/approvals", "Approvals", "agent"),
    ("/slots", "Slots", "operator"),
    ("/fleet", "Queues and workers", "operator"),
    ("/tools", "Tools", "agent"),
    ("/agents", "Agents", "agent"),
    ("/quotas", "Quotas", "agent"),
    ("/policy", "Policy", "operator"),
    ("/audit", "Audit", "agent"),
)


async def page(request: Request, template: str, **context: object) -> Response:
    """Return a page; `template` extends `layout.html`."""
    caller = caller_of(request)
    head = await parts_of(request).html(kernel_of(request), caller, "head", is_new=True)
    whole = rendered(
        template,
        caller=caller,
        csrf=csrf_of(caller.token),
        path=request.url.path,
        head=part_of("head", head),
        navigation=_navigation(caller),
        rq_dashboard=kernel_of(request).config.api_rq_dashboard_url,
        **context,
    )
    return Response(whole, 200, HEADERS, "text/html")


async def live_page(request: Request, template: str, part: Part, **context: object) -> Response:
    """Return a page around one part, which the address's query is for."""
    query = query_from(dict(request.query_params), part.query)
    made = await part_in(request, part, query)
    return await page(request, template, part=made, query=query, **context)


async def part_in(request: Request, part: Part, query: Struct) -> Markup:
    """Return a part as it stands in a page, for whoever looks."""
    address = address_of(part.name, query)
    html = await parts_of(request).html(
        kernel_of(request), caller_of(request), address, is_new=True
    )
    return part_of(address, html)


def _navigation(caller: Caller) -> list[tuple[str, str]]:
    reach = SCOPES.index(caller.scope)
    return [(to, words) for to, words, least in NAVIGATION if SCOPES.index(least) <= reach]
