"""What a model thinks before it answers: told from the answer by the tags of its family. Pure."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """How a model marks its reasoning. It stands before the answer, once."""

    begin: str
    end: str
    answer_header: str = ""  # what may stand before an answer, and is not part of it
    # Written behind a prompt that has opened the reasoning, they close it: for answers that begin
    # at once. A core fills them in.
    closing_ids: tuple[int, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """All that the model writes as tokens of its own, perhaps."""
        return (self.begin, self.end, self.answer_header)

    @property
    def closing(self) -> str:
        """The text that ends a reasoning that has been opened."""
        return f"\n{self.end}\n\n"


_FAMILIES = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags(
        "<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant<|channel|>final<|message|>"
    ),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningTags("<|channel>thought", "<channel|>"),
)
_CHANNELS = re.compile(r"<\|channel\|>analysis")


def tags_of(template: str) -> ReasoningTags | None:
    """Return the tags that a chat template speaks of; None: its model does not think aloud."""
    for tags in _FAMILIES:
        opening = tags.begin.partition("<|message|>")[0]
        if opening in template and tags.end in template:
            return tags
    return None


def is_open(prompt_end: str, tags: ReasoningTags) -> bool:
    """Whether a prompt ends within the reasoning, which its template has begun."""
    return prompt_end.rstrip().endswith(tags.begin)


class ReasoningReader:
    """Parts a text that comes in pieces into reasoning and answer. How it comes does not matter.

    The blanks around the tags belong to neither.
    """

    def __init__(self, tags: ReasoningTags, *, opened: bool) -> None:
        self._tags = tags
        self._held = ""  # may be the beginning of a tag, or blanks before one
        self._part = self._reasoning if opened else self._start
        self._has_begun = False  # something of the present part has been handed out

    @property
    def is_open(self) -> bool:
        """Whether the reasoning has begun, and not ended."""
        return self._part == self._reasoning

    def feed(self, text: str) -> tuple[str, str]:
        """Return what is certain now: more of the reasoning, more of the answer."""
        self._held += text
        return self._part(is_over=False)

    def finish(self) -> tuple[str, str]:
        """Return the rest: nothing more comes."""
        return self._part(is_over=True)

    def _start(self, *, is_over: bool) -> tuple[str, str]:
        held = self._held.lstrip()
        if held.startswith(self._tags.begin):
            self._held = held[len(self._tags.begin) :]
            self._part = self._reasoning
            return self._part(is_over=is_over)
        header = self._tags.answer_header
        undecided = self._tags.begin.startswith(held) or bool(_header_at(header, held, whole=False))
        if undecided and not is_over:
            return "", ""
        self._part = self._answer if not header else self._after
        return self._part(is_over=is_over)

    def _reasoning(self, *, is_over: bool) -> tuple[str, str]:
        if not self._has_begun:
            self._held = self._held.lstrip()
        thought, end, rest = self._held.partition(self._tags.end)
        if end:
            self._held, self._has_begun = rest, False
            self._part = self._after
            return thought.rstrip(), self._part(is_over=is_over)[1]
        keep = 0 if is_over else _kept_back(thought, self._tags.end)
        cut = len(thought) - keep
        self._held = thought[cut:]
        ready = thought[:cut].rstrip() if is_over else thought[:cut]
        self._has_begun = self._has_begun or bool(ready)
        return ready, ""

    def _after(self, *, is_over: bool) -> tuple[str, str]:
        """Between the reasoning and the answer: blanks, and a header where the family has one."""
        held = self._held.lstrip()
        if (not held or _header_at(self._tags.answer_header, held, whole=False)) and not is_over:
            return "", ""
        self._held = held[_header_at(self._tags.answer_header, held, whole=True) :]
        self._part = self._answer
        return self._part(is_over=is_over)

    def _answer(self, *, is_over: bool) -> tuple[str, str]:
        del is_over
        ready, self._held = self._held, ""
        return "", ready


def _header_at(header: str, text: str, *, whole: bool) -> int:
    """Return how long the header is that a text begins with; its first words may be missing.

    `whole`: all of it; else a part of it that may become all.
    """
    shorter = header[header.find("<|channel|>") :] if "<|channel|>" in header else header
    for each in (header, shorter):
        if each and whole and text.startswith(each):
            return len(each)
        if each and text and not whole and len(text) < len(each) and each.startswith(text):
            return len(text)
    return 0


def _kept_back(text: str, end: str) -> int:
    """Return how many characters may belong to the end tag, or are blanks before it."""
    body = text.rstrip()
    blanks = len(text) - len(body)
    for size in range(min(len(end) - 1, len(text)), 0, -1):
        if text.endswith(end[:size]):
            before = text[: len(text) - size]
            return size + len(before) - len(before.rstrip())
    return blanks
