"""How an endpoint goes on with an unfinished answer, and where the two parts meet. Pure.

There is no one way to ask for it: some servers continue a final message of the assistant as it is
(`assistant`), others when `continue_final_message` is set, others when that message has `prefix`.
An endpoint may do none of it: it begins anew, repeats what it was given, or drops the space at the
seam. Which it does is found out once (`judged`), by its own answer: the beginning of it is given
back, and has to be gone on with.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from aios_broker.contract.errors import CoreError

Mode = Literal["assistant", "continue_final_message", "prefix"]
MODES: tuple[Mode, ...] = ("continue_final_message", "prefix", "assistant")
LEAST_REPEATED = 16  # characters of a beginning that comes again: less may be the answer's own
ODD = ", as the 4,711 gulls put it,"
SEEN = 4  # characters behind the seam by which an answer is known again


def prefilled(content: Mapping[str, object], mode: Mode, text: str) -> dict[str, object]:
    """Return a request that asks to go on from `text`, the answer so far."""
    messages = content["messages"]
    assert isinstance(messages, list)
    last: dict[str, object] = {"role": "assistant", "content": text}
    made: dict[str, object] = dict(content)
    match mode:
        case "continue_final_message":
            made |= {"continue_final_message": True, "add_generation_prompt": False}
        case "prefix":
            last["prefix"] = True
        case "assistant":
            pass
    made["messages"] = [*messages, last]
    return made


def seam_of(answer: str) -> int | None:
    """Return where an answer can be parted so that what goes on is recognised.

    Before a space in its middle: whether that is kept is what is to be found out. None: too short.
    """
    middle = len(answer) // 2
    places = [
        at
        for at in range(1, len(answer) - SEEN)
        if answer[at] == " " and not answer[at - 1].isspace() and answer[at + 1].isalnum()
    ]
    return min(places, key=lambda at: abs(at - middle), default=None)


Verdict = Literal["goes on", "repeats or begins anew", "no"]


def judged(answer: str, seam: int, went_on: str) -> Verdict:
    """Say what an endpoint did that was given the beginning of its own answer.

    One that repeats the beginning and one that takes no notice of it say the same here: see
    `told_apart`.
    """
    beginning, rest = answer[:seam], answer[seam : seam + SEEN]
    if went_on.startswith(rest):
        return "goes on"
    return "repeats or begins anew" if went_on.startswith(beginning + rest) else "no"


def told_apart(beginning: str) -> str:
    """Return a beginning that no answer has by itself: who says it, repeats what it was given."""
    return f"{beginning}{ODD}"


class Seam:
    """Joins what comes to what is there: a beginning that is repeated is taken off."""

    def __init__(self, beginning: str, *, repeats: bool | None = None) -> None:
        """`repeats`: whether it does; None: not known, a short repetition is the answer's own."""
        if repeats is None:
            repeats = len(beginning) >= LEAST_REPEATED
        self._beginning = beginning
        self._held = ""  # may be the beginning, once more
        self._open = bool(beginning) and repeats

    def join(self, piece: str) -> str:
        """Return what of a new piece goes on."""
        if not self._open:
            return piece
        self._held += piece
        if self._beginning.startswith(self._held) and self._held != self._beginning:
            return ""  # still all of it a repetition
        held, self._held, self._open = self._held, "", False
        return held.removeprefix(self._beginning)

    def end(self) -> str:
        """Return what was held back: the answer ended before it was a whole repetition."""
        held, self._held, self._open = self._held, "", False
        return held if held != self._beginning else ""


class Characters:
    """Text as whole characters: half of a surrogate pair waits for its other half."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        """Return the whole characters that there are now."""
        text = self._half + text
        self._half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        return _whole(text[: len(text) - len(self._half)])

    def end(self) -> str:
        """Return what is left: a half that stayed alone is U+FFFD."""
        half, self._half = self._half, ""
        return _whole(half)


def _whole(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def ids_of(text: str) -> tuple[int, ...]:
    """Return a text as ids: the numbers of its characters in Unicode."""
    return tuple(map(ord, text))


def text_of(ids: Sequence[int]) -> str:
    """Return the text of ids.

    Raises:
        CoreError: they are no characters.
    """
    try:
        return "".join(map(chr, ids))
    except (ValueError, OverflowError) as error:
        raise CoreError("a snapshot of a text holds what is no character") from error
