"""What a foreign hand wrote into the queue's keys: it harms nobody, and does not stay."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis

from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import ToolEcho
from aios_workers.runtime.registry import tool_module
from tests.busy_kernel import Listener, left_over
from tests.caller import running_worker
from tests.faults.crash_scene import LIMITS, running_scheduler
from tests.waiting import wait_until_async

GONE_S = 15.0
NOT_UTF8 = b"\xff\xfe\x80id"
PLAIN = b"0" * 32


@pytest_asyncio.fixture
async def caller(redis_url: str) -> AsyncIterator[Listener]:
    caller = Listener(redis_url)
    yield caller
    await caller.aclose()


def job(client: redis.Redis, job_id: bytes, data: bytes, **fields: bytes) -> None:
    """Enqueue a job as RQ does, of any bytes."""
    values = {"status": b"queued", "data": data, "origin": b"tool", **fields}
    client.hset(b"rq:job:" + job_id, mapping=values)  # type: ignore[arg-type]
    client.rpush("rq:queue:tool", job_id)


def an_id_that_is_no_text(client: redis.Redis) -> None:
    job(client, NOT_UTF8, b"[]")


def an_id_with_line_breaks(client: redis.Redis) -> None:
    job(client, b"a\tb\nc\x00d:1", b"[]")


def data_of_any_bytes(client: redis.Redis) -> None:
    job(client, PLAIN, bytes(range(256)))


def fields_of_any_bytes(client: redis.Redis) -> None:
    job(client, PLAIN, b"[]", aios_metadata=b"\xff{", aios_attempt=b"many")


def a_job_that_is_a_string(client: redis.Redis) -> None:
    client.set(b"rq:job:" + PLAIN, b"\xff")
    client.rpush("rq:queue:tool", PLAIN)


def an_id_without_a_job(client: redis.Redis) -> None:
    client.rpush("rq:queue:tool", PLAIN, NOT_UTF8, b"")


@pytest.mark.parametrize(
    "write",
    [
        an_id_that_is_no_text,
        an_id_with_line_breaks,
        data_of_any_bytes,
        fields_of_any_bytes,
        a_job_that_is_a_string,
        an_id_without_a_job,
    ],
    ids=lambda write: write.__name__,
)
async def test_the_others_are_answered_and_it_goes(caller: Listener, write: object) -> None:
    assert callable(write)
    with redis.Redis.from_url(caller.url) as client:
        [before] = await caller.submit(ToolEcho("before"))
        write(client)
        [behind] = await caller.submit(ToolEcho("behind"))
        async with (
            running_scheduler(caller.url, None),
            running_worker(caller.url, "tool", await tool_module(4), LIMITS),
        ):
            replies = await caller.hear_all([before, behind])
            await wait_until_async(lambda: not left_over(client), GONE_S)
            [later] = await caller.submit(ToolEcho("later"))
            assert (await caller.hear(later)).unwrap() == EchoResult("later")
    assert [reply.unwrap() for reply in replies] == [EchoResult("before"), EchoResult("behind")]
