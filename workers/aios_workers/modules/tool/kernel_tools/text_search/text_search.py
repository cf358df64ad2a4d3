"""Searches files line by line, and tells where it found something."""

import fnmatch
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aios_workers.modules.tool.kernel_tools.stored import place_of, shown_path
from aios_workers.modules.tool.kernel_tools.text_search.patterns import matcher

MOST_LINE = 1_000  # characters of a line that are told
MOST_BYTES = 512 * 1024  # of all that is told
PROBE = 8_192  # bytes in which a file that is no text has a zero


def search(  # noqa: PLR0913  a tool's arguments
    pattern: str,
    path: str = "/",
    regex: bool = False,  # noqa: FBT001  all arguments of a tool are given by name
    ignore_case: bool = False,  # noqa: FBT001
    include: str = "",
    context: int = 0,
    max_matches: int = 100,
) -> dict[str, Any]:
    """Return the lines that have it, by file and number."""
    has = matcher(pattern, regex=regex, ignore_case=ignore_case)
    found: list[dict[str, Any]] = []
    searched = size = 0
    skipped: list[str] = []
    for place in _files(place_of(path), include):
        lines = _lines(place)
        if lines is None:
            skipped.append(shown_path(place))
            continue
        searched += 1
        for match in _matches(lines, has, context):
            size += sum(
                map(len, (match["text"], *match.get("before", ()), *match.get("after", ())))
            )
            if len(found) == max_matches or size > MOST_BYTES:
                return _told(found, searched, skipped) | {"more": True}
            found.append({"path": shown_path(place), **match})
    return _told(found, searched, skipped)


def _told(found: list[dict[str, Any]], searched: int, skipped: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"matches": found, "files_searched": searched}
    if skipped:
        told["no_text"] = skipped[:100]
    return told


def _files(place: Path, include: str) -> Iterator[Path]:
    """Yield files by path; `include` is held against the name, or the path where it has a slash."""
    if place.is_file():
        yield place
        return
    for parent, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            held = shown_path(file) if "/" in include else name
            pattern = f"/{include.lstrip('/')}" if "/" in include else include
            if not include or fnmatch.fnmatchcase(held, pattern):
                yield file


def _lines(place: Path) -> list[str] | None:
    """Return the lines of a file; None: it is no text."""
    data = place.read_bytes()
    if b"\x00" in data[:PROBE]:
        return None
    return data.decode(errors="replace").splitlines()


def _matches(
    lines: list[str], has: Callable[[str], bool], context: int
) -> Iterator[dict[str, Any]]:
    for at, line in enumerate(lines):
        if has(line):
            match: dict[str, Any] = {"line": at + 1, "text": _cut(line)}
            if context:
                match["before"] = [_cut(each) for each in lines[max(0, at - context) : at]]
                match["after"] = [_cut(each) for each in lines[at + 1 : at + 1 + context]]
            yield match


def _cut(line: str) -> str:
    return line if len(line) <= MOST_LINE else f"{line[:MOST_LINE]}[...]"
