"""Cut a text into the parts that search looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PART_CHARACTERS = 1_000
OVERLAP_CHARACTERS = 100  # a sentence on a border is whole in one of the two
MAX_PARTS = 2_000  # about 1.8 MB of text; what comes after is not searched

# Where a part may end, the best first; all are looked for in the part's last third.
_BORDERS = ("\n\n", "\n", ". ", "! ", "? ", " ")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text, and where it starts, in characters."""

    start: int
    text: str


def parts_of(text: str) -> list[Part]:
    """Return the parts of a text, in order; together they hold all of it, up to MAX_PARTS."""
    return [part for part, _ in zip(_parts(text), range(MAX_PARTS), strict=False)]


def _parts(text: str) -> Iterator[Part]:
    start = 0
    while start < len(text):
        end = _end_of_part(text, start)
        if piece := text[start:end]:
            yield Part(start, piece)
        if end >= len(text):
            return
        start = _start_after(text, start, end)


def _end_of_part(text: str, start: int) -> int:
    limit = start + PART_CHARACTERS
    if limit >= len(text):
        return len(text)
    earliest = limit - PART_CHARACTERS // 3
    for border in _BORDERS:
        at = text.rfind(border, earliest, limit)
        if at >= 0:
            return at + len(border)
    return limit


def _start_after(text: str, start: int, end: int) -> int:
    """Go back by the overlap, to the beginning of a word where there is one."""
    at = text.find(" ", max(start + 1, end - OVERLAP_CHARACTERS), end - 1)
    return at + 1 if at >= 0 else max(start + 1, end - OVERLAP_CHARACTERS)
