"""From a conversation to the ids of its prompt: one way for every core that has a template.

Templates differ in what they know. What one does not know is said in what it does: a system message
as the beginning of the next user message, the result of a tool as a user's message; and a template
that refuses the order of the turns gets them joined until user and assistant alternate.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.chat.calls import CallFormat, format_of, is_too_deep
from aios_workers.llm.chat.markers import Encode, Markers
from aios_workers.llm.chat.reasoning import ReasoningTags, tags_of
from aios_workers.llm.chat.template import ChatTemplate, TemplateRefusal

# For a model whose file has no template: what completion models go on with.
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_ASKS_FOR_TOOLS = re.compile(r"{[%{][^}]*\btools\b")
_SHORT_IDS = re.compile(r"\|\s*length\s*!=\s*9")  # Mistral's: nine letters and digits
_CUT = "\uf8ff"  # ends what is to be continued; no stand-in of `markers`
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Speech:
    """What the text of a template says of how its model speaks."""

    call_format: CallFormat | None
    reasoning: ReasoningTags | None

    @classmethod
    def of(cls, template: str) -> "Speech":
        """Read it from a template."""
        shows_tools = _ASKS_FOR_TOOLS.search(template) is not None
        return cls(format_of(template) if shows_tools else None, tags_of(template))

    @property
    def marks(self) -> tuple[str, ...]:
        """What of the model's own tokens has to be seen in its answers."""
        calls = self.call_format.markers if self.call_format is not None else ()
        return (*calls, *(self.reasoning.markers if self.reasoning is not None else ()))

    def thoughts(self, encode: Encode) -> ReasoningTags | None:
        """Return the tags of its reasoning, with the ids that close it."""
        if self.reasoning is None:
            return None
        return replace(self.reasoning, closing_ids=tuple(encode(self.reasoning.closing)))

    def is_mark(self, token: str) -> bool:
        """Whether a special token is a part of a mark: then it is text in an answer."""
        return any(token in mark for mark in self.marks)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a template takes, found out by trying."""

    knows_system: bool
    knows_results: bool
    wants_text_arguments: bool


class PromptWriter:
    """Writes prompts with one template, for one vocabulary. Not for two threads at once."""

    def __init__(
        self, template: ChatTemplate, markers: Markers, encode: Encode, plain: Encode
    ) -> None:
        """Try the template out.

        Args:
            template: The model's.
            markers: Its special tokens.
            encode: Gives the ids of a text whose special tokens are meant.
            plain: Gives those of a text in which nothing is special.

        Raises:
            InvalidConfig: The template does not come to an end.
        """
        self.template = template
        self._markers = markers
        self._encode = encode
        self._plain = plain
        self._has_short_ids = _SHORT_IDS.search(template.source) is not None
        self._known = _known_to(template)

    def ids(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, continues: bool = False
    ) -> tuple[int, ...]:
        """Return the ids of a conversation.

        Up to the start of the answer; or, with `continues`, to the end of the last message, which
        the model is to go on with.

        Raises:
            InvalidSyscall: The template refuses these messages.
        """
        values, hidden = self._markers.hide(
            self._values(messages), [tool_values(tool) for tool in tools]
        )
        try:
            text = self._text(*values, continues=continues)
        except TemplateRefusal as error:
            raise InvalidSyscall(
                f"the model's chat template refuses these messages: {error}",
                field="body.messages",
                remedy="use roles in the order that the model knows",
            ) from error
        return self._markers.encode(text, hidden, self._encode, self._plain)

    @property
    def turn_ends(self) -> frozenset[int]:
        """The special token by which the template ends an answer; empty: it has none.

        A model was trained to write it there, whatever its configuration names.
        """
        turns = [_USER, {"role": "assistant", "content": _PROBE}]
        try:
            text = self.template.render(turns, answers=False)
        except TemplateRefusal:
            return frozenset()
        _, found, rest = text.rpartition(_PROBE)
        end = self._markers.first_of(rest.lstrip()) if found else None
        if end is None or Speech.of(self.template.source).is_mark(end[0]):
            return frozenset()
        return frozenset({end[1]})

    def close(self) -> None:
        """End what renders."""
        self.template.close()

    def _values(self, messages: Sequence[Message]) -> list[Values]:
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        values = [message_values(message, names) for message in messages]
        for each in values:
            for call in each.get("tool_calls", ()):
                function = call["function"]
                if self._known.wants_text_arguments and not isinstance(function["arguments"], str):
                    function["arguments"] = msgspec.json.encode(function["arguments"]).decode()
                call["id"] = self._call_id(call["id"])
            if "tool_call_id" in each:
                each["tool_call_id"] = self._call_id(each["tool_call_id"])
        return values

    def _call_id(self, call_id: str) -> str:
        if not self._has_short_ids or (len(call_id) == 9 and call_id.isalnum()):
            return call_id
        return hashlib.blake2b(call_id.encode("utf-8", "replace"), digest_size=5).hexdigest()[:9]

    def _text(self, messages: list[Values], tools: list[Values], *, continues: bool) -> str:
        known = _in_known_roles(messages, self._known)
        try:
            return self._rendered(known, tools, continues=continues)
        except TemplateRefusal:
            joined = _joined(_in_known_roles(messages, _NOTHING_KNOWN))
            if joined == known or any("tool_calls" in each for each in messages):
                raise
            try:
                return self._rendered(joined, tools, continues=continues)
            except TemplateRefusal:
                pass  # its words about the conversation as it is say more
            raise

    def _rendered(self, messages: list[Values], tools: list[Values], *, continues: bool) -> str:
        if not continues:
            return self.template.render(messages, tools)
        last = messages[-1]
        cut = [*messages[:-1], {**last, "content": f"{last['content']}{_CUT} "}]
        text = self.template.render(cut, tools, answers=False)
        at = text.rfind(_CUT)
        if at < 0:
            raise TemplateRefusal("it does not show the message that is to be continued")
        if text[at + 1 : at + 2] == " ":
            return text[:at]
        # A template that trims what it is given would have trimmed the message, too.
        content = last["content"]
        return text[:at].removesuffix(content[len(content.rstrip()) :])


def message_values(message: Message, names: Mapping[str, str]) -> Values:
    """Return a message as templates expect it: arguments of calls as values, not as text."""
    values: Values = {"role": message.role, "content": message.content}
    if message.tool_calls:
        values["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        values["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            values["name"] = names[message.tool_call_id]
    return values


def tool_values(tool: Tool) -> Values:
    """Return a tool as templates expect it."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _arguments(text: str) -> Any:  # noqa: ANN401  any JSON value
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text
    return text if is_too_deep(value) else value


