"""How often a part of the page is made anew."""

from aios_kernel_api.page.parts import EVERY_S, MOST_S, SHARE, rest_s


def test_what_is_cheap_is_made_twice_a_second() -> None:
    assert rest_s(0.001, 2) == EVERY_S


def test_all_parts_that_are_followed_share_a_twentieth_of_a_processor() -> None:
    parts = [0.030, 0.050, 0.060]

    used = sum(took_s / rest_s(took_s, len(parts)) for took_s in parts)

    assert round(used, 6) == SHARE


def test_nothing_stands_still_for_long() -> None:
    assert rest_s(5.0, 10) == MOST_S
