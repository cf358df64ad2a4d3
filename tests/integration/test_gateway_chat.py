"""The official OpenAI client on the kernel: chats, streams, tools, forms, embeddings, models."""

import asyncio
import base64
import json
import struct
import uuid
from collections.abc import Iterator
from typing import Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.api_scene import ApiScene
from tests.waiting import wait_until

HELLO = {"role": "user", "content": "hello"}
CHAT = "/v1/chat/completions"


def client_of(api: ApiScene, token: str | None = None, **options: object) -> OpenAI:
    return OpenAI(
        base_url=f"{api.url}/v1",
        api_key=token or api.agent,
        max_retries=0,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def client(api: ApiScene) -> Iterator[OpenAI]:
    with client_of(api) as made:
        yield made


def test_a_chat_is_answered_by_the_core_that_it_names(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=[{"role": "user", "content": "hello"}], max_tokens=7, seed=3
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.model == client.models.list().data[0].id
    assert answer.id == f"chatcmpl-{raw.headers['x-aios-syscall']}"
    assert raw.headers["x-aios-program"] == "main"
    assert raw.headers["x-request-id"]
    assert "x-aios-not-kept" not in raw.headers


def test_a_stream_is_the_same_answer_in_pieces(client: OpenAI) -> None:
    options = {"model": "x", "messages": [HELLO], "max_tokens": 40, "seed": 5}
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    events = list(
        client.chat.completions.create(
            **options,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[call-overload]
        )
    )
    text = "".join(each.choices[0].delta.content or "" for each in events if each.choices)
    assert text == whole.choices[0].message.content
    assert events[0].choices[0].delta.role == "assistant"
    assert [each.choices[0].finish_reason for each in events if each.choices][-1] == "length"
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage


async def test_the_asynchronous_client_streams(api: ApiScene) -> None:
    async with (
        AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.agent) as client,
        client.chat.completions.stream(
            model="x", messages=[{"role": "user", "content": "hello"}], max_tokens=20, logprobs=True
        ) as stream,
    ):
        events = [event async for event in stream]
    assert {"chunk", "content.delta"} <= {event.type for event in events}
    [*_, answer] = [event.snapshot for event in events if event.type == "chunk"]
    assert answer.choices[0].message.content
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content or ()) == 20


class Point(BaseModel):
    x: Literal[1, 2, 3]
    y: bool


def test_an_answer_is_parsed_by_its_schema(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="x", messages=[{"role": "user", "content": "a point"}], response_format=Point
    )
    assert isinstance(answer.choices[0].message.parsed, Point)


def test_a_stream_is_held_to_its_schema(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="x", messages=[{"role": "user", "content": "a point"}], response_format=Point
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Point)


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"type": "boolean"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_tool_is_called_and_answered(client: OpenAI, choice: object) -> None:
    options = {"model": "x", "tools": [ADD], "max_tokens": 200}
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        messages=[HELLO], tool_choice=choice, **options
    )
    message = answer.choices[0].message
    [call] = message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert set(json.loads(call.function.arguments)) == {"a", "b"}
    turns = [HELLO, message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    told = client.chat.completions.create(messages=turns, tool_choice="none", **options)  # type: ignore[call-overload]
    assert told.choices[0].message.content


def test_a_call_is_streamed(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="x",
        messages=[{"role": "user", "content": "hello"}],
        tools=[ADD],  # type: ignore[list-item]
        tool_choice="required",
        max_tokens=200,
    ) as stream:
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    [call] = calls
    assert set(json.loads(call.function.arguments)) == {"a", "b"}


def test_tools_and_a_form_stand_together(client: OpenAI) -> None:
    """What agents with tools and an output type send with every request."""
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["calm", "cross"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    for seed in range(4):
        answer = client.chat.completions.create(  # type: ignore[call-overload]
            model="x",
            messages=[HELLO],
            tools=[ADD],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "mood", "schema": schema},
            },
            max_tokens=200,
            seed=seed,
        )
        message = answer.choices[0].message
        for call in message.tool_calls or ():
            assert set(json.loads(call.function.arguments)) == {"a", "b"}
        if not message.tool_calls:
            assert json.loads(message.content)["mood"] in ("calm", "cross")


def test_several_answers_and_their_probabilities(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="x",
        messages=[{"role": "user", "content": "hello"}],
        n=3,
        max_tokens=6,
        logprobs=True,
        top_logprobs=2,
    )
    assert len({choice.message.content for choice in answer.choices}) > 1
    logprobs = answer.choices[2].logprobs
    assert logprobs is not None
    assert [len(each.top_logprobs) for each in logprobs.content or ()] == [2] * 6


def test_parts_are_read_and_what_is_not_kept_is_told(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="x",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        max_tokens=3,
        reasoning_effort="high",
        user="me",
        store=True,
        service_tier="flex",
        extra_body={"unheard_of": 1},
    )
    told = raw.headers["x-aios-not-kept"].split(", ")
    assert sorted(told) == ["reasoning_effort", "service_tier", "store", "unheard_of"]


def test_plain_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="x", prompt=["once", "twice"], max_tokens=5, n=2, logprobs=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or ()) == 5
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    events = list(client.completions.create(model="x", prompt="once", max_tokens=5, stream=True))
    assert "".join(each.choices[0].text for each in events)
    assert events[-1].choices[0].finish_reason == "length"


