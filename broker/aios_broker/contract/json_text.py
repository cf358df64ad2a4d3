"""What JSON may say and the kernel does not take: a NUL in a text, a key that stands there twice.

A NUL ends a text for a database, a file system, or a program in C, and not for us: two readers of
one text would see two. So would they of an object that has a key twice.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

NUL = "\x00"
# An escape that is one: with an even number of backslashes before it.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")


class DuplicateKey(ValueError):
    """An object of a JSON text has a key twice; `key` is it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"an object has the key {key!r} twice")
        self.key = key


def has_nul(data: bytes | str) -> bool:
    """Return whether a text in JSON has a NUL character; a raw one is no JSON anyway."""
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    return b"\\u0000" in data and _NUL.search(data) is not None


def refuse_duplicate_keys(data: bytes | str) -> None:
    """Return when no object of a JSON text has a key twice; its depth is known to be bounded.

    What is no JSON passes: whoever reads it says so.

    Raises:
        DuplicateKey: one has.
    """
    try:
        json.loads(data, object_pairs_hook=_check)
    except DuplicateKey:
        raise
    except ValueError:
        return


def _check(pairs: Sequence[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise DuplicateKey(key)
        seen.add(key)
