"""Items, tools and events of the Responses API, without a kernel."""

from typing import Any

import msgspec
import openai.types.responses as theirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from aios_broker.contract.errors import Cancelled, ContextTooLong, InvalidSyscall, KernelError
from aios_broker.contract.llm import Image, Message, ToolCall
from aios_broker.contract.reply import ChatResult, Chunk, Reply, failure
from aios_kernel_api.gateway.items import conversation_of, items_of, listed
from aios_kernel_api.gateway.response_events import ResponseEvents
from aios_kernel_api.gateway.response_object import PREFIX, Response, ended, output_of
from aios_kernel_api.gateway.response_request import ResponseRequest, echoed, toolset
from aios_kernel_api.gateway.response_tools import Known, Toolset, free_text, toolset_of

ID = "0" * 32
IMAGE = "input_image"
PIXEL = "data:image/png;base64,AAAA"
BEGUN = Response(PREFIX + ID, 1, "in_progress", "core", echoed(ResponseRequest(input="hi")))
NAMES = {"n__patch": Known("patch", "n", is_custom=True), "add": Known("add")}


def call(name: str = "add", arguments: str = "{}") -> ToolCall:
    return ToolCall(f"call_{name}", name, arguments)


def test_a_turn_of_the_assistant_is_one_message() -> None:
    items: list[dict[str, object]] = [
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hm"}],
        },
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {
            "type": "custom_tool_call",
            "call_id": "c2",
            "name": "patch",
            "namespace": "n",
            "input": "x",
        },
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_image", "image_url": PIXEL}],
        },
        {"role": "assistant", "content": "done"},
    ]
    assert conversation_of(items) == (
        Message("system", "be kind"),
        Message("user", "a\nb"),
        Message(
            "assistant",
            "hm",
            tool_calls=(ToolCall("c1", "add", "{}"), ToolCall("c2", "n__patch", '{"input":"x"}')),
        ),
        Message("tool", "3", tool_call_id="c1"),
        Message("tool", "", tool_call_id="c2", images=(Image("image/png", "AAAA"),)),
        Message("assistant", "done"),
    )


def test_what_is_listed_has_ids_and_parts_and_means_the_same() -> None:
    items = items_of("hello")
    [item] = listed(items, PREFIX + ID)
    assert item == {
        "type": "message",
        "id": f"msg_{ID}_i0",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "hello"}],
    }
    assert conversation_of([item]) == conversation_of(items)


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"type": "item_reference", "id": "x"}, "input[0].type"),
        ({"type": 7}, "input[0].type"),
        ({}, "input[0].type"),
        (
            {"role": "assistant", "content": [{"type": "input_image", "image_url": PIXEL}]},
            "input[0].content",
        ),
        (
            {"role": "user", "content": [{"type": IMAGE, "image_url": "http://x"}]},
            "input[0].content[0].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "f"}]},
            "input[0].content[0].type",
        ),
        ({"role": "user", "content": 7}, "input[0].content"),
    ],
)
def test_an_item_that_cannot_be_read_is_named(item: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidSyscall) as refused:
        conversation_of([item])
    assert refused.value.field == field


# Tools.


def test_tools_are_shown_and_named_back() -> None:
    tools = toolset_of(
        [
            {"type": "function", "name": "add", "parameters": None},
            {
                "type": "namespace",
                "name": "n",
                "tools": [
                    {
                        "type": "custom",
                        "name": "patch",
                        "description": "Patches.",
                        "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"},
                    }
                ],
            },
        ],
        {"type": "custom", "name": "patch", "namespace": "n"},
    )
    assert [each.name for each in tools.tools] == ["add", "n__patch"]
    assert tools.choice == "n__patch"
    assert "start: x" in tools.tools[1].description  # shown, since it is not held
    assert tools.names == NAMES


def test_only_allowed_tools_are_shown() -> None:
    add, look = (dict[str, object](type="function", name=name) for name in ("add", "look"))
    tools = toolset_of([add, look], {"type": "allowed_tools", "mode": "required", "tools": [look]})
    assert [each.name for each in tools.tools] == ["look"]
    assert tools.choice == "required"


