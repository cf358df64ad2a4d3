"""Time as RQ writes it."""

from datetime import UTC, datetime


def iso_now() -> str:
    """Return the time for RQ's records: display only, decisions use Redis' own clock."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
