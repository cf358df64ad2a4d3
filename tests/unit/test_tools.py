"""Tools: the form of a call, how tools and calls are shown in words, how calls are read."""

import itertools
import json
import re
from dataclasses import replace

import pytest

from aios_broker.contract.llm import LlmChat, Message, Tool, ToolCall
from aios_workers.llm.chat.calls import HERMES, unmarked_pattern
from aios_workers.llm.core import Capabilities, CoreInfo
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore
from aios_workers.llm.tools import (
    CALL_BEGIN,
    CALL_END,
    Toolbox,
    call_schema,
    constraint_of,
    in_words,
    prompt_ids,
    read_calls,
    toolbox_of,
)

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ADD, NOW = Tool("add", "Adds one.", NUMBER), Tool("now")
USER = Message("user", "Hello")
BOTH = Toolbox((ADD, NOW), forced=False)
FORCED = replace(BOTH, forced=True)
ID = "ab" * 16


def body(choice: str) -> LlmChat:
    return LlmChat((USER,), tools=(ADD, NOW), tool_choice=choice)


def call(arguments: str = '{"n": 1}', name: str = "add") -> str:
    return f'{{"name": "{name}", "arguments": {arguments}}}'


@pytest.mark.parametrize(
    ("choice", "names", "forced"),
    [
        ("auto", ["add", "now"], False),
        ("required", ["add", "now"], True),
        ("now", ["now"], True),
    ],
)
def test_the_choice_says_which_tools_and_whether_they_must(
    choice: str, names: list[str], *, forced: bool
) -> None:
    toolbox = toolbox_of(body(choice))

    assert toolbox is not None
    assert [each.name for each in toolbox.tools] == names
    assert toolbox.forced is forced


def test_without_tools_or_with_none_there_is_nothing_to_call() -> None:
    assert toolbox_of(LlmChat((USER,))) is None
    assert toolbox_of(body("none")) is None


# The form.


