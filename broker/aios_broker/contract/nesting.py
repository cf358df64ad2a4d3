"""How deep JSON is nested. Pure.

What reads and writes JSON calls itself for each level and gives up at a depth that differs by
Python and by where it is called from (3.11: about 990 levels, 3.12: 1,490, 3.13: 9,990). A limit
far below keeps one process from writing what another cannot read.
"""

from __future__ import annotations

import re
from itertools import accumulate

MAX_LEVELS = 128  # of one encoded syscall, itself and its body included

# A string, or what of it is there: it never fails, so that no input costs more than one pass.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def is_nested_deeper(data: bytes | str, levels: int) -> bool:
    """Return whether JSON has more than so many levels of lists and objects; it is not checked."""
    if len(data) <= 2 * levels:
        return False  # no room for them: most syscalls
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    if data.count(b"[") + data.count(b"{") <= levels:
        return False
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKET)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > levels
