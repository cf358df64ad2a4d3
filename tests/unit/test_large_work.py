"""Large work goes by tenant in turns, and what is small waits for none of it."""

import asyncio
from typing import cast

import pytest

from aios_broker.client import redis_transport
from aios_broker.client.redis_transport import ReplyBox
from aios_broker.contract.names import Owner
from aios_broker.redis.connection import Connection
from aios_kernel_api import large_work
from aios_kernel_api.large_work import LargeWork, weight_of

ADA, BOB, EVE = Owner("acme", "ada"), Owner("acme", "bob"), Owner("globex", "eve")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_work, "PIECE_BYTES", 10)
    monkeypatch.setattr(large_work, "SMALL_BYTES", 3)
    monkeypatch.setattr(large_work, "COUNTED_S", 1_000.0)


async def test_pieces_go_by_tenant_however_many_requests_one_has() -> None:
    work = LargeWork()
    done: list[Owner] = []

    async def request(owner: Owner, pieces: int = 30) -> None:
        async with work.of(owner) as progress:
            for _ in range(pieces):
                await progress.before(11)
                done.append(owner)

    await asyncio.gather(*(request(ADA) for _ in range(3)), request(BOB), request(EVE, 6))
    last = len(done) - 1 - done[::-1].index(EVE)
    of_others = [each for each in done[:last] if each != EVE]
    assert len(done) == 126
    assert len(of_others) <= 12  # not the 120 that stood before: two of the other tenant each time


async def test_what_is_small_is_done_while_a_piece_is_under_way() -> None:
    work = LargeWork()
    async with work.of(ADA) as large:
        await large.before(1_000)
        async with work.of(ADA) as small, asyncio.timeout(10):
            await small.before(1)
            await small.before(2)
        async with work.of(EVE) as other:
            waiting = asyncio.ensure_future(other.before(11))
            await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    async with work.of(EVE) as other, asyncio.timeout(10):
        await other.before(11)  # the turn came back


async def test_a_tenant_that_has_had_a_piece_waits_also_for_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = LargeWork()
    async with work.of(EVE) as large:
        await large.before(1_000)
        for owner in (ADA, BOB):
            async with work.of(owner) as some, asyncio.timeout(10):
                await some.before(5)  # a piece, the two of them
        async with work.of(BOB) as more:
            waiting = asyncio.ensure_future(more.before(4))
            await asyncio.sleep(0)
            assert not waiting.done()
            monkeypatch.setattr(large_work, "COUNTED_S", -1.0)  # it is long ago
            async with work.of(ADA) as later, asyncio.timeout(10):
                await later.before(5)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def test_what_is_refused_rests_as_long_as_what_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []
    sleep = asyncio.sleep

    async def noting(delay_s: float) -> None:
        rests.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noting)
    work = LargeWork()

    async def refused() -> None:
        async with work.of(ADA) as large:
            await large.before(11)
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        await refused()
    assert len(rests) == 1


def test_values_weigh_more_than_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_work, "PIECE_BYTES", 10_000)
    text, values = b'{"a":"%s"}' % (b"x" * 1_000), b"[%s0]" % (b"0," * 499)
    assert weight_of(text) < 1.1 * len(text)
    assert weight_of(values) > 10 * len(values)


class ThreeReplies:
    """A connection on which three replies are there at once."""

    async def execute(self, *_arguments: object, timeout_s: float) -> list[object]:
        return [b"list", [b"x" * 11] * 3]


async def test_between_large_messages_the_loop_serves_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_transport, "TURN_BYTES", 10)
    box = ReplyBox(cast(Connection, ThreeReplies()), "me")
    served: list[str] = []

    async def other() -> None:
        while True:
            served.append("other")
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    told: list[int] = []
    for _ in range(3):
        assert await box.take() == [b"x" * 11]
        told.append(len(served))
    beside.cancel()
    assert told[0] < told[1] < told[2]
