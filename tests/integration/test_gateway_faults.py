"""The gateway where something is missing: workers, Redis, room, time, the process itself."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from aios_broker.contract.errors import FormNotKept
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.functions import Functions
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.redis.connection import Connection
from tests.api_scene import ServedApi, bearer, serving
from tests.caller import redis_away
from tests.conftest import RunningRedis
from tests.integration.test_api_process import ADA, token_of
from tests.tiny_worker import Emit, TinyWorker
from tests.waiting import wait_until_async

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
STREAMED = {**BODY, "stream": True}


@asynccontextmanager
async def gateway(
    redis_url: str,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[tuple[ServedApi, httpx.AsyncClient]]:
    """Serve a kernel that has nobody but this API."""
    token = await token_of(redis_url)
    async with (
        serving(redis_url, api_keep_alive_s=0.1, **settings) as served,
        httpx.AsyncClient(base_url=served.url, headers=bearer(token), timeout=20) as client,
    ):
        yield served, client


async def event_in(lines: AsyncIterator[str]) -> dict[str, Any]:
    async for line in lines:
        if line.startswith("data: "):
            found: dict[str, Any] = json.loads(line.removeprefix("data: "))
            return found
    raise AssertionError("the stream ended without an event")


def told(answer: httpx.Response, status: int, code: str) -> httpx.Response:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    return answer


async def test_without_workers_a_stream_is_kept_alive_until_there_are_some(redis_url: str) -> None:
    async with (
        gateway(redis_url) as (_, client),
        client.stream("POST", CHAT, json=STREAMED) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(3)] == [": waiting", "", ": waiting"]
        async with TinyWorker(redis_url, "llm"):
            assert [line async for line in lines][-2] == "data: [DONE]"


async def test_redis_away_is_told_before_and_within_a_stream(
    redis_url: str, redis_server: RunningRedis
) -> None:
    async with (
        gateway(redis_url, api_patience_s=0.5) as (_, client),
        client.stream("POST", CHAT, json=STREAMED) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == ": waiting"
        with redis_away(redis_server):
            found = await event_in(lines)
            assert found["error"]["code"] == "redis_unavailable"
            assert "unix" not in json.dumps(found)
            refused = told(await client.post(CHAT, json=BODY), 503, "redis_unavailable")
            assert int(refused.headers["retry-after"]) >= 1


async def test_a_process_that_stops_says_so(redis_url: str) -> None:
    async with (
        gateway(redis_url, api_drain_s=1.2) as (served, client),
        client.stream("POST", CHAT, json=STREAMED) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == ": waiting"
        served.server.should_exit = True
        found = await event_in(lines)
        assert found["error"]["code"] == "kernel_not_running"


async def test_limits_are_told_and_what_is_over_them_is_refused(redis_url: str) -> None:
    quotas = Quotas(Functions(connection := Connection(redis_url)))
    ada = Subject.of_agent("ada", "acme")
    await quotas.set("llm", QuotaRow(ada, max_queued=1, tokens_per_minute=600))
    async with (
        gateway(redis_url) as (_, client),
        client.stream("POST", CHAT, json=STREAMED) as first,
    ):
        assert first.headers["x-ratelimit-limit-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-tokens"] == "600"
        assert first.headers["x-ratelimit-reset-tokens"] == "0.000s"
        again = told(await client.post(CHAT, json=BODY), 429, "rate_limit_exceeded")
        assert int(again.headers["retry-after"]) >= 1
        assert again.json()["error"]["type"] == "rate_limit_error"
    await connection.aclose()


async def test_two_clients_of_one_key_are_one_syscall_that_both_must_leave(redis_url: str) -> None:
    async with gateway(redis_url) as (served, client):
        key = {"idempotency-key": "one"}
        async with client.stream("POST", CHAT, json=STREAMED, headers=key) as first:
            syscall = first.headers["x-aios-syscall"]
            async with client.stream("POST", CHAT, json=STREAMED, headers=key) as second:
                assert second.headers["x-aios-syscall"] == syscall
            pending = served.kernel.session.attach(syscall, ADA)
            await wait_until_async(lambda: pending.waiters == 1)
            told(await client.post(CHAT, json=BODY, headers=key), 409, "key_conflict")
            async with TinyWorker(redis_url, "llm"):
                assert "data: [DONE]" in [line async for line in first.aiter_lines()]


async def breaks_its_form(syscall: Syscall, emit: Emit) -> Result:
    """Answer as a worker does that has found a keyword broken."""
    del syscall
    await emit(0, '{"a": 0}')
    raise FormNotKept(
        "the answer breaks its form: const: 1 was expected; it is '{\"a\": 0}'",
        field="body.format.json_schema",
        remedy="send it under a new id with another seed, or leave out the keyword",
    )


async def test_a_form_that_was_not_kept_is_an_error_with_the_text_in_both_shapes(
    redis_url: str,
) -> None:
    async with gateway(redis_url) as (_, client), TinyWorker(redis_url, "llm", breaks_its_form):
        openai = told(await client.post(CHAT, json=BODY), 502, "form_not_kept").json()["error"]
        assert openai["type"] == "server_error"
        assert "const: 1 was expected" in openai["message"]
        assert '{"a": 0}' in openai["message"]
        anthropic = await client.post("/v1/messages", json={**BODY, "model": "any"})
        assert anthropic.status_code == 502
        assert anthropic.json()["type"] == "error"
        assert anthropic.json()["error"]["type"] == "api_error"
        assert '{"a": 0}' in anthropic.json()["error"]["message"]
        async with client.stream("POST", CHAT, json=STREAMED) as answer:
            lines = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "form_not_kept"
