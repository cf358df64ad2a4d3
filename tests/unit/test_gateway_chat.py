"""Chat completions, translated: what becomes of a request, and how a result is told."""

import json
from typing import Any

import msgspec
import pytest

from aios_broker.contract.errors import ContextTooLong, InvalidSyscall, QuotaExceeded
from aios_broker.contract.llm import (
    MAX_ANSWER_TOKENS,
    Image,
    JsonFormat,
    LlmChat,
    Message,
    Tool,
    ToolCall,
)
from aios_broker.contract.reply import (
    Alternative,
    ChatResult,
    Choice,
    Chunk,
    Reply,
    TokenLogprob,
    Usage,
    failure,
)
from aios_kernel_api.events import KEEP_ALIVE
from aios_kernel_api.gateway.chat_answer import ChatPieces, completion_of
from aios_kernel_api.gateway.chat_request import CHAT_FIELDS, ChatAsked, ChatRequest, chat_asked
from aios_kernel_api.gateway.completions import CompletionRequest, bodies_of
from aios_kernel_api.gateway.embeddings import packed
from aios_kernel_api.gateway.fields import not_kept
from aios_kernel_api.gateway.openai_errors import openai_body

HELLO = {"role": "user", "content": "hello"}
ID = "ab" * 16
PIXEL = "data:image/png;base64,iVBORw0KGgo="
SUM = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}},
}


def asked(**fields: object) -> ChatAsked:
    request = {"model": "m", "messages": [HELLO], **fields}
    assert not_kept(CHAT_FIELDS, request) == ()
    return chat_asked(msgspec.convert(request, ChatRequest, str_keys=True), "small", 777)


def body(**fields: object) -> LlmChat:
    return asked(**fields).body


def refusal(**fields: object) -> InvalidSyscall:
    with pytest.raises(InvalidSyscall) as caught:
        asked(**fields)
    return caught.value


def test_what_is_left_out_is_as_the_api_has_it() -> None:
    found = body()
    assert found == LlmChat(
        messages=(Message("user", "hello"),),
        core="small",
        temperature=1.0,
        max_tokens=777,
        overflow="shorten",
    )


def test_options_are_kept() -> None:
    found = body(
        max_tokens=5,
        max_completion_tokens=6,
        temperature=0,
        top_p=0.5,
        top_k=3,
        seed=-1,
        stop="x",
        n=2,
        logit_bias={"7": -3},
        frequency_penalty=1,
        presence_penalty=-1,
        logprobs=True,
        top_logprobs=4,
        stream=True,
    )
    assert (found.max_tokens, found.temperature, found.top_p, found.top_k) == (6, 0, 0.5, 3)
    assert (found.seed, found.stop, found.n, found.logit_bias) == (2**63 - 1, ("x",), 2, {7: -3.0})
    assert (found.frequency_penalty, found.presence_penalty) == (1, -1)
    assert (found.logprobs, found.stream) == (4, True)
    assert body(logprobs=True).logprobs == 0


def test_what_is_beyond_the_contract_is_what_is_nearest_to_it() -> None:
    found = body(max_tokens=10_000_000, top_p=0)

    assert found.max_tokens == MAX_ANSWER_TOKENS
    assert 0 < found.top_p < 1e-6
    assert body(top_p=1).top_p == 1


def test_roles_and_parts_become_messages() -> None:
    turns = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                {"type": "text", "text": "is it?"},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3"}]},
        {"role": "assistant", "function_call": {"name": "add", "arguments": ""}},
        {"role": "function", "name": "add", "content": "4"},
    ]
    assert body(messages=turns).messages == (
        Message("system", "be brief"),
        Message("user", "what\nis it?", images=(Image("image/png", "iVBORw0KGgo="),)),
        Message("assistant", "", (ToolCall("c1", "add", "{}"),)),
        Message("tool", "3", tool_call_id="c1"),
        Message("assistant", "", (ToolCall("add", "add", "{}"),)),
        Message("tool", "4", tool_call_id="add"),
    )


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("https://example.com/a.png", "fetches none"),
        ("data:image/svg+xml;base64,AAAA", "fetches none"),
        ("data:image/png;base64,A", "in base64"),
    ],
)
def test_pictures_that_are_not_read_are_refused(url: str, remedy: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    found = refusal(messages=[{"role": "user", "content": parts}])
    assert found.field == "messages[0].content[0].image_url.url"
    assert remedy in (found.remedy or "")


def test_tools_and_their_choice() -> None:
    found = body(tools=[SUM], tool_choice="required")
    assert found.tools == (Tool("add", "adds", {"type": "object"}),)
    assert found.tool_choice == "required"
    one = {"type": "function", "function": {"name": "add"}}
    assert body(tools=[SUM], tool_choice=one).tool_choice == "add"
    assert asked(tools=[SUM], parallel_tool_calls=False).one_call
    assert not asked(tools=[SUM], parallel_tool_calls=True).one_call


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [SUM], "tool_choice": "add"}, "tool_choice"),
        ({"tools": [SUM], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(fields: dict[str, object], field: str) -> None:
    assert refusal(**fields).field == field


def test_forms_of_answers() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert body(response_format=wanted).format == JsonFormat(schema)
    assert body(response_format={"type": "json_object"}).format == JsonFormat()
    assert body(response_format={"type": "text"}).format is None


def test_stop_strings_that_would_cut_what_is_whole_are_told() -> None:
    for fields in ({"tools": [SUM]}, {"response_format": {"type": "json_object"}}):
        found = asked(stop=["x"], **fields)
        assert (found.body.stop, found.not_kept) == ((), ("stop",))
    found = asked(stop=["x"], tools=[SUM], tool_choice="none")
    assert (found.body.stop, found.not_kept) == (("x",), ())


def result(**fields: Any) -> ChatResult:  # noqa: ANN401
    values: dict[str, Any] = {"text": "hi", "finish_reason": "stop", "model": "m", "core": "small"}
    return ChatResult(**{**values, "usage": Usage(5, 2, 3), **fields})


def whole(found: ChatResult, *, one_call: bool = False) -> Any:  # noqa: ANN401
    answer = completion_of(Reply(ID, found), found, 9, one_call=one_call)
    return msgspec.json.decode(msgspec.json.encode(answer))


def test_a_whole_answer() -> None:
    answer = whole(result())
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert (answer["id"], answer["object"]) == (f"chatcmpl-{ID}", "chat.completion")
    assert (answer["model"], answer["created"]) == ("small", 9)
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


CALLS = (ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "add", "{}"))


def test_calls_and_thoughts_of_an_answer() -> None:
    found = result(text="", finish_reason="tool_calls", tool_calls=CALLS, reasoning="hm")
    message = whole(found)["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"][0] == {
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1}'},
    }
    assert len(message["tool_calls"]) == 2
    assert len(whole(found, one_call=True)["choices"][0]["message"]["tool_calls"]) == 1


