"""The official Anthropic client on the kernel: messages, tools, streams, counts, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from tests.api_scene import ApiScene
from tests.waiting import wait_until

MESSAGES = "/v1/messages"
HELLO: Any = [{"role": "user", "content": "hello"}]
ADD: Any = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(api: ApiScene) -> Iterator[Anthropic]:
    with Anthropic(base_url=api.url, api_key=api.agent, max_retries=0) as made:
        yield made


def test_a_message_is_answered(client: Anthropic) -> None:
    raw = client.messages.with_raw_response.create(
        model="claude-opus", max_tokens=7, messages=HELLO, system="be kind"
    )
    message = raw.parse()

    [block] = message.content
    assert block.type == "text"
    assert block.text
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.output_tokens == 7
    assert message.usage.input_tokens > 0
    assert message.id == f"msg_{raw.headers['x-aios-syscall']}"
    assert message.model != "claude-opus"  # the core that answered
    assert "x-aios-not-kept" not in raw.headers


def test_a_bearer_token_is_as_good_as_a_key(api: ApiScene) -> None:
    with Anthropic(base_url=api.url, auth_token=api.agent, api_key=None, max_retries=0) as client:
        assert client.messages.create(model="x", max_tokens=3, messages=HELLO).content


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    options: Any = {
        "model": "x",
        "max_tokens": 60,
        "messages": HELLO,
        "extra_body": {"temperature": 0},
    }
    [whole] = client.messages.create(**options).content
    stop = whole.text[20:23]

    message = client.messages.create(**options, stop_sequences=["never seen", stop])

    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert whole.text.startswith(message.content[0].text)


def test_a_stream_is_the_same_answer_in_pieces(client: Anthropic) -> None:
    options: Any = {
        "model": "x",
        "max_tokens": 40,
        "messages": HELLO,
        "extra_body": {"temperature": 0},
    }
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()

    assert message.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 40
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == (
        whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    )
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


async def test_the_asynchronous_client_streams(api: ApiScene) -> None:
    async with (
        AsyncAnthropic(base_url=api.url, api_key=api.agent) as client,
        client.messages.stream(model="x", max_tokens=20, messages=HELLO) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
    assert text


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_is_called_and_answered(client: Anthropic, choice: Any, *, streams: bool) -> None:  # noqa: ANN401
    options: Any = {"model": "x", "max_tokens": 300, "tools": [ADD], "tool_choice": choice}
    if streams:
        with client.messages.stream(messages=HELLO, **options) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(messages=HELLO, **options)

    [call] = message.content
    assert call.type == "tool_use"
    assert set(call.input) == {"a", "b"}
    assert message.stop_reason == "tool_use"
    turns: Any = [
        *HELLO,
        {"role": "assistant", "content": message.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": "3", "is_error": True},
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    told = client.messages.create(
        model="x", max_tokens=5, messages=turns, tools=[ADD], tool_choice={"type": "none"}
    )
    assert told.content[0].type == "text"


class Point(BaseModel, extra="forbid"):
    x: int
    y: int


def test_an_answer_is_held_to_its_schema(client: Anthropic) -> None:
    message = client.messages.create(
        model="x",
        max_tokens=300,
        messages=HELLO,
        output_config={"format": {"type": "json_schema", "schema": Point.model_json_schema()}},
    )
    assert message.content[0].type == "text"
    Point.model_validate_json(message.content[0].text)


def test_prompts_are_counted_as_they_are_used(client: Anthropic) -> None:
    prompt: Any = {"model": "x", "messages": HELLO, "system": "be kind", "tools": [ADD]}
    counted = client.messages.count_tokens(**prompt)
    used = client.messages.create(**prompt, max_tokens=5).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


def test_what_is_not_kept_is_told(client: Anthropic) -> None:
    options: Any = {
        "stop_sequences": ["\n"],
        "tools": [{**ADD, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 1_024},
        "metadata": {"user_id": "me"},
        "extra_body": {"unheard_of": 1},
    }
    raw = client.messages.with_raw_response.create(
        model="x", max_tokens=2_000, messages=HELLO, **options
    )
    told = raw.headers["x-aios-not-kept"].split(", ")
    assert sorted(told) == ["stop_sequences", "thinking.budget_tokens", "unheard_of"]


def test_sessions_of_a_coding_agent_are_a_program_tree(api: ApiScene) -> None:
    session = {"x-claude-code-session-id": "s1"}
    child = {**session, "x-claude-code-agent-id": "a1"}
    with api.client(api.agent) as http:
        body = {"model": "x", "max_tokens": 2, "messages": HELLO}
        programs = [
            http.post(MESSAGES, json=body, headers=each).headers["x-aios-program"]
            for each in (session, child)
        ]
    assert programs == ["s1", "s1/a1"]


def test_a_client_that_leaves_a_stream_takes_its_syscall_along(api: ApiScene) -> None:
    body = {"model": "x", "max_tokens": 3_000, "messages": HELLO, "stream": True}
    with api.client(api.agent) as http:
        with http.stream("POST", MESSAGES, json=body) as stream:
            syscall = stream.headers["x-aios-syscall"]
            next(line for line in stream.iter_lines() if "text_delta" in line)
        wait_until(lambda: http.get(f"/v1/syscalls/{syscall}").json().get("state") == "cancelled")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "url", "url": "http://x"}}
                        ],
                    }
                ]
            },
            "messages[0].content[0].source",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"temperature": 1.5}, "temperature"),
        (
            {
                "system": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AA=="},
                    }
                ]
            },
            "system",
        ),
    ],
)
def test_bad_bodies_are_told_in_anthropics_words(
    api: ApiScene, body: dict[str, object], field: str
) -> None:
    whole = {"model": "x", "max_tokens": 3, "messages": HELLO, **body}
    with api.client(api.agent) as http:
        answer = http.post(MESSAGES, json=whole)
    error = answer.json()
    assert (answer.status_code, error["type"]) == (400, "error")
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(f"{field}: ")


def test_errors_have_the_classes_of_the_client(api: ApiScene, client: Anthropic) -> None:
    with (
        Anthropic(base_url=api.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="x", max_tokens=3, messages=HELLO)
    long: Any = [{"role": "user", "content": "x" * 500_000}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(model="x", max_tokens=3, messages=long)


def test_broken_json_and_unknown_routes_are_errors_of_their_kind(api: ApiScene) -> None:
    with api.client(api.agent) as http:
        broken = http.post(MESSAGES, content=b"{")
        deep = http.post(MESSAGES, content=json.dumps({"messages": [[[[]]]]}))
        method = http.get(MESSAGES)
    assert (broken.status_code, broken.json()["type"]) == (400, "error")
    assert deep.status_code == 400
    assert method.status_code == 405
