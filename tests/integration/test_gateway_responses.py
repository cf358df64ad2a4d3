"""The official OpenAI client on the kernel: responses, kept, gone on with, streamed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.api_scene import ApiScene
from tests.response_user import RESPONSES, client_of, made

ADD: Any = {
    "type": "function",
    "name": "add",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
NULLABLE = [
    "background",
    "conversation",
    "include",
    "instructions",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "reasoning",
    "service_tier",
    "store",
    "temperature",
    "text",
    "top_p",
    "truncation",
    "user",
]
PATCH: Any = {
    "type": "custom",
    "name": "patch",
    "description": "Changes a file.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a+/"},
}


@pytest.fixture
def client(api: ApiScene) -> Iterator[OpenAI]:
    with client_of(api, api.token()) as made:
        yield made


def texts(client: OpenAI, response: Response) -> list[str]:
    """Return the texts of what a response was asked, in order."""
    found = client.responses.input_items.list(response.id, order="asc")
    return [part.text for item in found for part in item.content]  # type: ignore[union-attr]


def test_a_response_is_made_and_kept(client: OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model="gpt-4o", input="hello", max_output_tokens=7, metadata={"program": "trip"}
    )
    response = raw.parse()

    assert response.output_text
    assert (response.status, response.incomplete_details.reason) == (  # type: ignore[union-attr]
        "incomplete",
        "max_output_tokens",
    )
    assert response.usage is not None
    assert response.usage.output_tokens == 7
    assert response.id == f"resp_{raw.headers['x-aios-syscall']}"
    assert raw.headers["x-aios-program"] == "trip"
    assert client.responses.retrieve(response.id) == response
    assert texts(client, response) == ["hello"]


def test_what_is_not_to_be_kept_is_not(client: OpenAI) -> None:
    response = made(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_explicit_nulls_are_as_nothing(client: OpenAI) -> None:
    nulls = dict.fromkeys(NULLABLE)
    raw = client.responses.with_raw_response.create(
        model="x", input="hi", max_output_tokens=3, extra_body=nulls
    )
    assert raw.parse().output_text
    assert "x-aios-not-kept" not in raw.headers


def test_a_conversation_goes_on(client: OpenAI) -> None:
    first = made(client, instructions="be kind")
    second = made(client, input="more", instructions="be kind", previous_response_id=first.id)
    third = made(client, input="and", instructions="be kind", previous_response_id=second.id)

    whole = made(
        client,
        input=[
            {"role": "user", "content": "hello"},
            *first.output,
            {"role": "user", "content": "more"},
            *second.output,
            {"role": "user", "content": "and"},
        ],
        instructions="be kind",
    )
    assert third.usage is not None
    assert whole.usage is not None
    assert third.usage.input_tokens == whole.usage.input_tokens
    assert third.previous_response_id == second.id
    assert texts(client, third) == ["and"]


def test_a_conversation_forks_and_instructions_change(client: OpenAI) -> None:
    first = made(client)
    second = made(client, input="more", previous_response_id=first.id)
    again = [
        made(client, input="else", previous_response_id=second.id, instructions=words)
        for words in ("be kind", None, None)
    ]

    used = [each.usage.input_tokens for each in again if each.usage is not None]
    assert used[1] == used[2]  # each sees what was before, and nothing of the other
    assert used[0] > used[1]  # the instructions of one answer are not those of the next


def test_a_repeated_request_is_one_response(client: OpenAI) -> None:
    first = made(client)
    second = made(client, input="more", previous_response_id=first.id)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    options = {"input": "and", "previous_response_id": second.id, "extra_headers": key}

    assert made(client, **options).id == made(client, **options).id
    with pytest.raises(openai.ConflictError):
        made(client, **{**options, "input": "else"})


def test_another_agents_response_is_unknown(api: ApiScene, client: OpenAI) -> None:
    response = made(client)
    for token in (api.colleague, api.foreigner):
        with client_of(api, token) as other:
            for call in (
                other.responses.retrieve,
                other.responses.delete,
                other.responses.cancel,
                other.responses.input_items.list,
            ):
                with pytest.raises(openai.NotFoundError):
                    call(response.id)
            with pytest.raises(openai.NotFoundError) as refused:
                made(other, previous_response_id=response.id)
            assert refused.value.param == "previous_response_id"
    assert client.responses.retrieve(response.id).id == response.id


def test_a_deleted_response_is_gone(client: OpenAI) -> None:
    response = made(client)
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(response.id)


def test_the_events_of_a_stream_come_in_their_order(client: OpenAI) -> None:
    events = list(
        client.responses.create(model="x", input="hello", max_output_tokens=40, stream=True)
    )

    kinds = [each.type for each in events]
    deltas = [each.delta for each in events if each.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [each.sequence_number for each in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == "".join(deltas)
    assert client.responses.retrieve(last.response.id) == last.response


async def test_the_asynchronous_client_streams(api: ApiScene) -> None:
    async with (
        AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.agent) as client,
        client.responses.stream(model="x", input="hello", max_output_tokens=20) as stream,
    ):
        seen = [event.type async for event in stream]
    assert "response.output_text.delta" in seen


class Point(BaseModel):
    x: int
    y: int


def test_an_answer_is_parsed_by_its_schema(client: OpenAI) -> None:
    response = client.responses.parse(model="x", input="a point", text_format=Point)
    assert isinstance(response.output_parsed, Point)
    with client.responses.stream(model="x", input="a point", text_format=Point) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Point)


@pytest.mark.parametrize("follows", [False, True])
def test_a_tool_is_called_and_answered(client: OpenAI, *, follows: bool) -> None:
    asked = made(client, tools=[ADD], tool_choice="required", max_output_tokens=300)
    [call] = asked.output
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"a", "b"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}

    before = [] if follows else [{"role": "user", "content": "hello"}, call]
    told = made(
        client,
        input=[*before, output],
        previous_response_id=asked.id if follows else None,
        tools=[ADD, PATCH],
        tool_choice="none",
    )

    assert told.output_text
    if follows:
        assert made(client, input="and", previous_response_id=told.id).output_text


def test_a_call_is_streamed(client: OpenAI) -> None:
    with client.responses.stream(
        model="x", input="hello", tools=[ADD], tool_choice="required", max_output_tokens=300
    ) as stream:
        kinds = {event.type for event in stream}
        [call] = stream.get_final_response().output
    assert call.type == "function_call"
    assert {
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
    } <= kinds


def test_probabilities_are_told(client: OpenAI) -> None:
    response = made(client, include=["message.output_text.logprobs"], top_logprobs=2)
    [message] = response.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert [len(each.top_logprobs) for each in part.logprobs or ()] == [2] * 7


def test_prompts_are_counted(client: OpenAI) -> None:
    first = made(client, instructions="be kind")
    second = made(client, input="more", previous_response_id=first.id, tools=[ADD])
    counted = client.responses.input_tokens.count(
        model="x", input="more", previous_response_id=first.id, tools=[ADD]
    )
    assert second.usage is not None
    assert counted.input_tokens == second.usage.input_tokens


def test_the_items_of_an_input_come_page_by_page(client: OpenAI) -> None:
    turns = [{"role": "user", "content": f"turn {number}"} for number in range(5)]
    response = made(client, input=turns)

    page = client.responses.input_items.list(response.id, limit=2)
    newest = [each.content[0].text for each in page.data]  # type: ignore[union-attr, index]
    assert newest == ["turn 4", "turn 3"]
    assert page.has_more
    assert len(list(page)) == 5


# Bad input.


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "king", "content": "hi"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]},
            "tools[0].tools[0].type",
        ),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"store": False, "background": True}, "store"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"program": "two words"}}, "metadata.program"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"instructions": [{"role": "user", "content": "x"}]}, "instructions"),
    ],
)
def test_bad_bodies_are_told_in_openais_words(
    api: ApiScene, body: dict[str, object], param: str
) -> None:
    with api.client(api.agent) as http:
        answer = http.post(RESPONSES, json={"model": "x", "input": "hi", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (
        400,
        "invalid_request_error",
        param,
    )


@pytest.mark.parametrize("response_id", ["resp_1", "resp_" + "0" * 32, "bytes", "resp_\u2603"])
def test_odd_ids_are_unknown(api: ApiScene, response_id: str) -> None:
    with api.client(api.agent) as http:
        assert http.get(f"{RESPONSES}/{response_id}").status_code == 404


def test_what_is_not_kept_is_told(client: OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model="x",
        input="hi",
        max_output_tokens=3,
        reasoning={"effort": "high", "summary": "auto"},
        service_tier="flex",
        text={"verbosity": "low"},
        extra_body={"unheard_of": 1},
    )
    told = raw.headers["x-aios-not-kept"].split(", ")
    assert sorted(told) == [
        "reasoning.effort",
        "reasoning.summary",
        "service_tier",
        "text.verbosity",
        "unheard_of",
    ]


def test_a_prompt_that_is_too_long_has_its_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        made(client, input="x" * 500_000)
    assert refused.value.code == "context_length_exceeded"


def test_the_oldest_turns_are_summarised_away_where_that_is_asked_for(client: OpenAI) -> None:
    turns = [{"role": "user", "content": "x" * 1_500} for _ in range(4)]
    assert made(client, input=turns, truncation="auto").output_text


def test_an_error_of_a_stream_has_its_status(api: ApiScene) -> None:
    body = {"model": "x", "input": "x" * 500_000, "stream": True}
    with api.client(api.agent) as http:
        answer = http.post(RESPONSES, json=body)
    assert answer.status_code == httpx.codes.BAD_REQUEST