def test_embeddings_as_numbers_and_as_bytes(client: OpenAI, api: ApiScene) -> None:
    made = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert [each.index for each in made.data] == [0, 1]
    with api.client(api.agent) as plain:
        answer = plain.post(
            "/v1/embeddings", json={"model": "x", "input": "one", "encoding_format": "base64"}
        )
        packed = base64.b64decode(answer.json()["data"][0]["embedding"])
        again = plain.post("/v1/embeddings", json={"input": "one"}).json()["data"][0]["embedding"]
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == pytest.approx(again, abs=1e-6)
    assert again == pytest.approx(made.data[0].embedding, abs=1e-6)


def test_models_are_the_cores(client: OpenAI) -> None:
    [model, *_] = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/unheard-of")
    assert caught.value.code == "not_found"


def test_labels_become_the_program_and_the_tree(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        body = {"messages": [HELLO], "max_tokens": 1}
        session = {"x-claude-code-session-id": "s1", "x-claude-code-agent-id": "a1"}
        answer = client.post(CHAT, json=body, headers=session)
        assert answer.headers["x-aios-program"] == "s1/a1"
        labelled = {**body, "metadata": {"program": "paper"}}
        assert client.post(CHAT, json=labelled).headers["x-aios-program"] == "paper"


def test_an_urgency_beyond_the_agents_right_is_capped_and_told(api: ApiScene) -> None:
    with api.client(api.agent) as client:
        body = {"messages": [HELLO], "max_tokens": 1, "priority": -5}
        answer = client.post(CHAT, json=body)
        assert (answer.status_code, answer.headers["x-aios-not-kept"]) == (200, "priority")
        header = client.post(CHAT, json={**body, "priority": 0}, headers={"x-aios-nice": "-5"})
        assert header.headers["x-aios-not-kept"] == "x-aios-nice"


def test_one_key_is_one_syscall(api: ApiScene) -> None:
    key = {"idempotency-key": uuid.uuid4().hex}
    body = {"messages": [HELLO], "max_tokens": 5}
    with api.client(api.agent) as client:
        first, again = (client.post(CHAT, json=body, headers=key) for _ in range(2))
        assert first.json()["choices"] == again.json()["choices"]
        assert first.headers["x-aios-syscall"] == again.headers["x-aios-syscall"]
        other = client.post(CHAT, json={**body, "max_tokens": 6}, headers=key)
        assert other.status_code == 409
        assert other.json()["error"]["code"] == "key_conflict"


def running(api: ApiScene, client: httpx.Client, syscall: str) -> str:
    state: str = client.get(f"/v1/syscalls/{syscall}").json()["state"]
    return state


def test_a_client_that_leaves_a_stream_takes_its_syscall_along(api: ApiScene) -> None:
    body = {"messages": [HELLO], "max_tokens": 60_000, "stream": True}
    with api.client(api.agent) as client:
        with client.stream("POST", CHAT, json=body) as answer:
            syscall = answer.headers["x-aios-syscall"]
            next(answer.iter_lines())
        wait_until(lambda: running(api, client, syscall) == "cancelled")


async def test_a_client_that_leaves_before_the_answer_takes_its_syscall_along(
    api: ApiScene,
) -> None:
    token = api.token()
    body = {"messages": [HELLO], "max_tokens": 60_000}
    key = {"idempotency-key": "the-one"}
    async with api.async_client(token) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await client.post(CHAT, json=body, headers=key)
    with api.client(token) as plain:

        def is_over() -> bool:
            answer = plain.post(CHAT, json=body, headers=key, timeout=5.0)
            return answer.status_code == 409 and answer.json()["error"]["code"] == "cancelled"

        wait_until(is_over)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_syscall", "body"),
        (b"[]", 400, "invalid_syscall", "body"),
        (b'{"messages": []}', 400, "invalid_syscall", "messages"),
        (
            b'{"messages": [{"role": "user", "content": 7}]}',
            400,
            "invalid_syscall",
            "messages[0].content",
        ),
        (
            b'{"messages": [{"role": "king", "content": ""}]}',
            400,
            "invalid_syscall",
            "messages[0].role",
        ),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": 9}',
            400,
            "invalid_syscall",
            "temperature",
        ),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 99}', 400, "invalid_syscall", "n"),
        (
            b'{"messages": [{"role": "user", "content": "x\\u0000"}]}',
            400,
            "invalid_syscall",
            "messages.0.content",
        ),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "audio": {}}',
            400,
            "invalid_syscall",
            "audio",
        ),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "functions": []}',
            400,
            "invalid_syscall",
            "functions",
        ),
    ],
)
def test_bad_bodies_are_told_in_openais_words(
    api: ApiScene, body: bytes, status: int, code: str, param: str
) -> None:
    with api.client(api.agent) as client:
        answer = client.post(CHAT, content=body)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert error["type"] == "invalid_request_error"


def test_an_option_that_the_core_refuses_is_an_error_of_a_stream_too(api: ApiScene) -> None:
    body = {"messages": [HELLO], "stream": True, "logit_bias": {"99999999": 1}}
    with api.client(api.agent) as client:
        answer = client.post(CHAT, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "logit_bias"


def test_what_outlives_its_deadline_is_told(api: ApiScene) -> None:
    late = {"x-aios-deadline-s": "0.5"}
    with api.client(api.agent) as client:
        answer = client.post(CHAT, json={"messages": [HELLO], "max_tokens": 60_000}, headers=late)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_strangers_are_told_in_openais_words(api: ApiScene) -> None:
    for token in ("aios_nobody", api.expired, api.revoked):
        with client_of(api, token) as client, pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(
                model="x", messages=[{"role": "user", "content": "hello"}]
            )
        assert caught.value.code == "invalid_api_key"
    with client_of(api, api.operator) as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}])
