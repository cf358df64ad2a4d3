"""What HTTP answers say beside their bodies."""

import re

import httpx

_CONTENT_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<total>\d+|\*)\Z")


def retry_after_s(response: httpx.Response) -> float | None:
    """Return how long to wait, where an answer says it in seconds."""
    said = response.headers.get("Retry-After", "")
    return float(said) if re.fullmatch(r"\d{1,6}", said) else None


def range_of(response: httpx.Response) -> tuple[int, int | None] | None:
    """Return where a partial answer begins, and how long the whole is; None: it says neither."""
    found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if found is None:
        return None
    return int(found["first"]), None if found["total"] == "*" else int(found["total"])


def total_bytes(response: httpx.Response) -> int | None:
    """Return how long the whole file is, where an answer says it."""
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        found = range_of(response)
        return found[1] if found is not None else None
    said = response.headers.get("Content-Length", "")
    return int(said) if re.fullmatch(r"\d{1,18}", said) else None


def validator_of(response: httpx.Response) -> str | None:
    """Return what If-Range can be told: a strong ETag, else the date of the last change."""
    tag: str = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    date: str | None = response.headers.get("Last-Modified")
    return date
