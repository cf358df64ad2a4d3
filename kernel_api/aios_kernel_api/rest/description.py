"""The description of the API for programs, and as a page for people.

GET /openapi.json
GET /reference
"""

from functools import cache

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_kernel_api import gateway_operations, operation_list, reference_page
from aios_kernel_api.a2a import rpc
from aios_kernel_api.openapi import Json, document, release
from aios_kernel_api.operations import Operation
from aios_kernel_api.rest import access, files, rights, settings, tools, views


def operations() -> tuple[Operation, ...]:
    """Return all operations, in the order in which they are shown."""
    ours = (
        *views.OPERATIONS,
        *settings.OPERATIONS,
        *access.OPERATIONS,
        *rights.OPERATIONS,
        *tools.OPERATIONS,
    )
    return (
        *operation_list.SYSCALLS,
        *operation_list.EVENTS,
        *(operation for operation, _ in ours),
        *files.OPERATIONS,
        *gateway_operations.GATEWAY,
        *rpc.OPERATIONS,
        *operation_list.SESSION,
        *operation_list.HEALTH,
        *operation_list.DESCRIPTION,
    )


@cache
def whole_document() -> Json:
    """Return the description; it is made once."""
    return document(operations(), release())


@cache
def _encoded() -> tuple[bytes, bytes]:
    described_api = whole_document()
    return msgspec.json.encode(described_api), reference_page.page(described_api).encode()


async def openapi(_request: Request) -> Response:
    """Return the description."""
    return Response(_encoded()[0], media_type="application/json")


async def reference(_request: Request) -> Response:
    """Return the page."""
    return Response(_encoded()[1], 200, reference_page.HEADERS, "text/html")


async def style(_request: Request) -> Response:
    """Return how the page looks."""
    return Response(reference_page.STYLE, 200, reference_page.HEADERS, "text/css")


ROUTES = [
    Route("/openapi.json", openapi),
    Route("/reference", reference),
    Route("/reference.css", style),
]
