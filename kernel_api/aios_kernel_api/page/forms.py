"""Forms, and the two kinds of routes of the page: such as show, and such as change something.

    ROUTES = [shows("/agents", agents), changes("/suspensions", suspend)]

A route that changes is never reached by a form that this page has not sent.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.errors import InvalidRequest
from aios_broker.contract.syscall import refuse_nul
from aios_kernel_api.bodies import in_turn, read_body
from aios_kernel_api.identity import caller_of
from aios_kernel_api.page.csrf import refuse_forged

MAX_FORM_BYTES = 2 * 1024 * 1024
MAX_FIELDS = 20_000  # as many programs may be ticked
FORM_TIMES = 4  # a byte of a form takes as long to be read as so many of JSON
FORM_TYPE = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Form:
    """What a form has sent, by field."""

    fields: Mapping[str, Sequence[str]]

    def one(self, name: str) -> str:
        """Return what stands in a field; the empty string: nothing, or no such field."""
        return self.all(name)[-1]

    def all(self, name: str) -> Sequence[str]:
        """Return all that stands in fields of a name."""
        return self.fields.get(name) or ("",)


async def read_form(request: Request, most_bytes: int = MAX_FORM_BYTES) -> Form:
    """Return the form that a request sends.

    Raises:
        InvalidRequest: it is none, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise InvalidRequest("it is no form", field="content-type", remedy=f"send {FORM_TYPE}")
    body = await read_body(request, most_bytes=most_bytes)
    async with in_turn(request, FORM_TIMES):
        return _form_of(body)


def _form_of(body: bytes) -> Form:
    fields: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError as error:
        raise InvalidRequest(
            "the form cannot be read", field="body", remedy="send it from the page"
        ) from error
    for name, value in pairs:
        fields.setdefault(name, []).append(value.replace("\r\n", "\n"))
    refuse_nul(fields)
    return Form(fields)


def shows(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """Return a route that shows something."""
    return Route(path, endpoint)


def changes(path: str, endpoint: Callable[[Request, Form], Awaitable[Response]]) -> Route:
    """Return a route that changes something, by a form of this page."""

    async def checked(request: Request) -> Response:
        form = await read_form(request)
        given = form.one("csrf") or request.headers.get("x-csrf-token", "")
        refuse_forged(request, caller_of(request), given)
        return await endpoint(request, form)

    return Route(path, checked, methods=["POST"])
