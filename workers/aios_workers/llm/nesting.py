"""How deep a JSON value is nested. Pure.

What walks it (templates, encoders, the compiler of forms) calls itself for each level: beyond a
limit that all of them bear it is refused, not walked.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_DEPTH = 100  # llguidance reads 128; a tool's schema stands in one of its own


def is_too_deep(value: object) -> bool:
    """Whether a value has more than MAX_DEPTH levels of lists and objects."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return False
    return True


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []
