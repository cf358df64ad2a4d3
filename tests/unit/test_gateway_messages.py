"""Requests, answers and events of the Messages API, without a kernel."""

import json
from typing import Any

import anthropic.types as theirs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from aios_broker.contract.errors import (
    AccessDenied,
    ContextTooLong,
    InvalidSyscall,
    KernelError,
    NotFound,
    QuotaExceeded,
    RedisUnavailable,
)
from aios_broker.contract.llm import Image, JsonFormat, Message, Tool, ToolCall
from aios_broker.contract.reply import ChatResult, Chunk, Reply, Usage, failure
from aios_kernel_api.gateway.message_reply import (
    PING,
    MessageEvents,
    error_of,
    input_of,
    message_of,
    usage_of,
)
from aios_kernel_api.gateway.message_request import (
    BILLING_LINE,
    MessageRequest,
    chat_of,
    count_of,
    messages_of,
)

ID = "0" * 32
CALL = ToolCall("c1", "look", '{"at":1}')
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def asked(**fields: Any) -> MessageRequest:  # noqa: ANN401
    whole = {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], **fields}
    return msgspec.convert(whole, MessageRequest)


def turns(*messages: object, **fields: Any) -> tuple[Message, ...]:  # noqa: ANN401
    return messages_of(asked(messages=messages, **fields))


def user(*blocks: object) -> dict[str, object]:
    return {"role": "user", "content": list(blocks)}


def test_a_conversation_with_tools_is_read() -> None:
    said = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 1}},
        ],
    }
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [PNG], "is_error": True}
    told = turns(said, user({"type": "text", "text": "and?"}, result), system="be kind")
    assert told == (
        Message("system", "be kind"),
        Message("assistant", "I look.", tool_calls=(CALL,)),
        Message("tool", "Error: ", tool_call_id="c1", images=(Image("image/png", "AAAA"),)),
        Message("user", "and?"),
    )


def test_documents_and_search_results_are_text() -> None:
    document = {
        "type": "document",
        "title": "Notes",
        "source": {"type": "text", "media_type": "text/plain", "data": "text"},
    }
    found = {
        "type": "search_result",
        "title": "Page",
        "source": "http://x",
        "content": [{"type": "text", "text": "words"}],
    }
    [message] = turns(user(document, found, PNG))
    assert message.content == "Notes\ntext\nPage\nhttp://x\nwords"
    assert len(message.images) == 1


def test_a_line_about_a_bill_is_no_part_of_the_prompt() -> None:
    blocks = [{"type": "text", "text": text} for text in (f"{BILLING_LINE} cch=1", "a", "b")]
    first, *_ = turns(user({"type": "text", "text": "hi"}), system=blocks)
    assert first == Message("system", "a\nb")


def test_a_turn_may_be_of_the_system() -> None:
    assert turns({"role": "system", "content": "now be brief"}) == (
        Message("system", "now be brief"),
    )


def test_options_are_kept() -> None:
    schema = {"type": "object"}
    body, left_out = chat_of(
        asked(
            stop_sequences=["x"],
            top_k=3,
            top_p=0.5,
            temperature=0.2,
            stream=True,
            max_tokens=10**7,
            output_config={"format": {"type": "json_schema", "schema": schema}},
        ),
        "core",
    )
    assert (body.top_k, body.top_p, body.temperature, body.stream) == (3, 0.5, 0.2, True)
    assert body.format == JsonFormat(schema)
    assert (body.core, body.max_tokens, body.overflow) == ("core", 131_072, "shorten")
    assert (body.stop, left_out) == ((), ("stop_sequences",))


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [(None, "auto"), ("auto", "auto"), ("any", "required"), ("none", "none"), ("tool", "look")],
)
def test_choices_of_tools(choice: str | None, wanted: str) -> None:
    tools = [{"name": "look", "input_schema": {"type": "object"}, "description": None}]
    picked = None if choice is None else {"type": choice, "name": "look"}
    body, _ = chat_of(asked(tools=tools, tool_choice=picked), None)
    assert body.tool_choice == wanted
    assert body.tools == (Tool("look", "", {"type": "object"}),)
    assert count_of(asked(tools=tools), None).tools == body.tools


