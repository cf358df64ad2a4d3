"""What agents write is text: only the template's own markers become special tokens.

A message may contain `<|im_end|>`. Before the template runs, the first character of each special
token in what agents wrote is replaced by one that occurs nowhere in it, and put back when the text
around is turned into tokens: a template that trims, measures or quotes a text sees one like it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_STAND_INS = range(0xE000, 0xF8FF)  # Unicode's private use area; without its last
Encode = Callable[[str], Sequence[int]]


class Markers:
    """The special tokens of a model: their texts and ids."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {text: token for text, token in ids.items() if text}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.starts = re.compile(_starts(longest_first))
        self._beginnings = frozenset(
            text[:size] for text in self._ids for size in range(1, len(text))
        )
        self._longest = max(map(len, self._ids), default=1)

    def hide(self, *values: Any) -> tuple[Any, "Hidden"]:  # noqa: ANN401  any JSON values
        """Return values without special tokens in their texts, and how to bring them back."""
        hidden = Hidden(self, values)
        return hidden.values(values), hidden

    def encode(self, text: str, hidden: "Hidden", encode: Encode, plain: Encode) -> tuple[int, ...]:
        """Return the ids of a rendered text.

        Args:
            text: As the template wrote it.
            hidden: What agents wrote in it.
            encode: Gives the ids of a text whose special tokens are meant.
            plain: Gives those of a text in which nothing is special.
        """
        if not hidden.found:
            return tuple(encode(text))
        ids: list[int] = []
        at = 0
        for marker in self.pattern.finditer(text):
            ids += plain(hidden.shown(text[at : marker.start()])) if marker.start() > at else ()
            ids.append(self._ids[marker.group()])
            at = marker.end()
        return (*ids, *(plain(hidden.shown(text[at:])) if at < len(text) else ()))

    def first_of(self, text: str) -> tuple[str, int] | None:
        """Return the special token that a text begins with, and its id."""
        found = self.pattern.match(text)
        return None if found is None else (found.group(), self._ids[found.group()])

    def begun_at(self, text: str) -> int | None:
        """Return where a special token begins that the end of a text leaves unfinished."""
        whole = text.rstrip()
        for at in range(max(0, len(whole) - self._longest), len(whole)):
            if whole[at:] in self._beginnings:
                return at
        return None


class Hidden:
    """The special tokens that stand in what agents wrote of one conversation."""

    def __init__(self, markers: Markers, values: object) -> None:
        self._markers = markers
        used = set(_characters(values))
        self._free = (chr(code) for code in _STAND_INS if chr(code) not in used)
        self._stand_ins: dict[str, str] = {}  # of first characters
        self.found = False

    def values(self, value: Any) -> Any:  # noqa: ANN401  any JSON value
        """Return a value with the special tokens in all its texts hidden."""
        if isinstance(value, str):
            # A lone surrogate has no UTF-8; it becomes a question mark.
            return self._hidden(value.encode("utf-8", "replace").decode("utf-8"))
        if isinstance(value, Mapping):
            return {self.values(key): self.values(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.values(each) for each in value]
        return value

    def shown(self, text: str) -> str:
        """Put back what was replaced."""
        for character, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, character)
        return text

    def _hidden(self, text: str) -> str:
        text = self._markers.starts.sub(lambda start: self._stand_in(start.group()), text)
        # What the next text might complete.
        begun = self._markers.begun_at(text)
        if begun is None:
            return text
        return f"{text[:begun]}{self._stand_in(text[begun])}{text[begun + 1 :]}"

    def _stand_in(self, character: str) -> str:
        self.found = True
        if character not in self._stand_ins:
            self._stand_ins[character] = next(self._free)
        return self._stand_ins[character]


def _starts(texts: Sequence[str]) -> str:
    """Return a pattern that finds the first character of each, also where two overlap."""
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[0], []).append(re.escape(text[1:]))
    found = (f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    return "|".join(found) or r"(?!)"


def _characters(value: object) -> str:
    """Return all characters of a value that are in the private use area."""
    if isinstance(value, str):
        return "".join(_PRIVATE.findall(value))
    if isinstance(value, Mapping):
        return "".join(_characters(key) + _characters(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return "".join(map(_characters, value))
    return ""


_PRIVATE = re.compile("[\ue000-\uf8ff]")