def test_log_probabilities() -> None:
    scores = (TokenLogprob(1, -0.5, "é", (Alternative(2, -0.7, "b"),)),)
    found = whole(result(logprobs=scores))["choices"][0]["logprobs"]["content"]
    assert found == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "b", "logprob": -0.7, "bytes": [98]}],
        }
    ]


def read_events(data: bytes) -> list[Any]:
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    return [each if each == "[DONE]" else json.loads(each) for each in events]


def pieces(*told: Chunk | Reply, **options: Any) -> list[Any]:  # noqa: ANN401
    stream = ChatPieces(ID, 9, "expected", **options)
    return read_events(stream.told(told))


def test_a_stream_begins_with_the_role_and_ends_with_the_reason() -> None:
    found = pieces(Chunk(ID, 0, "he"), Chunk(ID, 2, "y"), Reply(ID, result(text="hey")))
    assert found.pop() == "[DONE]"
    deltas = [each["choices"][0]["delta"] for each in found]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "he"}, {"content": "y"}, {}]
    reasons = [each["choices"][0]["finish_reason"] for each in found]
    assert reasons == [None, None, None, "stop"]
    assert [each["model"] for each in found] == ["expected"] * 3 + ["small"]
    assert all("usage" not in each for each in found)


def test_usage_comes_alone_and_only_where_it_was_asked_for() -> None:
    found = pieces(Reply(ID, result()), with_usage=True)
    assert found[-2]["choices"] == []
    assert found[-2]["usage"]["total_tokens"] == 7


def test_calls_come_in_pieces() -> None:
    long = ToolCall("c1", "add", json.dumps({"a": "x" * 5000}))
    found = pieces(
        Reply(ID, result(text="", finish_reason="tool_calls", tool_calls=(long, CALLS[1])))
    )
    calls = [
        call for each in found[:-1] for call in each["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert calls[0] == {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": ""},
    }
    first = [call["function"]["arguments"] for call in calls if call["index"] == 0]
    assert len(first) > 2
    assert "".join(first) == long.arguments
    assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_other_answers_come_at_the_end_of_a_stream() -> None:
    choices = (Choice("a", "stop"), Choice("b", "length"))
    found = pieces(Chunk(ID, 0, "a"), Reply(ID, result(text="a", choices=choices)))
    second = [each["choices"][0] for each in found[:-1] if each["choices"][0]["index"] == 1]
    assert [each["delta"] for each in second] == [
        {"role": "assistant", "content": ""},
        {"content": "b"},
        {},
    ]
    assert second[-1]["finish_reason"] == "length"


def test_a_stream_that_fails_says_so_and_is_not_done() -> None:
    error = QuotaExceeded("too much", field="quota.x", remedy="wait")
    found = pieces(Chunk(ID, 0, "a"), failure(ID, error))
    assert found[-1]["error"]["code"] == "rate_limit_exceeded"
    assert found[-1]["error"]["message"] == "too much: wait"


def test_a_quiet_stream_is_kept_alive() -> None:
    assert ChatPieces(ID, 9, "m").told(()) == KEEP_ALIVE


def test_errors_name_the_field_as_the_request_has_it() -> None:
    found = openai_body(ContextTooLong("9 of 8", field="body.messages", remedy="cut")).error
    assert (found.code, found.param) == ("context_length_exceeded", "messages")
    assert openai_body(InvalidSyscall("x", field="body.core")).error.param == "model"
    assert openai_body(InvalidSyscall("x", field="body.texts[3]")).error.param == "input[3]"
    assert openai_body(InvalidSyscall("x")).error.type == "invalid_request_error"


def test_prompts_of_plain_completions() -> None:
    request = CompletionRequest(prompt=["a", "b"], stop=["\n"])
    assert [each.messages[0].content for each in bodies_of(request, None)] == ["a", "b"]


def test_packed_vectors_are_float32() -> None:
    assert packed((1.0, -2.0)) == "AACAPwAAAMA="
