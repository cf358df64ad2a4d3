"""The application, and the one table of its routes: each door has its list, and its rules.

A route that stands in none of the doors does not exist. What is not public asks for a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from aios_kernel_api import health
from aios_kernel_api.a2a import rpc
from aios_kernel_api.a2a.refusals import rpc_error
from aios_kernel_api.border import Border, OpenRequests, Rules, routing_error
from aios_kernel_api.gateway.message_reply import anthropic_error
from aios_kernel_api.gateway.openai_errors import openai_error
from aios_kernel_api.gateway.state import open_gateway
from aios_kernel_api.gateway.tables import ANTHROPIC_ROUTES, OPENAI_ROUTES
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page import routes as page
from aios_kernel_api.page.html import page_error
from aios_kernel_api.page.login import who_looks
from aios_kernel_api.page.runs.slot_feed import SlotFeeds
from aios_kernel_api.problems import problem
from aios_kernel_api.rest import (
    access,
    description,
    events,
    files,
    rights,
    session,
    settings,
    syscalls,
    tools,
    views,
)

UNROUTED = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)


@dataclass(frozen=True, slots=True)
class Door:
    """Routes that are entered by the same rules."""

    routes: Sequence[Route]
    rules: Rules


DOORS: tuple[Door, ...] = (
    Door(health.ROUTES, Rules(problem, is_public=True)),
    Door(syscalls.ROUTES, Rules(problem)),
    Door(files.ROUTES, Rules(problem)),
    Door(
        (
            *views.ROUTES,
            *settings.ROUTES,
            *access.ROUTES,
            *rights.ROUTES,
            *tools.ROUTES,
        ),
        Rules(problem, asks_rights=True),
    ),
    Door((*files.PUBLIC_ROUTES, *description.ROUTES), Rules(problem, is_public=True)),
    Door(events.ROUTES, Rules(problem)),
    Door(session.ROUTES, Rules(problem)),
    Door(OPENAI_ROUTES, Rules(openai_error)),
    Door(ANTHROPIC_ROUTES, Rules(anthropic_error)),
    Door(rpc.ROUTES, Rules(rpc_error)),
    Door(rpc.PUBLIC_ROUTES, Rules(problem, is_public=True)),
    Door(page.ROUTES, Rules(page_error, asks_rights=True, identify=who_looks, is_page=True)),
    Door(page.PUBLIC_ROUTES, Rules(page_error, is_public=True, is_page=True)),
)


def create_app(kernel: Kernel) -> Starlette:
    """Return the application on a kernel that is open."""
    open_requests = OpenRequests(kernel.config.api_max_requests)
    app = Starlette(
        routes=[
            _guarded(route, door.rules, kernel, open_requests)
            for door in DOORS
            for route in door.routes
        ],
        exception_handlers={HTTPException: _routing_problem},
    )
    app.router.redirect_slashes = False
    app.state.kernel = kernel
    app.state.readiness = health.RecentReadiness()
    app.state.gateway = open_gateway(kernel)
    app.state.page_parts = page.new_parts()
    app.state.slot_feeds = SlotFeeds()
    return app


def _guarded(route: Route, rules: Rules, kernel: Kernel, open_requests: OpenRequests) -> Route:
    border = Middleware(
        Border, kernel=kernel, rules=rules, open_requests=open_requests, route=route.path
    )
    return Route(
        route.path,
        route.endpoint,
        methods=sorted(route.methods or ()),
        name=route.name,
        middleware=[border],
    )


async def _routing_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers or {}
    if error.status_code == 405:
        headers = {"Allow": ", ".join(_methods_of(request))}
    if error.status_code in UNROUTED:  # else a route raised it, where it was counted
        kernel_of(request).stats.unrouted(error.status_code)
    answer = problem(routing_error(error.status_code, error.detail, headers))
    answer.headers.update(headers)
    return answer


def _methods_of(request: Request) -> Sequence[str]:
    """Return what may be done at a path: its methods may be those of several routes."""
    routes = (each for each in request.app.routes if isinstance(each, Route))
    at = (each for each in routes if each.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for each in at for method in each.methods or ()})
