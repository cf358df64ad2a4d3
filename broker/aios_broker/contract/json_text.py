"""What JSON may say and the kernel does not take.

A NUL in a text: it ends a text for a database, a file system, or a program in C, and not for us, so
that two readers of one text would see two. An object with a key twice, for the same reason. Lists
and objects that are nested too deeply, or too many of them: what that costs to find out is bounded
by few passes in C, however they are made.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec

NUL = "\x00"
# An escape that is one: with an even number of backslashes before it.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")
# A text, or what of it is there, where no quote is escaped: it never fails, so that no input costs
# more than one pass.
_STRING = re.compile(rb'"[^"]*+"?')
_KEY_SHOWN = 128  # characters of a key
_NO_BRACKET = bytes(set(range(256)) - set(b'[]{}"'))
_NO_VALUE = bytes(set(range(256)) - set(b'[{,"'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one level up, or down
_QUICK_LEVELS = 16  # found by taking empty brackets out: most JSON has fewer


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
    brackets = _outside_texts(data, _NO_BRACKET)
    rest = brackets
    for _ in range(min(levels, _QUICK_LEVELS) // 2):  # each takes out one level or two
        rest = rest.replace(b"[]", b"").replace(b"{}", b"")
        if not rest:
            return False
    steps = memoryview(brackets.translate(_STEPS)).cast("b")
    return max(accumulate(steps), default=0) > levels


def has_more_values(data: bytes | str, most: int) -> bool:
    """Return whether JSON has more than so many lists, objects and commas; it is not checked."""
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    if _values(data) <= most:
        return False  # also where all of them stand in texts
    return _values(_outside_texts(data, _NO_VALUE)) > most


def _values(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _outside_texts(data: bytes, left_out: bytes) -> bytes:
    """Return what stands outside of the texts of JSON, but for characters that are left out."""
    if b"\\" in data:
        data = _without_escapes(data)
    # Two quotes with nothing in between: whatever is inside of a text, or outside, stays so.
    data = data.translate(None, left_out).replace(b'""', b"")
    return _STRING.sub(b"", data) if b'"' in data else data


def _without_escapes(data: bytes) -> bytes:
    """Return JSON without escaped backslashes and quotes: what is left of those, is one."""
    return data.replace(b"\\\\", b"").replace(b'\\"', b"")


def read_once_each(data: bytes) -> Any:  # noqa: ANN401 - whatever JSON may be
    """Return what a JSON text says, as plain values; its depth is known to be bounded.

    Raises:
        DuplicateKey: one of its objects has a key twice.
        msgspec.DecodeError, UnicodeDecodeError: it is no JSON.
    """
    value = msgspec.json.decode(data)
    refuse_dropped(data, value)
    return value


def refuse_dropped(data: bytes, value: object) -> None:
    """Return when a value has all that stands in the JSON text that it was read from.

    Of a key that stands twice one is dropped, and its colon with it: to count those costs a
    fraction of a look at each key. What is `msgspec.Raw` in the value is not looked into.

    Raises:
        DuplicateKey: something is missing.
    """
    if _colons(data) != _colons(msgspec.json.encode(value)):
        json.loads(data, object_pairs_hook=_check)


def _colons(data: bytes) -> int:
    count = data.count(b":")
    if b"\\u003" in data:
        escapes = data.replace(b"\\\\", b"")
        count += escapes.count(b"\\u003a") + escapes.count(b"\\u003A")
    return count


def refuse_duplicate_keys(data: bytes | str) -> None:
    """Return when no object of a JSON text has a key twice; its depth is known to be bounded.

    What is no JSON passes: whoever reads it says so.

    Raises:
        DuplicateKey: one has.
    """
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        read_once_each(data)


def _check(pairs: Sequence[tuple[str, Any]]) -> None:
    if len(dict(pairs)) == len(pairs):  # in C: an object may have 100,000 of them
        return
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise DuplicateKey(key)
        seen.add(key)
