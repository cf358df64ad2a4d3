"""Texts that keep to a budget, whoever counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.memory import Note, Recall
from aios_workers.modules.memory.reading import estimated, recalled


def note(number: int, content: str, *, owner: str = "ann", context: str = "") -> Note:
    return Note(f"{number:032x}", owner, content, 1, 0.0, 0.0, context=context)


class Words:
    """Counts words; joined texts may have more than their parts."""

    def __init__(self, more: int = 0) -> None:
        self.calls = 0
        self._more = more

    async def __call__(self, texts: Sequence[str]) -> Sequence[int]:
        self.calls += 1
        return [len(text.split()) + self._more * text.count("\n- ") for text in texts]


async def test_whole_notes_best_first_while_they_fit() -> None:
    notes = [note(1, "one two"), note(2, "a long one that does not fit here"), note(3, "three")]
    made = await recalled(notes, 6, "ann", Words())
    assert made == Recall("- one two\n- three", 5, (notes[0].id, notes[2].id), exact=True)


async def test_what_has_more_tokens_joined_loses_its_last_note() -> None:
    notes = [note(1, "one two"), note(2, "three"), note(3, "four")]
    made = await recalled(notes, 8, "ann", Words(more=2))
    assert made == Recall("- one two\n- three", 7, (notes[0].id, notes[1].id), exact=True)


async def test_where_none_fits_the_best_is_cut() -> None:
    text = " ".join(["word"] * 1_000)
    made = await recalled([note(1, text)], 40, "ann", Words())
    assert 38 <= made.tokens <= 40
    assert made.text.endswith("…")
    assert made.notes == (note(1, text).id,)


async def test_no_notes_and_no_room_make_no_text() -> None:
    assert await recalled([], 100, "ann", estimated) == Recall("", 0, (), exact=False)
    made = await recalled([note(1, "word " * 50)], 1, "ann", Words(more=0))
    assert made.tokens <= 1


async def test_notes_of_others_are_marked() -> None:
    made = await recalled([note(1, "tea", owner="bob", context="drinks")], 50, "ann", estimated)
    assert made.text == "- (from bob; drinks) tea"


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("abc", 1), ("abcde", 2), ("日本語", 3)])
async def test_an_estimate_goes_by_bytes(text: str, tokens: int) -> None:
    assert await estimated([text]) == [tokens]


@given(
    texts=st.lists(st.text(min_size=1, max_size=60), max_size=8),
    max_tokens=st.integers(1, 60),
    more=st.integers(0, 3),
)
async def test_no_text_is_over_its_budget(texts: list[str], max_tokens: int, more: int) -> None:
    notes = [note(number, text) for number, text in enumerate(texts)]
    for count in (estimated, Words(more)):
        made = await recalled(notes, max_tokens, "ann", count)
        assert made.tokens <= max_tokens
        assert [made.tokens] == list(await count([made.text]))
        assert set(made.notes) <= {each.id for each in notes}
