"""Answers that are kept for their agent: within limits, each with the context it stands in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from aios_broker.contract.names import Owner
from aios_broker.queues import responses
from aios_broker.queues.contexts import CONTEXT_TTL_S
from aios_broker.queues.functions import Functions
from aios_broker.queues.responses import Responses
from aios_broker.redis.connection import Connection

ADA, BOB = Owner("default", "ada"), Owner("default", "bob")


@pytest.fixture
async def kept(redis_url: str) -> AsyncIterator[Responses]:
    connection = Connection(redis_url)
    yield Responses(Functions(connection))
    await connection.aclose()


async def test_an_answer_is_its_agents_alone(kept: Responses) -> None:
    assert await kept.put(ADA, "resp_1", b"one", known=False) == ()

    assert await kept.find(ADA, "resp_1") == b"one"
    assert await kept.find(BOB, "resp_1") is None
    assert await kept.find(Owner("other", "ada"), "resp_1") is None
    assert await kept.drop(BOB, "resp_1") is None
    assert await kept.claim(BOB, "resp_1", "resp_2") is False
    assert await kept.drop(ADA, "resp_1") == ()
    assert await kept.find(ADA, "resp_1") is None


async def test_what_was_deleted_meanwhile_is_not_kept_again(kept: Responses) -> None:
    await kept.put(ADA, "resp_1", b"begun", known=False)
    assert await kept.put(ADA, "resp_1", b"ended", known=True) == ()
    await kept.drop(ADA, "resp_1")

    assert await kept.put(ADA, "resp_1", b"ended", known=True) is None
    assert await kept.find(ADA, "resp_1") is None


async def test_one_alone_goes_on_with_an_answer_in_its_context(kept: Responses) -> None:
    await kept.put(ADA, "resp_1", b"one", context="talk", known=False)

    claims = [await kept.claim(ADA, "resp_1", by) for by in ("resp_2", "resp_3", "resp_2")]

    assert claims == [True, False, True]  # whoever was first may come again
    assert await kept.claim(ADA, "resp_9", "resp_2") is False


async def test_a_context_is_free_when_the_last_answer_in_it_goes(kept: Responses) -> None:
    for name in ("resp_1", "resp_2"):
        await kept.put(ADA, name, b"", context="talk", known=False)
        await kept.put(ADA, name, b"again", context="talk", known=True)

    assert await kept.drop(ADA, "resp_1") == ()
    assert await kept.drop(ADA, "resp_2") == ("talk",)


async def test_the_oldest_go_where_there_are_too_many(
    kept: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MOST_KEPT", 2)
    freed = [
        await kept.put(ADA, f"resp_{number}", b"x", context=f"talk{number}", known=False)
        for number in range(4)
    ]
    await kept.put(BOB, "resp_0", b"x", known=False)

    assert freed == [(), (), ("talk0",), ("talk1",)]
    assert [await kept.find(ADA, f"resp_{n}") for n in range(4)] == [None, None, b"x", b"x"]


async def test_the_oldest_go_where_all_are_too_large(
    kept: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MOST_KEPT_BYTES", 10)
    await kept.put(ADA, "resp_1", b"x" * 4, known=False)
    await kept.put(ADA, "resp_2", b"x" * 4, known=False)
    await kept.put(ADA, "resp_1", b"x" * 6, known=True)  # 10: both have room
    assert await kept.find(ADA, "resp_2") is not None

    await kept.put(ADA, "resp_2", b"x" * 20, known=True)  # more than there is room for

    assert await kept.find(ADA, "resp_1") is None
    assert await kept.find(ADA, "resp_2") == b"x" * 20


async def test_nothing_of_it_stays_for_ever(kept: Responses, redis_url: str) -> None:
    await kept.put(ADA, "resp_1", b"one", context="talk", known=False)
    await kept.claim(ADA, "resp_1", "resp_2")

    with redis.Redis.from_url(redis_url) as client:
        keys = list(client.scan_iter("*response*"))
        assert len(keys) == 5
        assert all(0 < client.ttl(key) <= CONTEXT_TTL_S for key in keys)
