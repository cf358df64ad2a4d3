"""The tokens of SimulatedCore: all bytes, some words, and the marks of its chat template.

Characters of several bytes come out of it in pieces, as they do with real vocabularies, so
that whatever reads its output has to put them together.
"""

from __future__ import annotations

from collections.abc import Sequence

from aios_broker.contract.llm import Message

BYTES = 256  # ids 0 to 255 are the bytes themselves
WORDS: tuple[bytes, ...] = tuple(
    word.encode()
    for word in (
        " the",
        " a",
        " queue",
        " waits",
        " worker",
        " runs",
        " and",
        " then",
        " yields",
        " slot",
        " agent",
        " asks",
        " for",
        " of",
        " in",
        " model",
        " tokens",
        " snapshot",
        " resumed",
        " exactly",
        " where",
        " it",
        " was",
        " cut",
        ".",
        ",",
        "!",
        "\n",
        " END",
        " STOP",
        "é",
        " ñandú",
        " 世界",
        " 🚢",
        " naïve",
        " Ω",
    )
)
MARKS = ("system", "user", "assistant", "tool")  # begin a turn; never generated

# Characters that are generated in two tokens: the leading bytes, and what completes them.
SPLIT: tuple[tuple[bytes, bytes], ...] = (
    (b"\xe4\xb8", b"\x96"),  # 世
    (b"\xf0\x9f", b"\x9a\xa2"),  # 🚢
    (b"\xc3", b"\xa9"),  # é
    (b"\xe2", b"\x82\xac"),  # €
)

_FIRST_WORD = BYTES
_FIRST_HEAD = _FIRST_WORD + len(WORDS)
_FIRST_TAIL = _FIRST_HEAD + len(SPLIT)
_FIRST_MARK = _FIRST_TAIL + len(SPLIT)
END_ID = _FIRST_MARK + len(MARKS)  # ends a turn of the prompt, or the answer

# What may follow anything: words and the first halves of split characters.
GENERATED: tuple[int, ...] = tuple(range(_FIRST_WORD, _FIRST_TAIL))

_PIECES: tuple[bytes, ...] = (
    *(bytes([byte]) for byte in range(BYTES)),
    *WORDS,
    *(head for head, _ in SPLIT),
    *(tail for _, tail in SPLIT),
    *(f"<|{mark}|>".encode() for mark in MARKS),
    b"<|end|>",
)


SIZE = len(_PIECES)
_MARK_IDS = range(_FIRST_MARK, SIZE)  # a text that spells a mark is still bytes


def constraint_pieces() -> list[bytes]:
    """Return the bytes of all tokens that can be part of a text; marks have none."""
    return [b"" if token in _MARK_IDS else piece for token, piece in enumerate(_PIECES)]


def completing(token: int) -> int | None:
    """Return the id that completes the character which `token` begins; None for whole ones."""
    if _FIRST_HEAD <= token < _FIRST_TAIL:
        return token + len(SPLIT)
    return None


def render(messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the prompt: for each turn its mark, its bytes and the end; then the answer's mark."""
    ids: list[int] = []
    for message in messages:
        ids.append(_FIRST_MARK + MARKS.index(message.role))
        ids.extend(message.content.encode())
        ids.append(END_ID)
    ids.append(_FIRST_MARK + MARKS.index("assistant"))
    return tuple(ids)


def decode(ids: Sequence[int]) -> bytes:
    """Return the bytes of ids, marks included."""
    return b"".join(_PIECES[token] for token in ids)
