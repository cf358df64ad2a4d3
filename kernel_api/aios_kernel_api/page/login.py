"""Who looks at the page: a cookie that holds the token, and forms that nobody else can send.

The cookie is worth what the token is worth: revoked or expired, it opens nothing. Scripts cannot
read it, and a browser sends it from this page alone.

    GET  /login                  the form
    POST /login                  a token, for the cookie
    GET  /login/link?key=        the same by a link of `aios ui`: once, for two minutes
    POST /logout                 forget the cookie
"""

from itertools import accumulate
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route

from aios_broker.contract.errors import KernelError
from aios_broker.queues.page_links import PageLinks
from aios_kernel_api.identity import MAX_TOKEN_LENGTH, Caller, holder_of, unauthenticated
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.csrf import refuse_foreign
from aios_kernel_api.page.forms import Form, changes, read_form, shows
from aios_kernel_api.page.html import HEADERS, stranger_page
from aios_kernel_api.problems import headers_of, status_of, told

COOKIE = "aios_page"
COOKIE_S = 12 * 3600
MAX_KEY_LENGTH = 64
MAX_LOGIN_BYTES = 16 * 1024  # of whoever comes


async def who_looks(headers: Headers, kernel: Kernel) -> Caller:
    """Return who has logged in.

    Raises:
        Unauthenticated: nobody has, or the token is not good any more.
        AgentSuspended: an operator has suspended the agent, or its tenant.
    """
    cookies = cookie_parser(headers.get("cookie", ""))
    token = cookies.get(COOKIE, "")
    if not token or len(token) > MAX_TOKEN_LENGTH:
        raise unauthenticated("you have not logged in")
    return await holder_of(token, kernel)


async def form(_request: Request) -> Response:
    """Show the form."""
    return stranger_page("login.html", error=None)


async def log_in(request: Request) -> Response:
    """Take a token, and give the cookie for it."""
    refuse_foreign(request)
    token = (await read_form(request, MAX_LOGIN_BYTES)).one("token").strip()
    try:
        if not token or len(token) > MAX_TOKEN_LENGTH:
            raise unauthenticated("no token was given")
        await holder_of(token, kernel_of(request))
    except KernelError as error:
        said = stranger_page("login.html", status=status_of(error), error=told(error))
        said.headers.update(headers_of(error))
        return said
    return _entered(request, token, _place_before(request))


async def log_in_by_link(request: Request) -> Response:
    """Take the key of a link of `aios ui`."""
    key = request.query_params.get("key", "")
    kernel = kernel_of(request)
    token = None
    if request.method == "GET" and 0 < len(key) <= MAX_KEY_LENGTH:
        token = await PageLinks(kernel.connection, kernel.keys).redeem(key)
    if token is None:
        error = unauthenticated("this link was used, or its two minutes are over")
        return stranger_page("login.html", status=status_of(error), error=error)
    return _entered(request, token, "/")


async def log_out(_request: Request, _form: Form) -> Response:
    """Forget the cookie."""
    left = RedirectResponse("/login", 303, HEADERS)
    left.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return left


def _entered(request: Request, token: str, place: str) -> Response:
    entered = RedirectResponse(place, 303, HEADERS)
    is_encrypted = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    entered.set_cookie(
        COOKIE, token, COOKIE_S, httponly=True, samesite="strict", secure=is_encrypted
    )
    return entered


def _place_before(request: Request) -> str:
    """Return the view that was asked for before the login: it stands in the referrer.

    A form that was sent too late has an address that shows nothing; the view above it is meant.
    """
    before = urlsplit(request.headers.get("referer", ""))
    is_ours = before.netloc == request.headers.get("host")
    if not is_ours or before.path.startswith(("/log", "//")) or not before.path.startswith("/"):
        return "/"
    if _is_view(request, before.path):
        return f"{before.path}?{before.query}" if before.query else before.path
    above = accumulate(before.path.split("/")[1:-1], "{}/{}".format, initial="")
    return next((path for path in reversed([*above]) if path and _is_view(request, path)), "/")


def _is_view(request: Request, path: str) -> bool:
    asked = {**request.scope, "method": "GET", "path": path, "raw_path": path.encode()}
    return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)


PUBLIC_ROUTES = [
    shows("/login", form),
    Route("/login", log_in, methods=["POST"]),
    Route("/login/link", log_in_by_link, methods=["GET"]),
]
ROUTES = [changes("/logout", log_out)]
