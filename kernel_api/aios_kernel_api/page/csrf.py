"""Who sends a form: this page, and nobody else. A form carries a word that is made of the token."""

import hmac
from urllib.parse import urlsplit

from starlette.requests import Request

from aios_broker.contract.errors import AccessDenied
from aios_kernel_api.identity import Caller


def csrf_of(token: str) -> str:
    """Return the word that forms carry: it is made of the token, and says nothing of it."""
    return hmac.digest(token.encode(), b"a form of the page", "sha256").hex()


def refuse_forged(request: Request, caller: Caller, given: str) -> None:
    """Return when a form was sent by this page.

    Raises:
        AccessDenied: another site has sent it, or it is of an earlier login.
    """
    refuse_foreign(request)
    if not hmac.compare_digest(given.encode(), csrf_of(caller.token).encode()):
        raise AccessDenied(
            "the form is not of this login",
            field="csrf",
            remedy="load the page again, and send the form from there",
        )


def refuse_foreign(request: Request) -> None:
    """Return when no other site has sent a form.

    Raises:
        AccessDenied: one has.
    """
    fetched_from = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    is_ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if fetched_from not in ("same-origin", "none") or not is_ours:
        raise AccessDenied(
            "another site has sent this form", field="origin", remedy="send it from this page"
        )
