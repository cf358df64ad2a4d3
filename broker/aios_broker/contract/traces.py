"""Which trace a syscall is part of, as W3C Trace Context says it: `00-TRACE-SPAN-FLAGS`.

A syscall without one is part of its program's own trace.
"""

import re
from typing import Annotated, NamedTuple

from msgspec import Meta

# Empty: none; as is one of zeros alone.
Traceparent = Annotated[str, Meta(pattern=r"^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?\Z")]

_ANY_VERSION = re.compile(r"(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z", re.S)
_OURS = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_LENGTH = 55  # of ours; what a newer version adds stands behind it
_SAMPLED = 1  # of the flags
SPAN_DIGITS = 16


class TraceContext(NamedTuple):
    """A place in a trace: the span that what comes next is a part of."""

    trace_id: str
    span_id: str
    is_sampled: bool


def traceparent_of(header: str) -> str:
    """Return the value of a header as syscalls carry it; empty: it is none, and is passed over."""
    text = header.strip()
    if not _ANY_VERSION.match(text) or (text.startswith("00") and len(text) != _LENGTH):
        return ""
    ours = f"00{text[2:_LENGTH]}"
    return ours if _OURS.match(ours) else ""


def context_of(traceparent: str) -> TraceContext | None:
    """Return what a syscall carries, taken apart; None: it carries none."""
    if not _OURS.match(traceparent):
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def span_of(syscall_id: str) -> str:
    """Return the id of the span that stands for a syscall."""
    return syscall_id[:SPAN_DIGITS]
