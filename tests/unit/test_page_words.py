"""How the page says numbers and times: as people read them, however large."""

import pytest

from aios_kernel_api.page.html import environment


@pytest.mark.parametrize(
    ("age_s", "words"),
    [
        (-3.0, "0 s ago"),  # the clock of its machine goes before
        (9.4, "9 s ago"),
        (59.9, "50 s ago"),
        (60.0, "1 min ago"),
        (3_599.0, "59 min ago"),
        (3_600.0, "1 h ago"),
        (47 * 3_600.0, "47 h ago"),
        (48 * 3_600.0, "2 days ago"),
        (1_000 * 86_400.0, "1,000 days ago"),
    ],
)
def test_how_long_ago_it_was(age_s: float, words: str) -> None:
    assert environment().filters["ago"](age_s) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0"), (999, "999"), (2_147_483_648, "2,147,483,648"), (60.0, "60")]
)
def test_thousands_are_apart(number: float, words: str) -> None:
    assert environment().filters["grouped"](number) == words