# What a template knows.

_NOTHING_KNOWN = _Known(knows_system=False, knows_results=False, wants_text_arguments=False)
_PROBE = "Aq7Zk"
_USER = {"role": "user", "content": "Hello"}


def _known_to(template: ChatTemplate) -> _Known:
    def shows(messages: Sequence[Values]) -> bool:
        try:
            return _PROBE in template.render(messages)
        except TemplateRefusal:
            return False

    def called(arguments: object) -> list[Values]:
        function = {"name": "look", "arguments": arguments}
        call = {"id": "abcdefghi", "type": "function", "function": function}
        return [_USER, {"role": "assistant", "content": "", "tool_calls": [call]}]

    said = {"role": "assistant", "content": "Yes?"}
    result = {"role": "tool", "content": _PROBE, "tool_call_id": "abcdefghi", "name": "look"}
    return _Known(
        knows_system=shows([{"role": "system", "content": _PROBE}, _USER]),
        knows_results=shows([*called({}), result])
        or shows([*called("{}"), result])
        or shows([_USER, said, result]),
        wants_text_arguments=not shows(called({_PROBE: 1})) and shows(called(f'{{"{_PROBE}": 1}}')),
    )


def _in_known_roles(messages: Sequence[Values], knows: _Known) -> list[Values]:
    """Return the messages with roles that the template knows."""
    turns: list[Values] = []
    system: list[str] = []
    for each in messages:
        if each["role"] == "system" and not knows.knows_system:
            system.append(each["content"])
            continue
        turn = dict(each)
        if each["role"] == "tool" and not knows.knows_results:
            turn = {"role": "user", "content": each["content"]}
        if system and turn["role"] == "user":
            turn["content"] = "\n\n".join((*system, turn["content"]))
            system = []
        turns.append(turn)
    return [*turns, {"role": "user", "content": "\n\n".join(system)}] if system else turns


def _joined(turns: Sequence[Values]) -> list[Values]:
    """Return turns in which user and assistant alternate, a user first."""
    joined: list[Values] = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = {
                **joined[-1],
                "content": f"{joined[-1]['content']}\n\n{turn['content']}",
            }
        else:
            joined.append(turn)
    if joined and joined[0]["role"] == "assistant":
        joined.insert(0, {"role": "user", "content": ""})
    return joined
