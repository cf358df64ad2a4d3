"""One answer of an endpoint as its events come: thoughts, text, calls, and what it costs.

Ids are characters, so what is no text of the answer comes between marks: calls as the worker reads
them anywhere, and what a model thinks before it answers between two that are no characters.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aios_broker.contract.errors import CoreError
from aios_broker.contract.money import Billed
from aios_broker.contract.reply import Alternative, TokenLogprob
from aios_workers.llm.chat.reasoning import ReasoningTags
from aios_workers.llm.core import FinishReason, Step
from aios_workers.llm.cores.openai.client import END, Event
from aios_workers.llm.cores.openai.prefill import Characters, Seam, ids_of, text_of
from aios_workers.llm.tools import CALL_BEGIN, CALL_END

_FINISH: dict[str, FinishReason] = {"stop": "stop", "tool_calls": "stop", "length": "length"}
_FINISH |= {"function_call": "stop", "content_filter": "stop", "eos": "stop"}
_FINISH |= {"model_length": "length", "max_tokens": "length", "MAX_TOKENS": "length"}
_FAILED = "error"  # how some say that an answer has failed in the middle
# Unicode promises that these never become characters.
THOUGHTS = ReasoningTags("\ufdd0", "\ufdd1")
NO_ID = -1  # of a token that is known by its text alone
LEAST_LOGPROB = -9_999.0  # JSON has no minus infinity


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """What of an answer there is before a request."""

    text: str = ""  # of the answer itself: what its endpoint can go on with
    thought: Literal["none", "open", "whole"] = "none"

    @classmethod
    def of(cls, ids: Sequence[int]) -> "PartialAnswer":
        """Read it from the ids so far."""
        said = text_of(ids)
        if not said.startswith(THOUGHTS.begin):
            return cls(said)
        _, end, text = said.partition(THOUGHTS.end)
        return cls(text, "whole" if end else "open")


@dataclass(slots=True)
class Called:
    """A tool call as its pieces come."""

    name: str = ""
    id: str = ""
    arguments: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """How the worker reads a call, whoever made it."""
        arguments = "".join(self.arguments) or "{}"
        name = json.dumps(self.name, ensure_ascii=False)
        return f'{CALL_BEGIN}{{"name": {name}, "arguments": {arguments}}}{CALL_END}'


class Answer:
    """One answer of an endpoint as its events come."""

    def __init__(
        self,
        about_prompt_tokens: int,
        begun: PartialAnswer | None = None,
        *,
        repeats: bool | None = None,
    ) -> None:
        """`repeats`: the endpoint begins with what it was given to go on with; None: not known."""
        begun = begun or PartialAnswer()
        self._seam = Seam(begun.text, repeats=repeats)
        self._thinks = begun.thought == "open"
        self._thinks_again = self._thinks  # it has no way to go on with a thought
        self._may_think = begun.thought != "whole" and not begun.text
        self._about_prompt_tokens = about_prompt_tokens
        self._characters = Characters()
        self._calls: dict[int, Called] = {}
        self._at: dict[int, int] = {}  # which of them an index means now
        self._finish: FinishReason | None = None
        self._usage: Billed | None = None
        self._pieces = 0  # events with text: about as many tokens
        self._silent_pieces = 0  # of calls, and of what is thought later: they are paid for, too
        self.has_text = self.has_logprobs = False
        self._told = 0  # of the pieces, those that a step has told

    def take(self, event: Event) -> Step | None:
        """Take in an event; return what it adds to the answer."""
        if event is END:
            self._finish = self._finish or "stop"
            return None
        if _counts(event.get("usage")):
            self._usage = billed_of(event)
        choices = event.get("choices") or [{}]
        choice = _object(choices[0] if isinstance(choices, list) else None)
        delta = _object(choice.get("delta") or choice.get("message"))
        if reason := choice.get("finish_reason"):
            if reason == _FAILED:
                raise CoreError("its endpoint says that the answer has failed")
            self._finish = _FINISH.get(str(reason), "stop")
        calls = delta.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            self._take_call(number, call)
        scores = tuple(_scores(choice.get("logprobs")))
        self.has_logprobs = self.has_logprobs or bool(scores)
        said = self._thought(delta) + self._text(delta)
        return self._step(said, scores) if said or scores else None

    def _text(self, delta: Mapping[str, Any]) -> str:
        text = text_in(delta.get("content")) or text_in(delta.get("refusal"))
        if not text:
            return ""
        self._pieces += 1
        self.has_text = True
        return self._end_of_thought() + self._seam.join(self._characters.feed(text))

    def _thought(self, delta: Mapping[str, Any]) -> str:
        """Return what is thought before the answer; later thoughts are paid for and not shown."""
        thought = text_in(delta.get("reasoning_content")) or text_in(delta.get("reasoning"))
        if not thought:
            return ""
        if not self._may_think:
            self._silent_pieces += 1
            return ""
        self._pieces += 1
        begin = "" if self._thinks else THOUGHTS.begin
        begin = "\n\n" if self._thinks_again else begin
        self._thinks, self._thinks_again = True, False
        return begin + _whole(thought)

    def _end_of_thought(self) -> str:
        thought, self._thinks, self._may_think = self._thinks, False, False
        return THOUGHTS.end if thought else ""

    @property
    def is_over(self) -> bool:
        """Whether the endpoint has said that it is complete."""
        return self._finish is not None

    def last(self, core: str) -> Step:
        """Return the last step: what was held back, the calls, and what it all cost.

        Raises:
            CoreError: the endpoint has not said that the answer is over.
        """
        if self._finish is None:
            raise CoreError(f"core {core!r}: its endpoint's answer ends in the middle")
        text = self._end_of_thought() + self._seam.join(self._characters.end()) + self._seam.end()
        text += "".join(call.text for call in self._whole_calls)
        step = self._step(text)
        # An endpoint may send its text in smaller pieces than tokens: then these were too many.
        left = self.billed.output_tokens - self._told
        self._told += left
        return Step(step.ids, self._finish, tokens=(step.tokens or 0) + left, billed=self.billed)

    def unpaid(self) -> Step | None:
        """Return what an answer that broke off has cost, as far as is known."""
        begun = self._pieces or self._silent_pieces or self._usage
        return Step((), tokens=0, billed=self.billed) if begun else None

    @property
    def has_calls(self) -> bool:
        """Whether a tool was called so far."""
        return bool(self._whole_calls)

    @property
    def _whole_calls(self) -> list[Called]:
        """Those that have a name, and were not cut off before their arguments."""
        named = [call for call in self._calls.values() if call.name]
        cut_off = self._finish == "length"
        return [call for call in named if not cut_off or "".join(call.arguments)]

    @property
    def billed(self) -> Billed:
        """What the endpoint says that it charges; an estimate where it does not say."""
        if self._usage is not None:
            return self._usage
        return Billed(self._about_prompt_tokens, output_tokens=self._pieces + self._silent_pieces)

    def _step(self, text: str, scores: tuple[TokenLogprob, ...] = ()) -> Step:
        new, self._told = self._pieces - self._told, self._pieces
        return Step(ids_of(text), tokens=new, text_logprobs=scores)

    def _take_call(self, number: int, piece: object) -> None:
        if not isinstance(piece, dict):
            return
        function = piece.get("function")
        if not isinstance(function, dict):
            return
        self._silent_pieces += 1
        called = self._call_of(piece, number)
        called.name += text_in(function.get("name"))
        arguments = function.get("arguments")
        called.arguments.append(
            json.dumps(arguments) if isinstance(arguments, dict) else text_in(arguments)
        )

    def _call_of(self, piece: Mapping[str, Any], number: int) -> Called:
        """Return the call that a piece is of: by its index; a new id begins another one.

        Some endpoints give each call the index 0, or none.
        """
        index, identity = piece.get("index"), text_in(piece.get("id"))
        key = self._at.get(index, index) if isinstance(index, int) else None
        if key is None:
            key = number if not self._calls else len(self._calls) - (not identity)
        called = self._calls.setdefault(key, Called())
        if identity and called.id and identity != called.id:
            key = max(self._calls) + 1
            called = self._calls[key] = Called()
        if isinstance(index, int):
            self._at[index] = key
        called.id = called.id or identity
        return called


def billed_of(answer: Mapping[str, Any]) -> Billed:
    """Return what an endpoint says that a request used; what it does not say is 0."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return Billed()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Billed(
        _tokens(usage.get("prompt_tokens")),
        _tokens(cached),
        _tokens(usage.get("completion_tokens")),
    )


