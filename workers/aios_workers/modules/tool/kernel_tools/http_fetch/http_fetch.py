"""Asks for one page, through the way out that the operator's rules have opened."""

import email.message
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from aios_workers.modules.tool.kernel_tools.http_fetch.html_text import read_page
from aios_workers.modules.tool.kernel_tools.wrong import NoRule, WrongArgument

LIMIT_S = 20.0  # of each request
READ_LIMIT_S = 10.0  # of a page's HTML
MOST_BYTES = 2 * 1024 * 1024  # of a page
MOST_REDIRECTIONS = 5
KEY = "aios-key-"  # what the placeholder of a key begins with
_REFUSED = "X-AIOS-Egress"
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([A-Za-z0-9_-]{1,40})""", re.I)
_TEXT = ("text/", "application/json", "application/xml", "application/javascript")
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    """Hands a redirection back: the next request is one of its own."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing."""


def fetch(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: str = "",
    max_characters: int = 20_000,
    links: bool = False,  # noqa: FBT001  all arguments of a tool are given by name
) -> dict[str, Any]:
    """Return the status, the type and the text of a page."""
    sent = {name: _PLACE.sub(_placeholder, value) for name, value in (headers or {}).items()}
    data = body.encode() if body else None
    for _ in range(MOST_REDIRECTIONS + 1):
        place = _checked(url, method)
        status, found, content = _asked(url, method, sent, data)
        address = found.get("Location")
        if status not in (301, 302, 303, 307, 308) or not address:
            return _told(url, status, found, content, max_characters, links=links)
        url = urljoin(url, address)
        if urlsplit(url)[:2] != place[:2]:
            sent = {}  # they were for the other host
        if status <= 303 and method not in ("GET", "HEAD"):
            method, data = "GET", None
    raise WrongArgument("url", f"it is redirected more than {MOST_REDIRECTIONS} times")


def _placeholder(found: re.Match[str]) -> str:
    """Return the placeholder of a key in place of its name; what is no key's name stays."""
    value = os.environ.get(found[1], "")  # noqa: TID251  what the worker has told of keys
    return value if value.startswith(KEY) else found[0]


def _checked(url: str, method: str) -> SplitResult:
    try:
        place = urlsplit(url)
        port = place.port
    except ValueError as error:
        raise WrongArgument("url", f"it is no address: {error}") from None
    if place.scheme not in ("http", "https") or not place.hostname:
        raise WrongArgument("url", "it begins with https:// or http://, and a host")
    if place.username is not None or place.password is not None:
        raise WrongArgument("url", "it has a name or a password before its host: use headers")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise WrongArgument("url", "signs beyond ASCII, and spaces, are written as %XX")
    if not any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy")):  # noqa: TID251
        raise _no_rule(place, port, method, "this tool has no rule, and so reaches nothing")
    return place


def _no_rule(place: SplitResult, port: int | None, method: str, why: str) -> NoRule:
    host = f"{place.hostname}:{port}" if port is not None else str(place.hostname)
    host = f"http://{host}" if place.scheme == "http" else host
    rule = (
        'the operator lets it go there by a line in tools.toml below [tools."aios/http_fetch"]: '
        f'network = [{{ host = "{host}", methods = ["{method}"] }}]'
    )
    return NoRule("url", why, rule)


def _asked(
    url: str, method: str, headers: Mapping[str, str], data: bytes | None
) -> tuple[int, email.message.Message, bytes]:
    """Return the status, the headers and the content of one answer."""
    place = urlsplit(url)
    try:
        request = urllib.request.Request(url, data, {"Accept-Encoding": "identity"}, method=method)
        for name, value in headers.items():
            request.add_header(name, value)
        opener = urllib.request.build_opener(_Unfollowed())
        try:
            answer = opener.open(request, timeout=LIMIT_S)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read(MOST_BYTES + 1)
            found, status = answer.headers, int(answer.status)
    except urllib.error.URLError as error:
        why = str(error.reason)
        if "Tunnel connection failed: 403" in why:
            raise _no_rule(place, place.port, method, f"no rule leads to {place.netloc}") from None
        raise WrongArgument("url", f"{place.netloc} cannot be reached: {why}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WrongArgument("url", f"{place.netloc} gave no answer: {error}") from None
    if found.get(_REFUSED) == "refused":
        why = content.decode(errors="replace").strip()[:500]
        raise _no_rule(place, place.port, method, why)
    return status, found, content


def _told(
    url: str,
    status: int,
    found: email.message.Message,
    content: bytes,
    most: int,
    *,
    links: bool,
) -> dict[str, Any]:
    kind = found.get_content_type() if found.get("Content-Type") else ""
    told: dict[str, Any] = {"status": status, "url": url, "type": kind}
    is_cut = len(content) > MOST_BYTES
    content = content[:MOST_BYTES]
    if kind and not kind.startswith(_TEXT) and not kind.endswith(("+json", "+xml")):
        return told | {"bytes": len(content), "no_text": True}
    text = content.decode(_charset(found, content), errors="replace")
    if kind in ("text/html", "application/xhtml+xml"):
        page = read_page(text, url, READ_LIMIT_S)
        text = page.text
        told["title"] = page.title
        if links:
            told["links"] = page.links
    told["text"] = text[:most]
    if is_cut or len(text) > most:
        told["more"] = True
    return told


def _charset(found: email.message.Message, content: bytes) -> str:
    named = found.get_content_charset()
    if named is None and (said := _CHARSET.search(content[:2_048])):
        named = said[1].decode()
    try:
        "".encode(named or "utf-8")
    except (LookupError, ValueError):
        return "utf-8"
    return named or "utf-8"
