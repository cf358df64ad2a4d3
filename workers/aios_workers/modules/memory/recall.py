"""A text made of notes that keeps to a budget of tokens, estimated or counted by a core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aios_broker.contract.memory import Note

BYTES_PER_TOKEN = 4  # of UTF-8: an estimate, on the high side for English
MOST_BYTES_PER_TOKEN = 16  # more than texts have on average: what is longer need not be counted
BEGINNINGS = 16  # of a note that has to be cut, counted at a time
ROUNDS = 2  # of looking for the longest: to 1/256 of the note

Count = Callable[[Sequence[str]], Awaitable[Sequence[int]]]  # the tokens of each text


@dataclass(frozen=True, slots=True)
class Recalled:
    """A text, its tokens, and the ids of the notes that it is made of."""

    text: str
    tokens: int
    notes: tuple[str, ...]


async def estimated(texts: Sequence[str]) -> Sequence[int]:
    """Return an estimate of the tokens of texts."""
    return [-(-len(text.encode()) // BYTES_PER_TOKEN) for text in texts]


async def recalled(notes: Sequence[Note], max_tokens: int, whose: str, count: Count) -> Recalled:
    """Return a text made of notes, best first; it has at most that many tokens.

    A note that does not fit whole is passed over for smaller ones; where none fits, the best one
    is cut. `whose`: the agent that reads, others' notes are marked. Counts all notes at once, then
    the text; more often only where the text has more tokens than its parts.
    """
    if not notes:
        return Recalled("", 0, ())
    parts = [_part(note, whose) for note in notes]
    chosen = _fitting(await count([f"{part}\n" for part in parts]), max_tokens)
    while chosen:
        text = "\n".join(parts[at] for at in chosen)
        [tokens] = await count([text])
        if tokens <= max_tokens:
            return Recalled(text, tokens, tuple(notes[at].id for at in chosen))
        chosen.pop()
    text, tokens = await _cut(parts[0], max_tokens, count)
    return Recalled(text, tokens, (notes[0].id,) if text else ())


def _fitting(sizes: Sequence[int], room: int) -> list[int]:
    chosen = []
    for at, size in enumerate(sizes):
        if size <= room:
            chosen.append(at)
            room -= size
    return chosen


async def _cut(part: str, max_tokens: int, count: Count) -> tuple[str, int]:
    """Return the longest of some beginnings that fits, and its tokens."""
    fits, best = 0, ("", 0)
    too_long = min(len(part), max_tokens * MOST_BYTES_PER_TOKEN) + 1
    for _ in range(ROUNDS):
        step = (too_long - fits) / BEGINNINGS
        lengths = sorted({round(fits + step * number) for number in range(1, BEGINNINGS)} - {0})
        texts = [f"{part[:length]}…" for length in lengths]
        for length, text, tokens in zip(lengths, texts, await count(texts), strict=True):
            if tokens > max_tokens:
                too_long = length
                break
            fits, best = length, (text, tokens)
    return best


def _part(note: Note, whose: str) -> str:
    labels = [] if note.owner == whose else [f"from {note.owner}"]
    labels += [note.context] if note.context else []
    return f"- ({'; '.join(labels)}) {note.content}" if labels else f"- {note.content}"
