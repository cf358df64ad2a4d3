"""Paths by pattern: `*` and `?` stay within a part of a path, `**` is any number of parts.

A pattern without them is a path: it stands for itself and for all that is below.
"""

import re
from collections.abc import Iterable, Sequence

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.paths import is_within, normal_path

ANY = "**"
MOST_WILD = 8  # `**` in one pattern
_WILD = re.compile(r"[*?]")


def normal_pattern(pattern: str, field: str) -> str:
    """Return the normal form of a pattern: that of a path.

    Raises:
        InvalidPath: It is none; names `field`.
    """
    normal = normal_path(pattern, field)
    parts = normal.split("/")
    if parts.count(ANY) > MOST_WILD or any(ANY in part and part != ANY for part in parts):
        raise InvalidPath(
            f"{pattern!r}: `**` stands alone between two `/`, {MOST_WILD} times at most",
            field=field,
            remedy="use `*` within a part: notes/**/*.md",
        )
    return normal


def fixed_part(pattern: str) -> str:
    """Return the directory that all that matches lies in; of a path itself."""
    parts = pattern.split("/")
    kept = next((at for at, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return "/".join(parts[:kept]) or "/"


def is_wild(pattern: str) -> bool:
    """Whether it is more than a path."""
    return _WILD.search(pattern) is not None


def is_deep(pattern: str) -> bool:
    """Whether what matches may lie further below its fixed part than right in it."""
    wild = pattern.removeprefix(fixed_part(pattern)).removeprefix("/")
    return not wild or "/" in wild or wild == ANY


def matches(pattern: str, path: str) -> bool:
    """Whether a normal pattern means a normal path."""
    if not is_wild(pattern):
        return is_within(path, pattern)
    return _match(pattern.split("/"), path.split("/"))


def matches_any(patterns: Iterable[str], path: str) -> bool:
    """Whether one of some patterns means a path."""
    return any(matches(pattern, path) for pattern in patterns)


def _match(wanted: Sequence[str], given: Sequence[str]) -> bool:
    """Match part by part: `reached` are the places in the pattern that may be next."""
    reached = _after_any(wanted, {0})
    for part in given:
        following = {
            at if wanted[at] == ANY else at + 1
            for at in reached
            if at < len(wanted) and _is_part(wanted[at], part)
        }
        reached = _after_any(wanted, following)
    return len(wanted) in reached


def _after_any(wanted: Sequence[str], reached: set[int]) -> set[int]:
    """Add the places behind each `**`, which may be no part at all."""
    found = set(reached)
    for at in sorted(reached):
        following = at
        while following < len(wanted) and wanted[following] == ANY:
            following += 1
            found.add(following)
    return found


def _is_part(wanted: str, part: str) -> bool:
    """Whether one part is meant; a `*` grows one by one, so this takes a product of lengths."""
    if wanted == ANY:
        return True
    at = given = 0
    star = resumed = -1  # the last `*`, and where what comes after it is looked for
    while given < len(part):
        if at < len(wanted) and wanted[at] == "*":
            star, resumed = at, given
            at += 1
        elif at < len(wanted) and wanted[at] in ("?", part[given]):
            at += 1
            given += 1
        elif star >= 0:
            resumed += 1
            at, given = star + 1, resumed
        else:
            return False
    return not wanted[at:].strip("*")
