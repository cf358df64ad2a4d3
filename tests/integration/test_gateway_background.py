"""Responses that go on without their client, and several that follow one at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import redis
from openai import AsyncOpenAI, OpenAI

from tests.api_scene import ApiScene, ServedApi, bearer, serving
from tests.response_user import RESPONSES, client_of, made
from tests.waiting import wait_until, wait_until_async


@pytest.fixture
def client(api: ApiScene) -> Iterator[OpenAI]:
    with client_of(api, api.token()) as made:
        yield made


def test_a_response_in_the_background_is_asked_for(client: OpenAI) -> None:
    begun = made(client, background=True, max_output_tokens=50)
    assert begun.status == "queued"

    wait_until(lambda: client.responses.retrieve(begun.id).status == "incomplete")

    done = client.responses.retrieve(begun.id)
    assert done.usage is not None
    assert done.usage.output_tokens == 50
    assert made(client, input="more", previous_response_id=done.id).output_text


def test_a_response_in_the_background_is_cancelled(client: OpenAI) -> None:
    begun = made(client, background=True, max_output_tokens=3_000)
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert client.responses.retrieve(begun.id).status == "cancelled"
    assert client.responses.cancel(begun.id).status == "cancelled"  # once more changes nothing
    with pytest.raises(openai.BadRequestError):
        made(client, previous_response_id=begun.id)


def test_one_that_is_waited_for_is_not_cancelled(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(made(client).id)


def at(served: ServedApi, token: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, headers=bearer(token), timeout=30)


def state_of(api: ApiScene, token: str, response_id: str) -> str:
    with api.client(token) as http:
        shown = http.get(f"/v1/syscalls/{response_id.removeprefix('resp_')}").json()
    return str(shown.get("state"))


def test_a_deleted_response_in_the_background_ends(api: ApiScene) -> None:
    token = api.token()
    with client_of(api, token) as client:
        begun = made(client, background=True, max_output_tokens=3_000)
        client.responses.delete(begun.id)
        wait_until(lambda: state_of(api, token, begun.id) == "cancelled")
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(begun.id)


@pytest.mark.parametrize("background", [False, True])
def test_a_client_that_leaves_a_stream(api: ApiScene, *, background: bool) -> None:
    token = api.token()
    body = {
        "model": "x",
        "input": "hello",
        "stream": True,
        "max_output_tokens": 1_500,
        "background": background,
    }
    with api.client(token) as http, http.stream("POST", RESPONSES, json=body) as stream:
        syscall = stream.headers["x-aios-syscall"]
        next(line for line in stream.iter_lines() if "output_text.delta" in line)

    with client_of(api, token) as client:
        if background:
            asked = f"resp_{syscall}"
            wait_until(lambda: client.responses.retrieve(asked).status == "incomplete")
            assert client.responses.retrieve(asked).usage is not None
        else:
            wait_until(lambda: state_of(api, token, syscall) == "cancelled")


async def test_an_answer_outlives_the_process_that_took_it_and_its_reply(api: ApiScene) -> None:
    token = api.token()
    body = {"model": "x", "input": "hello", "background": True, "max_output_tokens": 100}
    async with serving(api.redis_url, api.database_url) as first, at(first, token) as http:
        begun = [(await http.post(RESPONSES, json=body)).json()["id"] for _ in range(2)]
    await wait_until_async(lambda: all(state_of(api, token, each) == "finished" for each in begun))
    with redis.Redis.from_url(api.redis_url) as client:  # its reply has expired
        client.delete(f"rq:job:{begun[1].removeprefix('resp_')}")

    async with serving(api.redis_url, api.database_url) as second, at(second, token) as http:
        told = [(await http.get(f"{RESPONSES}/{each}")).json() for each in begun]
        more = {**body, "background": False, "max_output_tokens": 5, "input": "more"}
        after = [
            (await http.post(RESPONSES, json={**more, "previous_response_id": each})).json()
            for each in begun
        ]

    assert [each["status"] for each in told] == ["incomplete", "completed"]
    assert all(each["output"][0]["content"][0]["text"] for each in told)
    assert [each["usage"] is None for each in told] == [False, True]
    assert len({each["usage"]["input_tokens"] for each in after}) <= 2
    assert all(each["usage"]["input_tokens"] > 100 for each in after)


async def test_many_go_on_with_one_response_at_once(api: ApiScene) -> None:
    options: Any = {"model": "x", "max_output_tokens": 5}
    async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.token()) as client:
        first = await client.responses.create(input="hello", **options)
        second = await client.responses.create(
            input="more", previous_response_id=first.id, **options
        )
        branches = await asyncio.gather(
            *(
                client.responses.create(
                    input=f"branch {number}", previous_response_id=second.id, **options
                )
                for number in range(6)
            )
        )
        leaves = await asyncio.gather(
            *(
                client.responses.input_tokens.count(
                    model="x", input="and", previous_response_id=each.id
                )
                for each in branches
            )
        )
    read = {each.usage.input_tokens for each in branches if each.usage is not None}
    assert len(read) == 1  # none has seen another one's turn
    texts = [len(each.output_text.encode()) for each in branches]
    lengths = [leaf.input_tokens - size for leaf, size in zip(leaves, texts, strict=True)]
    assert len(set(lengths)) == 1
