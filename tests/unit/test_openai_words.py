"""What programs say that were written for OpenAI's API: taken, or answered with our word."""

import inspect
from typing import Any

import pytest

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.ids import Ids
from aios_broker.contract.llm import Image, LlmChat, Message, Tool, ToolCall
from aios_broker.contract.names import Owner
from aios_sdk import Agent
from aios_sdk.openai_words import OPTIONS
from aios_sdk.requests import Options, build_syscall, chat_body, count_body

IDS = Ids(b"secret", Owner("default", "writer"))
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}


def built(messages: Any, **fields: Any) -> LlmChat:  # noqa: ANN401  of any shape
    body = build_syscall(Options("writer"), chat_body(messages, **fields), IDS).body
    assert isinstance(body, LlmChat)
    return body


def test_a_conversation_of_another_program_is_taken_as_it_is() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    talk = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is"}, picture, "this?"][:2]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "rain"}], "tool_call_id": "c1"},
        {"role": "assistant", "content": "Rain.", "tool_calls": None},
    ]
    assert built(talk).messages == (
        Message("system", "Be brief."),
        Message("user", "What is", images=(Image("image/png", "aGk="),)),
        Message("assistant", "", tool_calls=(ToolCall("c1", "weather", "{}"),)),
        Message("tool", "rain", tool_call_id="c1"),
        Message("assistant", "Rain."),
    )


@pytest.mark.parametrize(
    "given",
    [
        {
            "type": "function",
            "function": {"name": "weather", "parameters": WEATHER, "strict": True},
        },
        {"type": "function", "name": "weather", "parameters": WEATHER, "description": None},
        {"name": "weather", "parameters": WEATHER},
        Tool("weather", parameters=WEATHER),
    ],
)
def test_tools_are_taken_in_each_shape(given: Any) -> None:  # noqa: ANN401
    choice = {"type": "function", "function": {"name": "weather"}}
    body = built("Rain?", tools=[given], tool_choice=choice)
    assert body.tools == (Tool("weather", parameters=WEATHER),)
    assert body.tool_choice == "weather"
    count = build_syscall(Options("writer"), count_body("x", tools=[given]), IDS).body
    assert count.tools == body.tools  # type: ignore[union-attr]


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_another_name_for_an_option_is_answered_with_ours(option: str) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        built("Hi", **{option: "x"})
    assert caught.value.field == f"body.{option}"
    assert caught.value.remedy == OPTIONS[option]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
            "fetches nothing",
        ),
        ({"type": "input_audio", "input_audio": {}}, "'input_audio'"),
        (7, "'int'"),
    ],
)
def test_a_part_that_cannot_be_taken_is_named(part: object, said: str) -> None:
    with pytest.raises(InvalidSyscall, match=said):
        built([{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"max_token": 5}, "did you mean `max_tokens`"),
        ({"wings": 2}, "llm.chat has "),
        ({"max_tokens": 0}, "help(me.llm.chat)"),
    ],
)
def test_a_slip_is_answered_with_what_there_is(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InvalidSyscall) as caught:
        built("Hi", **fields)
    assert remedy in (caught.value.remedy or "")


def test_help_shows_the_arguments_with_their_ranges_and_defaults() -> None:
    me = Agent("writer")
    search = me.memory.search.__doc__ or ""
    assert search.startswith("me.memory.search(query, k=..., mode=...")
    assert "int from 1 to 100 (10 unless given)" in search
    assert "'hybrid' or 'keyword' or 'semantic'" in search
    chat = me.llm.chat.__doc__ or ""
    assert "str, or a list of Message" in chat
    assert "float from 0.0 to 2.0: 0 takes the likeliest token" in chat
    for tree in (me.llm, me.context, me.tool, me.memory, me.storage, me.access):
        for name in vars(type(tree)):
            if not name.startswith("_"):
                verb = getattr(tree, name)
                if inspect.ismethod(verb):  # a function: Python shows its arguments itself
                    continue
                assert verb.__doc__.startswith(f"me.{type(tree).__name__.lower()}.{name}(")
                assert "any" not in verb.__doc__.partition("Arguments:")[2].split()
