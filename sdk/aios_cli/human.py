"""Numbers as people read them, always with their unit."""

from __future__ import annotations

from datetime import UTC, datetime

SHORT_ID_DIGITS = 8  # what tables show of an id, and the least that commands accept

_MINUTE_S = 60
_HOUR_S = 3600


def seconds(value_s: float) -> str:
    """Return a time such as `340 ms`, `12.3 s`, `5 min 20 s` or `2 h 05 min`."""
    if value_s < 0:
        return f"-{seconds(-value_s)}"
    if value_s < 0.9995:
        return f"{value_s * 1000:.0f} ms"
    if value_s < 99.95:
        return f"{value_s:.1f} s"
    whole_s = round(value_s)
    if whole_s < _HOUR_S:
        return f"{whole_s // _MINUTE_S} min {whole_s % _MINUTE_S:02d} s"
    minutes = round(value_s / _MINUTE_S)
    return f"{minutes // _MINUTE_S} h {minutes % _MINUTE_S:02d} min"


def narrow_seconds(value_s: float) -> str:
    """Return a time in at most six characters, for a column: `340ms`, `12.3s`, `5m20s`, `2h05m`."""
    spaced = seconds(value_s)
    return spaced.replace(" min", "m").replace(" ms", "ms").replace(" ", "")


def moment(at_s: float | None) -> str:
    """Return a time as people read it, in UTC."""
    return "" if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S}"


def plural(count: int, noun: str) -> str:
    """Return `1 syscall`, `2 syscalls`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short_id(job_id: str) -> str:
    """Return the first digits of an id."""
    return job_id[:SHORT_ID_DIGITS]


def first_words(text: str, limit: int) -> str:
    """Return the beginning of a text on one line, cut at a word where there is one."""
    flat = " ".join(text.split())
    if len(flat) <= limit:
        return flat
    cut = flat[: limit - 1].rpartition(" ")[0]
    return f"{cut or flat[: limit - 1]}…"
