"""Numbers and words as the commands print them."""

import pytest

from aios_broker.views.words import plural, seconds
from aios_cli.tables import first_words, narrow_seconds


@pytest.mark.parametrize(
    ("value_s", "spaced", "narrow"),
    [
        (0.0, "0 ms", "0ms"),
        (0.0494, "49 ms", "49ms"),
        (0.9994, "999 ms", "999ms"),
        (0.9996, "1.0 s", "1.0s"),
        (99.94, "99.9 s", "99.9s"),
        (99.96, "1 min 40 s", "1m40s"),
        (3599.6, "1 h 00 min", "1h00m"),
        (7505.0, "2 h 05 min", "2h05m"),
        (86_340.0, "23 h 59 min", "23h59m"),
        (86_399.0, "1 day", "1d"),
        (90_100.0, "1 day 01 h", "1d01h"),
        (172_700.0, "2 days", "2d"),
        (-2.0, "-2.0 s", "-2.0s"),
    ],
)
def test_times_have_units_and_no_surprise_at_the_edges(
    value_s: float, spaced: str, narrow: str
) -> None:
    assert seconds(value_s) == spaced
    assert narrow_seconds(value_s) == narrow


def test_plural_counts_one() -> None:
    assert plural(1, "slot") == "1 slot"
    assert plural(0, "slot") == "0 slots"
    assert plural(100_000, "syscall") == "100,000 syscalls"


def test_first_words_stay_on_one_line_and_within_the_limit() -> None:
    assert first_words("short\n answer", 20) == "short answer"
    assert first_words("a long answer that goes on", 12) == "a long…"
    assert len(first_words("x" * 50, 10)) == 10