@pytest.mark.parametrize(
    "block",
    [
        {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
        {"type": "image", "source": {"type": "file", "file_id": "f"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": ""}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}},
        {"type": "document", "source": {"type": "content", "content": [PNG]}},
        {"type": "container_upload"},
    ],
)
def test_what_no_core_reads_is_refused(block: object) -> None:
    with pytest.raises(InvalidSyscall) as refused:
        turns(user(block))
    assert (refused.value.field or "").startswith("messages[0].content[0]")


# Answers.


def result(**fields: Any) -> ChatResult:  # noqa: ANN401
    return ChatResult(**{"text": "hi", "finish_reason": "stop", "model": "m", **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, ("end_turn", None)),
        ({"stopped_by": "END"}, ("stop_sequence", "END")),
        ({"finish_reason": "length"}, ("max_tokens", None)),
        ({"finish_reason": "tool_calls", "tool_calls": (CALL,)}, ("tool_use", None)),
    ],
)
def test_why_an_answer_ended(fields: dict[str, Any], reason: tuple[str, str | None]) -> None:
    said = result(**fields)
    message = message_of(Reply(ID, said), said, one_call=False, thoughts=True)
    theirs.Message.model_validate(message)
    assert (message["stop_reason"], message["stop_sequence"]) == reason


def test_tokens_that_were_read_before_are_counted_apart() -> None:
    used = usage_of(Usage(prompt_tokens=10, output_tokens=2, cached_tokens=7))
    assert (used["input_tokens"], used["cache_read_input_tokens"]) == (3, 7)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [("", {}), ("{", {"value": "{"}), ("[1]", {"value": [1]}), ('{"a":1}', {"a": 1})],
)
def test_the_input_of_a_tool_is_an_object(arguments: str, value: object) -> None:
    assert input_of(arguments) == value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidSyscall("x"), "invalid_request_error"),
        (AccessDenied("x"), "permission_error"),
        (NotFound("x"), "not_found_error"),
        (QuotaExceeded("x"), "rate_limit_error"),
        (RedisUnavailable("x"), "overloaded_error"),
        (KernelError("x"), "api_error"),
    ],
)
def test_errors_have_anthropics_types(error: KernelError, kind: str) -> None:
    assert error_of(error)["error"]["type"] == kind  # type: ignore[index]


def test_a_prompt_that_is_too_long_says_so_in_the_words_that_clients_look_for() -> None:
    error = error_of(ContextTooLong("9 of 8", field="body.messages"))["error"]
    assert error["message"].startswith("prompt is too long")  # type: ignore[index]


EVENT: TypeAdapter[theirs.RawMessageStreamEvent] = TypeAdapter(theirs.RawMessageStreamEvent)
pieces = st.lists(st.text(min_size=1, max_size=5), max_size=4)


def read(data: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream; the name of each is its type."""
    found = []
    for block in data.decode().strip().split("\n\n"):
        name, _, text = block.partition("\ndata: ")
        event = json.loads(text)
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


@given(pieces, pieces, st.booleans(), st.booleans())
def test_every_stream_is_whole(
    thoughts: list[str],
    texts: list[str],
    calls: bool,  # noqa: FBT001
    shown: bool,  # noqa: FBT001
) -> None:
    said = result(
        text="".join(texts), reasoning="".join(thoughts), tool_calls=(CALL,) if calls else ()
    )
    reply = Reply(ID, said)
    events = MessageEvents(ID, "core", thoughts=shown)
    chunks = [Chunk(ID, 0, each, "reasoning") for each in thoughts]
    chunks += [Chunk(ID, 0, each) for each in texts]
    told = read(events.told(()) + (events.told(chunks) if chunks else b""))
    assert told.pop(1) == {"type": "ping"}
    told += read(events.told([reply]))

    for each in told:
        EVENT.validate_python(each)
    whole = message_of(reply, said, one_call=False, thoughts=shown)
    blocks: list[dict[str, Any]] = []
    for each in told:
        if each["type"] == "content_block_start":
            assert each["index"] == len(blocks)
            blocks.append({"input_json": "", **each["content_block"]})
        elif each["type"] == "content_block_delta":
            delta = each["delta"]
            if delta["type"] == "input_json_delta":
                blocks[-1]["input_json"] += delta["partial_json"]
            elif delta["type"] != "signature_delta":
                field = delta["type"].removesuffix("_delta")
                blocks[-1][field] += delta[field]
    for block in blocks:
        text = block.pop("input_json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text)
    for each in whole["content"]:  # type: ignore[attr-defined]
        each.pop("citations", None)
    assert blocks == whole["content"]


def test_a_stream_that_fails_ends_with_an_error() -> None:
    events = MessageEvents(ID, "core")
    begun, error = read(events.told([failure(ID, RedisUnavailable("redis://secret"))]))
    assert begun["type"] == "message_start"
    assert (error["type"], error["error"]["type"]) == ("error", "overloaded_error")
    assert "secret" not in json.dumps(error)


def test_a_queued_stream_is_pinged() -> None:
    events = MessageEvents(ID, "core")
    assert events.told(()).endswith(PING)
    assert events.told(()) == PING
