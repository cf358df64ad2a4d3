"""Where two parts of an answer meet: nothing is lost, doubled or broken there."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import CoreError
from aios_broker.contract.money import Billed
from aios_workers.llm.cores.openai.answer import Answer
from aios_workers.llm.cores.openai.prefill import (
    LEAST_REPEATED,
    SEEN,
    Characters,
    Seam,
    ids_of,
    judged,
    prefilled,
    seam_of,
    text_of,
)

ANYTHING = st.text(st.characters(codec="utf-8"), max_size=60)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(ANYTHING, ANYTHING, st.lists(st.integers(0, 200), max_size=6))
def test_an_endpoint_that_repeats_the_beginning_is_heard_from_where_it_goes_on(
    beginning: str, rest: str, cuts: list[int]
) -> None:
    seam = Seam(beginning, repeats=True)
    said = "".join(map(seam.join, pieces_of(beginning + rest, cuts))) + seam.end()
    assert said == rest


@given(ANYTHING, ANYTHING, st.lists(st.integers(0, 200), max_size=6))
def test_one_that_goes_on_is_heard_as_it_is(beginning: str, rest: str, cuts: list[int]) -> None:
    seam = Seam(beginning)
    said = "".join(map(seam.join, pieces_of(rest, cuts))) + seam.end()
    if rest.startswith(beginning) and len(beginning) >= LEAST_REPEATED:
        assert said == rest.removeprefix(beginning)
    else:
        assert said == rest


@given(ANYTHING, ANYTHING, st.lists(st.integers(0, 200), max_size=6))
def test_one_that_is_known_not_to_repeat_may_say_the_same_again(
    beginning: str, rest: str, cuts: list[int]
) -> None:
    seam = Seam(beginning, repeats=False)
    again = beginning + rest
    assert "".join(map(seam.join, pieces_of(again, cuts))) + seam.end() == again


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=6))
def test_characters_that_come_in_halves_are_whole(text: str, cuts: list[int]) -> None:
    halves = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    units = halves.encode("utf-16-le", "surrogatepass")
    codes = [chr(int.from_bytes(units[i : i + 2], "little")) for i in range(0, len(units), 2)]
    characters = Characters()
    said = "".join(map(characters.feed, pieces_of("".join(codes), cuts))) + characters.end()
    assert said == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    said.encode()  # no half is left alone


@given(ANYTHING)
def test_ids_are_the_characters(text: str) -> None:
    assert text_of(ids_of(text)) == text


def test_what_is_no_character_is_a_broken_snapshot() -> None:
    with pytest.raises(CoreError):
        text_of((0x110000,))


@given(ANYTHING)
def test_an_answer_is_parted_before_a_word(answer: str) -> None:
    seam = seam_of(answer)
    if seam is not None:
        assert answer[seam] == " "
        assert 0 < seam < len(answer) - SEEN
        assert judged(answer, seam, answer[seam:]) == "goes on"
        assert judged(answer, seam, answer[seam:].lstrip()) != "goes on"


def test_who_repeats_and_who_takes_no_notice_say_the_same() -> None:
    answer = "The sea is wide and the hills are far."
    seam = seam_of(answer)
    assert seam is not None
    assert judged(answer, seam, answer) == "repeats or begins anew"
    assert judged(answer, seam, "I do not know.") == "no"
    assert seam_of("short") is None


def test_each_way_asks_as_its_servers_are_asked() -> None:
    content = {"messages": [{"role": "user", "content": "Hi"}], "model": "m"}
    made = prefilled(content, "continue_final_message", "so far")
    assert (made["continue_final_message"], made["add_generation_prompt"]) == (True, False)
    last = {"role": "assistant", "content": "so far"}
    assert prefilled(content, "assistant", "so far")["messages"] == [*content["messages"], last]
    made = prefilled(content, "prefix", "so far")
    assert made["messages"] == [*content["messages"], {**last, "prefix": True}]
    assert len(content["messages"]) == 1


@pytest.mark.parametrize(
    "event",
    [
        {"choices": "none"},
        {"choices": [None]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"content": 7, "tool_calls": 3}}]},
        {"choices": [{"delta": {"tool_calls": [None, {"function": "x"}]}}]},
        {"usage": "many"},
    ],
)
def test_an_event_of_another_shape_adds_nothing(event: dict[str, object]) -> None:
    answer = Answer(about_prompt_tokens=3)
    assert answer.take(event) is None
    assert answer.billed == Billed(3, output_tokens=0)
