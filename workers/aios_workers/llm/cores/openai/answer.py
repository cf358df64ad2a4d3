"""One answer of an endpoint as its events come: text, calls, and what it costs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aios_broker.contract.errors import CoreError
from aios_broker.contract.money import Billed
from aios_workers.llm.core import FinishReason, Step
from aios_workers.llm.cores.openai.client import Event
from aios_workers.llm.cores.openai.prefill import Characters, Seam, ids_of
from aios_workers.llm.tools import CALL_BEGIN, CALL_END

_FINISH: dict[str, FinishReason] = {"stop": "stop", "tool_calls": "stop", "length": "length"}
_FINISH |= {"function_call": "stop", "content_filter": "stop", "eos": "stop"}


@dataclass(slots=True)
class Called:
    """A tool call as its pieces come."""

    name: str = ""
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
        self._finish: FinishReason | None = None
        self._usage: Billed | None = None
        self._pieces = 0  # events with text: about as many tokens
        self._told = 0  # of these, those that a step has told

    def take(self, event: Event) -> Step | None:
        """Take in an event; return what it adds to the answer."""
        if isinstance(event.get("usage"), dict):
            self._usage = billed_of(event)
        choices = event.get("choices") or [{}]
        choice = _object(choices[0] if isinstance(choices, list) else None)
        delta = _object(choice.get("delta") or choice.get("message"))
        if reason := choice.get("finish_reason"):
            self._finish = _FINISH.get(str(reason), "stop")
        calls = delta.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            self._take_call(number, call)
        text = delta.get("content")
        if not isinstance(text, str) or not text:
            return None
        self._pieces += 1
        return self._step(self._seam.join(self._characters.feed(text)))

    def last(self, core: str) -> Step:
        """Return the last step: what was held back, the calls, and what it all cost.

        Raises:
            CoreError: the endpoint has not said that the answer is over.
        """
        if self._finish is None:
            raise CoreError(f"core {core!r}: its endpoint's answer ends in the middle")
        text = self._seam.join(self._characters.end()) + self._seam.end()
        text += "".join(call.text for call in self._calls.values())
        step = self._step(text)
        left = max(0, self.billed.output_tokens - self._told)
        self._told += left
        return Step(step.ids, self._finish, tokens=(step.tokens or 0) + left, billed=self.billed)

    def unpaid(self) -> Step | None:
        """Return what an answer that broke off has cost, as far as is known."""
        return Step((), tokens=0, billed=self.billed) if self._pieces or self._usage else None

    @property
    def has_calls(self) -> bool:
        """Whether a tool was called so far."""
        return bool(self._calls)

    @property
    def billed(self) -> Billed:
        """What the endpoint says that it charges; an estimate where it does not say."""
        if self._usage is not None:
            return self._usage
        return Billed(self._about_prompt_tokens, output_tokens=self._pieces)

    def _step(self, text: str) -> Step:
        new, self._told = self._pieces - self._told, self._pieces
        return Step(ids_of(text), tokens=new)

    def _take_call(self, number: int, piece: object) -> None:
        if not isinstance(piece, dict):
            return
        index = piece.get("index")
        called = self._calls.setdefault(index if isinstance(index, int) else number, Called())
        function = piece.get("function")
        if isinstance(function, dict):
            called.name += str(function.get("name") or "")
            called.arguments.append(str(function.get("arguments") or ""))


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


def content_of(answer: Event) -> str:
    """Return the text of an answer that is no stream; empty where there is none."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    message = first.get("message") if isinstance(first, dict) else {}
    text = message.get("content") if isinstance(message, dict) else ""
    return text if isinstance(text, str) else ""