def _scores(found: object) -> Iterator[TokenLogprob]:
    """Yield the log-probabilities of an event's tokens."""
    entries = _object(found).get("content")
    for entry in map(_object, entries if isinstance(entries, list) else ()):
        others = entry.get("top_logprobs")
        top = tuple(
            Alternative(NO_ID, _logprob(each), _token(each))
            for each in map(_object, others if isinstance(others, list) else ())
        )
        yield TokenLogprob(NO_ID, _logprob(entry), _token(entry), top)


def _logprob(entry: Mapping[str, Any]) -> float:
    value = entry.get("logprob")
    if not isinstance(value, int | float) or not math.isfinite(value):
        return LEAST_LOGPROB
    return max(LEAST_LOGPROB, float(value))


def _token(entry: Mapping[str, Any]) -> str:
    """Return a token's text: by its bytes, where they are told."""
    found = entry.get("bytes")
    try:
        return bytes(found).decode("utf-8", "replace") if isinstance(found, list) else _said(entry)
    except (TypeError, ValueError):
        return _said(entry)


def _said(entry: Mapping[str, Any]) -> str:
    return _whole(text_in(entry.get("token")))


def _whole(text: str) -> str:
    """Return a text without halves of characters."""
    return text.encode("utf-8", "replace").decode()


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tokens(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else 0


def _counts(usage: object) -> bool:
    return isinstance(usage, dict) and bool({"prompt_tokens", "completion_tokens"} & usage.keys())


def text_in(content: object) -> str:
    """Return the text of a message's content: a text, or parts of which some are."""
    if isinstance(content, list):
        return "".join(text_in(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def content_of(event: Event) -> str:
    """Return the text of an answer, or of an event of its stream; empty where there is none."""
    choices = event.get("choices")
    first = _object(choices[0] if isinstance(choices, list) and choices else None)
    return text_in(_object(first.get("delta") or first.get("message")).get("content"))
