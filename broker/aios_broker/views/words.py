"""How numbers and ids read: times, counts, the digits of an id."""

from datetime import UTC, datetime

MINUTES_OF_DAY = 24 * 60
SHORT_ID_DIGITS = 8  # what is shown of an id, and the least that commands accept


def seconds(value_s: float) -> str:
    """Return a time such as `340 ms`, `12.3 s`, `5 min 20 s`, `2 h 05 min` or `3 days 04 h`."""
    if value_s < 0:
        return f"-{seconds(-value_s)}"
    if value_s < 0.9995:
        return f"{value_s * 1000:.0f} ms"
    if value_s < 99.95:
        return f"{value_s:.1f} s"
    whole_s = round(value_s)
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60:02d} s"
    minutes = round(value_s / 60)
    if minutes < MINUTES_OF_DAY:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days, hours = divmod(round(value_s / 3600), 24)
    return f"{plural(days, 'day')} {hours:02d} h" if hours else plural(days, "day")


def moment(at_s: float | None) -> str:
    """Return a time as people read it, in UTC."""
    return "" if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S}"


def plural(count: int, noun: str) -> str:
    """Return `1 syscall`, `2,000 syscalls`."""
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"


def short_id(job_id: str) -> str:
    """Return the first digits of an id."""
    return job_id[:SHORT_ID_DIGITS]
