"""What becomes of each field of a foreign API's request: a table, and the walk that holds to it.

Nothing that a client asks for is dropped in silence. A field is

- kept: it means what that API says;
- refused: the request is, with an error that names the field;
- reported: the request is answered without it, and the header `x-aios-not-kept` names it;
- ignored: it asks for nothing that the answer could show (labels and hints of that API's own).

A field that no table has is reported; null asks for nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aios_broker.contract.errors import InvalidSyscall

Fate = Literal["kept", "refused", "reported", "ignored"]

NOT_KEPT_HEADER = "x-aios-not-kept"
MOST_REPORTED = 32  # fields that one answer names
_ODD = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of one field."""

    fate: Fate
    words: str  # for the page: what is made of it, or what to do instead
    of: Mapping[str, "Field"] = field(
        default_factory=dict
    )  # its own fields, or its items'; {}: any
    harmless: tuple[object, ...] = ()  # values by which it asks for nothing


Fields = Mapping[str, Field]


def kept(words: str, of: Fields | None = None) -> Field:
    """Return a field that means what its API says."""
    return Field("kept", words, of or {})


def refused(remedy: str, *harmless: object) -> Field:
    """Return a field that is refused, but for values that ask for nothing."""
    return Field("refused", remedy, harmless=harmless)


def reported(words: str, *harmless: object) -> Field:
    """Return a field that is left out, and named in the answer."""
    return Field("reported", words, harmless=harmless)


def ignored(words: str) -> Field:
    """Return a field that asks for nothing that the answer could show."""
    return Field("ignored", words)


def not_kept(fields: Fields, request: Mapping[str, object]) -> tuple[str, ...]:
    """Return the paths of what a request asks for and does not get, each once.

    Raises:
        InvalidSyscall: it has a field that is refused; `field` is its path.
    """
    found = dict.fromkeys(_walk(fields, request, ""))
    return tuple(found)[:MOST_REPORTED]


def headers_of(names: tuple[str, ...]) -> dict[str, str]:
    """Return the header that names what was not kept; none where all was."""
    return {NOT_KEPT_HEADER: ", ".join(names)} if names else {}


def rows(fields: Fields, above: str = "") -> Iterator[tuple[str, Field]]:
    """Yield each field with its path, as the page shows them."""
    for name, one in fields.items():
        yield f"{above}{name}", one
        yield from rows(one.of, f"{above}{name}.")


def _walk(fields: Fields, value: Mapping[str, object], above: str) -> Iterator[str]:
    for name, inner in value.items():
        if inner is None:
            continue
        known = fields.get(name)
        if known is None:
            yield _shown(f"{above}{name}")
        elif known.fate == "kept":
            if known.of:
                yield from _items(known.of, inner, f"{above}{name}.")
        elif known.fate != "ignored" and inner not in known.harmless:
            if known.fate == "refused":
                raise InvalidSyscall(
                    "this field is not served here", field=f"{above}{name}", remedy=known.words
                )
            yield f"{above}{name}"


def _items(fields: Fields, value: object, above: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _walk(fields, value, above)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _walk(fields, item, above)


def _shown(path: str) -> str:
    """Return a client's own name for a field as a header may carry it."""
    return _ODD.sub("_", path[:64])
