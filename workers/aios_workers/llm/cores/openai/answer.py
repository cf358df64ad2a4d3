"""One answer of an endpoint as its events come: text, calls, and what it costs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aios_broker.contract.errors import CoreError
from aios_broker.contract.money import Billed
from aios_workers.llm.core import FinishReason, Step
from aios_workers.llm.cores.openai.client import END, Event
from aios_workers.llm.cores.openai.prefill import Characters, Seam, ids_of
from aios_workers.llm.tools import CALL_BEGIN, CALL_END

_FINISH: dict[str, FinishReason] = {"stop": "stop", "tool_calls": "stop", "length": "length"}
_FINISH |= {"function_call": "stop", "content_filter": "stop", "eos": "stop"}
_FINISH |= {"model_length": "length", "max_tokens": "length", "MAX_TOKENS": "length"}
_FAILED = "error"  # how some say that an answer has failed in the middle


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

    def __init__(self, seam: Seam, about_prompt_tokens: int) -> None:
        self._seam = seam
        self._about_prompt_tokens = about_prompt_tokens
        self._characters = Characters()
        self._calls: dict[int, Called] = {}
        self._at: dict[int, int] = {}  # which of them an index means now
        self._finish: FinishReason | None = None
        self._usage: Billed | None = None
        self._pieces = 0  # events with text: about as many tokens
        self._silent_pieces = 0  # of what is thought and of calls: they are paid for, too
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
        text = text_in(delta.get("content")) or text_in(delta.get("refusal"))
        if not text:
            thought = text_in(delta.get("reasoning_content")) or text_in(delta.get("reasoning"))
            self._silent_pieces += bool(thought)
            return None
        self._pieces += 1
        return self._step(self._seam.join(self._characters.feed(text)))

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
        text = self._seam.join(self._characters.end()) + self._seam.end()
        text += "".join(call.text for call in self._whole_calls)
        step = self._step(text)
        left = max(0, self.billed.output_tokens - self._told)
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

    def _step(self, text: str) -> Step:
        new, self._told = self._pieces - self._told, self._pieces
        return Step(ids_of(text), tokens=new)

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


def content_of(answer: Event) -> str:
    """Return the text of an answer that is no stream; empty where there is none."""
    choices = answer.get("choices")
    first = _object(choices[0] if isinstance(choices, list) and choices else None)
    return text_in(_object(first.get("message")).get("content"))
