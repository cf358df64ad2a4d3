"""What JSON may say and the kernel does not take.

A NUL in a text: it ends a text for a database, a file system, or a program in C, and not for us, so
that two readers of one text would see two. An object with a key twice, for the same reason. Lists
and objects that are nested too deeply, or too many of them: what that costs to find out is bounded
by few passes in C, however they are made.
"""

import json
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

NUL = "\x00"
# An escape that is one: with an even number of backslashes before it.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")
# A string, or what of it is there: it never fails, so that no input costs more than one pass.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_KEY_SHOWN = 128  # characters of a key
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class DuplicateKey(ValueError):
    """An object of a JSON text has a key twice; `key` is it, or the beginning of a long one."""

    def __init__(self, key: str) -> None:
        self.key = key[:_KEY_SHOWN]
        super().__init__(f"an object has the key {self.key!r} twice")


def has_nul(data: bytes | str) -> bool:
    """Return whether a text in JSON has a NUL character; a raw one is no JSON anyway."""
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    return b"\\u0000" in data and _NUL.search(data) is not None


def is_nested_deeper(data: bytes | str, levels: int) -> bool:
    """Return whether JSON has more than so many levels of lists and objects; it is not checked."""
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    if data.count(b"[") + data.count(b"{") <= levels:
        return False  # most syscalls
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKET)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > levels


def has_more_values(data: bytes | str, most: int) -> bool:
    """Return whether JSON has more than so many lists, objects and commas; it is not checked."""
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    if _values(data) <= most:
        return False  # also where all of them stand in texts
    # Quotes that no backslash is before: at most two of a string, and four of an object's member.
    if data.count(b'"') - data.count(b'\\"') > 4 * most + 2:
        return True  # else there are few strings to be looked for
    return _values(_STRING.sub(b"", data)) > most


def _values(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def refuse_duplicate_keys(data: bytes | str) -> None:
    """Return when no object of a JSON text has a key twice; its depth is known to be bounded.

    What is no JSON passes, or has a number that nobody reads: whoever reads it says so.

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
    if len(dict(pairs)) == len(pairs):  # in C: an object may have 100,000 of them
        return
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise DuplicateKey(key)
        seen.add(key)
