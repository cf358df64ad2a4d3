"""The answer's text never depends on how its tokens arrived."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_workers.llm.answers import AnswerText

# Few characters, so that stop strings overlap with themselves and with each other.
ALPHABET = "ab世🚢"
texts = st.text(ALPHABET, max_size=40)
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3).map(tuple)


def feed(text: AnswerText, pieces: list[bytes]) -> str:
    """Feed tokens as a generation does; return what was streamed."""
    streamed = ""
    for piece in pieces:
        ended = text.feed(piece)
        streamed += text.take_ready()
        if ended:
            return streamed
    text.finish()
    return streamed + text.take_ready()


def cut(data: bytes, points: list[int]) -> list[bytes]:
    """Cut data into pieces anywhere, also within characters."""
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(texts, stops, st.lists(st.integers(0, 200), max_size=30))
def test_the_text_ends_before_the_first_stop_string(
    text: str, stop: tuple[str, ...], points: list[int]
) -> None:
    bytewise, pieces = AnswerText(stop), cut(text.encode(), points)

    streamed = feed(bytewise, pieces)

    ends = [text.find(each) for each in stop if each in text]
    assert bytewise.stopped == bool(ends)
    assert bytewise.stopped_by in ("", *(each for each in stop if f"{streamed}{each}" in text))
    assert bytewise.text == streamed
    assert text.startswith(streamed)
    assert not any(each in streamed for each in stop)
    if not ends:
        assert streamed == text


@given(texts, stops)
def test_one_character_at_a_time_ends_exactly_at_the_first_stop_string_to_be_complete(
    text: str, stop: tuple[str, ...]
) -> None:
    streamed = feed(AnswerText(stop), [character.encode() for character in text])

    complete = min((text.find(each) + len(each) for each in stop if each in text), default=None)
    if complete is None:
        assert streamed == text
    else:
        seen = text[:complete]
        assert streamed == min((seen[: seen.find(each)] for each in stop if each in seen), key=len)


@given(texts, stops, st.integers(0, 200), st.integers(0, 40))
def test_a_resumed_answer_is_the_uninterrupted_one(
    text: str, stop: tuple[str, ...], cut_at: int, width: int
) -> None:
    data = text.encode()
    tokens = [data[at : at + 1 + width % 3] for at in range(0, len(data), 1 + width % 3)]
    whole = AnswerText(stop)
    expected = feed(whole, tokens)

    first = AnswerText(stop)
    early = ""
    for token in tokens[: cut_at % (len(tokens) + 1)]:
        if first.feed(token):
            break
        early += first.take_ready()
    again = AnswerText(stop)  # a new slice sees all tokens again, and streams the rest

    assert expected.startswith(early)
    assert feed(again, tokens) == expected
    assert again.stopped == whole.stopped


def test_what_may_begin_a_stop_string_is_kept_back() -> None:
    text = AnswerText(("END",))

    text.feed(b"the EN")
    assert text.take_ready() == "the "
    text.feed(b"Dless?")  # found within a token: what follows it in the token is dropped
    assert (text.take_ready(), text.text, text.stopped) == ("", "the ", True)


def test_what_was_kept_back_in_vain_is_released() -> None:
    text = AnswerText(("END",))

    text.feed(b"the EN")
    text.feed(b"TER")
    assert text.take_ready() == "the ENTER"


def test_kept_back_characters_belong_to_an_answer_that_ends() -> None:
    text = AnswerText(("END",))
    text.feed(b"the EN")

    text.finish()

    assert (text.text, text.stopped) == ("the EN", False)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"\xe4\xb8", b"\x96"], "世"),
        ([b"\xf0", b"\x9f\x9a", b"\xa2!"], "🚢!"),
        ([b"\xe4\xb8", b"x"], "\ufffdx"),
        ([b"ok \xf0\x9f"], "ok \ufffd"),
    ],
)
def test_characters_are_put_together_from_pieces(pieces: list[bytes], expected: str) -> None:
    text = AnswerText()

    assert feed(text, pieces) == expected


def test_nothing_of_an_incomplete_character_is_streamed() -> None:
    text = AnswerText()

    text.feed(b"a\xe4\xb8")

    assert text.take_ready() == "a"