@pytest.mark.parametrize("choice", ["sometimes", {"type": "mcp"}, {"type": "function"}])
def test_an_unknown_choice_is_refused(choice: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidSyscall, match="tool_choice"):
        toolset_of([], choice)


@given(st.text())
def test_free_text_comes_back_as_it_was(text: str) -> None:
    assert free_text(msgspec.json.encode({"input": text}).decode()) == text


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '{"input": 7}', '{"other": "x"}'])
def test_arguments_of_another_form_are_passed_on(arguments: str) -> None:
    assert free_text(arguments) == arguments


# Answers.


def result(**fields: Any) -> ChatResult:  # noqa: ANN401
    return ChatResult(**{"text": "hi", "finish_reason": "stop", "model": "m", **fields})


def test_an_answer_that_is_sent_back_is_what_was_said() -> None:
    calls = (call("add", '{"a":1}'), call("n__patch", '{"input":"x"}'))
    said = result(reasoning="hm", tool_calls=calls, finish_reason="tool_calls")
    output = output_of(said, PREFIX + ID, NAMES, one_call=False)
    assert conversation_of(output) == (Message("assistant", "hi", tool_calls=calls),)
    [*_, custom] = output
    assert (custom["name"], custom["namespace"], custom["input"]) == ("patch", "n", "x")


def test_one_call_at_a_time() -> None:
    said = result(text="", tool_calls=(call("add"), call("look")), finish_reason="tool_calls")
    assert len(output_of(said, PREFIX + ID, NAMES, one_call=True)) == 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextTooLong("long"), "failed", "context_length_exceeded"),
        (InvalidSyscall("wrong"), "failed", "invalid_prompt"),
        (KernelError("odd"), "failed", "server_error"),
        (Cancelled("ended"), "cancelled", None),
    ],
)
def test_what_fails_says_why(error: KernelError, status: str, code: str | None) -> None:
    done = ended(BEGUN, failure(ID, error), {}, one_call=False, now=2)
    assert done.status == status
    assert (done.error and done.error["code"]) == code


EVENT: TypeAdapter[theirs.ResponseStreamEvent] = TypeAdapter(theirs.ResponseStreamEvent)
pieces = st.lists(st.text(min_size=1, max_size=5), max_size=4)
some_calls = st.lists(
    st.sampled_from([call("add", '{"a":1}'), call("n__patch", '{"input":"x"}')]),
    max_size=2,
    unique=True,
)


@given(pieces, pieces, some_calls, st.sampled_from(["stop", "length"]), st.booleans())
def test_every_stream_is_whole(
    thoughts: list[str],
    texts: list[str],
    calls: list[ToolCall],
    finish: str,
    one_call: bool,  # noqa: FBT001
) -> None:
    said = result(
        text="".join(texts),
        reasoning="".join(thoughts),
        tool_calls=tuple(calls),
        finish_reason="tool_calls" if calls else finish,
    )
    events = ResponseEvents(BEGUN, NAMES, one_call=one_call)
    told = list(events.begin())
    for part, some in (("reasoning", thoughts), ("answer", texts)):
        for place, piece in enumerate(some):
            told += events.hear(Chunk(ID, len("".join(some[:place])), piece, part))  # type: ignore[arg-type]
    told += events.end(Reply(ID, said), now=2)

    for each in told:
        EVENT.validate_python(each, by_alias=True)
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    done = [each["item"] for each in told if each["type"] == "response.output_item.done"]
    assert done == list(events.response.output)
    added = [each for each in told if each["type"] == "response.output_item.added"]
    assert [each["output_index"] for each in added] == list(range(len(done)))
    assert told[-1]["response"] == events.response.shown()


def test_thoughts_that_come_late_are_in_the_answer_alone() -> None:
    events = ResponseEvents(BEGUN, NAMES, one_call=False)
    told = [*events.hear(Chunk(ID, 0, "a", "reasoning")), *events.hear(Chunk(ID, 0, "b"))]
    assert list(events.hear(Chunk(ID, 1, "c", "reasoning"))) == []
    assert len(told) == 9


def test_a_toolset_of_nothing_is_empty() -> None:
    assert toolset(ResponseRequest(input="x")) == Toolset()
