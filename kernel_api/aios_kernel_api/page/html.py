"""Templates, and the headers that every page goes out with."""

import hashlib
import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.responses import Response

from aios_broker.contract.errors import KernelError
from aios_broker.contract.money import shown
from aios_broker.contract.printable import printable
from aios_broker.views.words import moment, plural, seconds, short_id
from aios_kernel_api.problems import headers_of, status_of

# Nothing of another host, no script and no style that stands in a page: what an agent wrote is
# text, and were it not, no browser would run it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HOURS_TOLD = 48  # what was longer ago is told in days
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@cache
def environment() -> Environment:
    """Return the templates; they are read once."""
    made = Environment(
        loader=PackageLoader("aios_kernel_api.page"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        one_line=_one_line,
        text=printable,
        moment=moment,
        seconds=seconds,
        short_id=short_id,
        plural=plural,
        grouped=_grouped,
        money=_money,
        ago=_ago,
        json_text=json_text,
    )
    made.globals["static"] = static_path
    return made


def _one_line(text: object) -> str:
    return printable(str(text), one_line=True)


def _ago(age_s: float) -> str:
    """Return how long ago something was, so coarse that it stays the same for a while.

    What another machine's clock has in the future was just now.
    """
    if age_s < 60:
        return f"{max(0.0, age_s):.0f} s ago" if age_s < 10 else f"{age_s // 10 * 10:.0f} s ago"
    if age_s < 3600:
        return f"{age_s // 60:.0f} min ago"
    hours = int(age_s // 3600)
    return f"{hours} h ago" if hours < HOURS_TOLD else f"{plural(hours // 24, 'day')} ago"


def _grouped(number: float) -> str:
    """Return a number with its thousands apart."""
    return f"{number:,}".removesuffix(".0")


def _money(cost_nano: dict[str, int]) -> str:
    return ", ".join(shown(nano, currency) for currency, nano in sorted(cost_nano.items()))


def json_text(value: object) -> str:
    """Return a value as JSON for people."""
    return printable(json.dumps(value, indent=2, ensure_ascii=False))


@cache
def static_path(name: str) -> str:
    """Return the address of a static file; it changes with the file's content."""
    return f"/static/{name}?{static_digest(name)[:12]}"


@cache
def static_digest(name: str) -> str:
    """Return the SHA-256 of a static file, in hex."""
    return hashlib.sha256(static_bytes(name)).hexdigest()


@cache
def static_bytes(name: str) -> bytes:
    """Return a static file."""
    return files("aios_kernel_api.page").joinpath("static", *name.split("/")).read_bytes()


def rendered(template: str, **context: object) -> Markup:
    """Return what a template makes of its context."""
    return Markup(environment().get_template(template).render(context))


def stranger_page(template: str, *, status: int = 200, **context: object) -> Response:
    """Return a page for who has not; `template` extends `bare.html`."""
    return Response(rendered(template, **context), status, HEADERS, "text/html")


def page_error(error: KernelError) -> Response:
    """Return an error as a page; who has not logged in is shown the form for that."""
    status = status_of(error)
    template = "login.html" if status == 401 else "error.html"
    said = stranger_page(template, status=status, error=error)
    said.headers.update(headers_of(error))
    return said
