"""Addresses of servers, as they are shown: a password is printed nowhere."""

import re

_NAME = re.compile(r"[\w.~%+-]*")
_IN_QUERY = re.compile(r"(?P<name>[?&](?:ssl)?pass(?:word|file)?=)[^&]*", re.IGNORECASE)


def without_password(url: str) -> str:
    """Return a URL, perhaps a malformed one, fit for a message or a log."""
    before, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        shown = user if _NAME.fullmatch(user) else ""
        rest = f"{shown}:***@{place}" if colon or not shown else f"{shown}@{place}"
    return _IN_QUERY.sub(r"\g<name>***", f"{before}{separator}{rest}")