def test_a_forced_call_is_json_of_one_of_the_tools() -> None:
    form = constraint_of(FORCED)

    assert form.kind == "json"
    assert json.loads(form.source) == {
        "anyOf": [
            {
                "type": "object",
                "properties": {"name": {"const": "add"}, "arguments": NUMBER},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {
                    "name": {"const": "now"},
                    "arguments": {
                        "type": "object",
                        "properties": {},
                        "additionalProperties": False,
                    },
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            },
        ]
    }


def test_a_schema_that_refers_to_itself_still_does_inside_the_form() -> None:
    tree = {
        "type": "object",
        "properties": {
            "left": {"$ref": "#"},
            "kind": {"$ref": "#/$defs/kind"},
            "$ref": {"type": "string"},  # a property of that name
            "data": {"const": {"$ref": "#/untouched"}},
        },
        "$defs": {"kind": {"enum": ["a", "b"]}},
    }
    schema = call_schema((Tool("plant", parameters=tree), NOW))

    root = schema["$defs"]["tool0"]
    assert schema["anyOf"][0]["properties"]["arguments"] == {"$ref": "#/$defs/tool0"}
    assert root["properties"]["left"] == {"$ref": "#/$defs/tool0"}
    assert root["properties"]["kind"] == {"$ref": "#/$defs/tool0/$defs/kind"}
    assert root["properties"]["$ref"] == {"type": "string"}
    assert root["properties"]["data"] == {"const": {"$ref": "#/untouched"}}
    assert list(schema["$defs"]) == ["tool0"]


def test_the_pattern_of_a_message_is_all_texts_without_the_marker() -> None:
    short = re.compile(unmarked_pattern("<ab>"))
    for length in range(8):
        for letters in itertools.product("<ab>", repeat=length):
            text = "".join(letters)
            assert bool(short.fullmatch(text)) is ("<ab>" not in text), text

    whole = re.compile(unmarked_pattern(CALL_BEGIN).replace(r"\/", "/"))
    for text in ("", "<", "a <tool> b", "line\nline <", "<tool_cal", "<<tool_call"):
        assert whole.fullmatch(text)
    for text in (CALL_BEGIN, f"a\n{CALL_BEGIN}", f"<{CALL_BEGIN}", f"{CALL_BEGIN}{{}}"):
        assert not whole.fullmatch(text)


# In words.


def test_tools_are_shown_in_the_system_message_or_in_one_of_their_own() -> None:
    [first, second] = in_words([USER], BOTH)
    assert (first.role, second) == ("system", USER)
    assert '{"name": "add", "description": "Adds one.", "arguments": ' in first.content
    assert CALL_BEGIN in first.content

    [first, second] = in_words([Message("system", "Be kind."), USER], FORCED)
    assert first.content.startswith("Be kind.\n\n# Tools")
    assert CALL_BEGIN not in first.content
    assert second == USER


def test_calls_and_their_results_are_told_in_words() -> None:
    conversation = [
        USER,
        Message("assistant", "Let me see. ", (ToolCall("c1", "add", '{"n":1}'),)),
        Message("tool", "2", tool_call_id="c1"),
        Message("tool", "nobody asked", tool_call_id="c9"),
    ]

    shown = in_words(conversation, None)

    assert shown[0] == USER
    assert shown[1] == Message(
        "assistant", f'Let me see. {CALL_BEGIN}{{"name": "add", "arguments": {{"n":1}}}}{CALL_END}'
    )
    assert shown[2] == Message("tool", '{"name": "add", "content": "2"}')
    assert shown[3].content == "nobody asked"


class Templated(SimulatedCore):
    """A core that shows tools itself."""

    @property
    def info(self) -> CoreInfo:
        return replace(super().info, capabilities=Capabilities(call_format=HERMES))

    def render(self, messages: object, tools: object = ()) -> tuple[int, ...]:
        self.seen = [messages, tools]
        return (1,)


def test_a_core_with_a_template_gets_the_tools_themselves() -> None:
    core = Templated()
    conversation = [USER, Message("assistant", "", (ToolCall("c1", "add", "{}"),))]

    assert prompt_ids(core, conversation, BOTH) == (1,)
    assert core.seen == [conversation, (ADD, NOW)]
    prompt_ids(core, conversation, None)
    assert core.seen == [conversation, ()]


# Reading.


MARKED = f'{{"n": "{CALL_BEGIN} and {CALL_END}"}}'
DEEP, DEEPER = (f'{{"n": {"[" * levels}{"]" * levels}}}' for levels in (200, 20_000))


@pytest.mark.parametrize(
    ("text", "toolbox", "message", "calls"),
    [
        ("Hello", BOTH, "Hello", []),
        (f"{CALL_BEGIN}{call()}{CALL_END}", BOTH, "", [("add", '{"n": 1}')]),
        (
            f"So: {CALL_BEGIN}\n{call()}\n{CALL_END} and "
            f"{CALL_BEGIN}{call('{}', 'now')}{CALL_END}.",
            BOTH,
            "So: ",
            [("add", '{"n": 1}'), ("now", "{}")],
        ),
        (f"{CALL_BEGIN}{call()}", BOTH, f"{CALL_BEGIN}{call()}", []),  # cut off
        (f"{CALL_BEGIN}{call()}{CALL_END}{CALL_BEGIN}{{", BOTH, "", [("add", '{"n": 1}')]),
        (
            f"{CALL_BEGIN}{call(name='sub')}{CALL_END}",
            BOTH,
            f"{CALL_BEGIN}{call(name='sub')}{CALL_END}",
            [],
        ),  # no such tool
        (f"{CALL_BEGIN}{call('3')}{CALL_END}", BOTH, f"{CALL_BEGIN}{call('3')}{CALL_END}", []),
        # Marks in a string are text.
        (
            f"So: {CALL_BEGIN}{call(MARKED)}{CALL_END}{CALL_BEGIN}{call()}{CALL_END}",
            BOTH,
            "So: ",
            [("add", MARKED), ("add", '{"n": 1}')],
        ),
        # Too deep to be read.
        (f"{CALL_BEGIN}{call(DEEP)}{CALL_END}", BOTH, f"{CALL_BEGIN}{call(DEEP)}{CALL_END}", []),
        (call(DEEP), FORCED, call(DEEP), []),
        (
            f"{CALL_BEGIN}{call(DEEPER)}{CALL_END}",
            BOTH,
            f"{CALL_BEGIN}{call(DEEPER)}{CALL_END}",
            [],
        ),
        (call(DEEPER), FORCED, call(DEEPER), []),
        (call(), FORCED, "", [("add", '{"n": 1}')]),
        (call()[:-1], FORCED, call()[:-1], []),
    ],
)
def test_what_is_read_from_an_answer(
    text: str, toolbox: Toolbox, message: str, calls: list[tuple[str, str]]
) -> None:
    found, read = read_calls(text, toolbox, syscall_id=ID, choice=0)

    assert found == message
    assert [(each.name, each.arguments) for each in read] == calls


def test_a_call_has_the_same_id_whenever_it_is_read_and_one_of_its_own() -> None:
    text = f"{CALL_BEGIN}{call()}{CALL_END}" * 2

    def ids(syscall_id: str, choice: int) -> list[str]:
        return [each.id for each in read_calls(text, BOTH, syscall_id=syscall_id, choice=choice)[1]]

    assert ids(ID, 0) == ids(ID, 0)
    everything = [*ids(ID, 0), *ids(ID, 1), *ids("cd" * 16, 0)]
    assert len(set(everything)) == 6
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", each) for each in everything)
