"""A block in Redis leaves and keeps the very notes that LRU-K, written down plainly, does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from aios_broker.contract.memory import BlockStat
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from aios_workers.modules.memory.block import (
    Block,
    Resident,
    UnknownBlock,
    Victim,
    block_key,
    memory_functions,
)
from aios_workers.modules.memory.note import BlockShape
from tests.lru_k_model import LruK

SHAPES = [
    BlockShape(4096, k=1, correlated_s=0.0, high=0.8, low=0.6),
    BlockShape(4096, k=2, correlated_s=1.0, high=0.8, low=0.6),
    BlockShape(8192, k=3, correlated_s=0.2, high=0.9, low=0.3),
    BlockShape(6000, k=2, correlated_s=30.0, high=0.95, low=0.5),
]
NAMES = [f"{n:032x}" for n in range(60)]
START_US = 1_700_000_000_000_000
FEW, MANY = 500, 25_000  # operations per shape: 2,000 and 100,000 in all


@asynccontextmanager
async def opened(url: str, shape: BlockShape, prefix: str = "rq") -> AsyncIterator[Block]:
    connection = Connection(url)
    try:
        block = Block(memory_functions(connection), Keys(prefix), block_key("t", "a", 1))
        await block.open(shape, "t/a")
        yield block
    finally:
        await connection.aclose()


def held(url: str) -> set[str]:
    """Return the ids of all notes that stand in the block."""
    with redis.Redis.from_url(url, decode_responses=True) as raw:
        return set(raw.hkeys(Keys().own(f"memory:{block_key('t', 'a', 1)}:notes")))


def resident(name: str, version: int = 1, size_bytes: int = 100, expires_us: int = 0) -> Resident:
    return Resident(name, version, size_bytes, expires_us, f"{name}.{version}".encode())


async def put(block: Block, note: Resident, *, fault: bool = False) -> str:
    return await block.put(note, await block.token(), fault=fault)


class Pair:
    """The block and the model, told the same."""

    def __init__(self, url: str, block: Block, shape: BlockShape, seed: int) -> None:
        self.random = random.Random(seed)
        self.url = url
        self.block = block
        self.model = LruK(
            shape.limit_bytes, shape.k, round(shape.correlated_s * 1e6), shape.high, shape.low
        )
        self.versions = dict.fromkeys(NAMES, 1)
        self.sizes = {name: self.random.randrange(20, 400) for name in NAMES}
        self.now_us = START_US

    async def step(self) -> None:
        self.now_us += round(self.random.choice((0, 1, 1e3, 2e5, 1e6, 2e6)))
        if self.random.random() < 0.002:
            self.now_us += 4_000_000_000  # longer than history is kept
        self.block.now_us = self.now_us
        name = NAMES[min(int(self.random.expovariate(0.06)), len(NAMES) - 1)]
        act = self.random.choices(
            (self.read, self.touch, self.change, self.forget), (70, 10, 15, 5)
        )[0]
        await act(name)
        await self.swap()

    async def read(self, name: str) -> None:
        version = self.model.read(name, self.now_us)
        data = await self.block.read(name)
        assert (data is None) == (version is None)
        if version is None:
            await self.put(name, fault=True)
        else:
            assert data == f"{name}.{version}".encode()

    async def touch(self, name: str) -> None:
        names = [name, *self.random.sample(NAMES, 3)]
        names = list(dict.fromkeys(names))
        assert await self.block.touch(names) == self.model.touch(names, self.now_us)

    async def change(self, name: str) -> None:
        self.model.invalidate([name], self.now_us, forget=False)
        await self.block.invalidate([name])
        self.versions[name] += 1
        self.sizes[name] = self.random.randrange(20, 400)
        await self.put(name, fault=False)

    async def forget(self, name: str) -> None:
        self.model.invalidate([name], self.now_us, forget=True)
        await self.block.invalidate([name], forget=True)

    async def put(self, name: str, *, fault: bool) -> None:
        version, size_bytes = self.versions[name], self.sizes[name]
        expected = self.model.put(name, version, size_bytes, self.now_us, fault=fault)
        assert await put(self.block, resident(name, version, size_bytes), fault=fault) == expected

    async def swap(self) -> None:
        goes_on = False
        while names := self.model.victims(self.now_us, goes_on=goes_on):
            victims = await self.block.victims(goes_on=goes_on)
            assert [victim.id for victim in victims] == names
            self.model.free(names, self.now_us)
            assert await self.block.free(victims) == len(names)
            goes_on = True
        assert await self.block.victims(goes_on=goes_on) == []

    async def compare(self) -> None:
        stat = await self.block.stat()
        model = self.model
        found = (stat.used_bytes, stat.resident_notes, stat.hits, stat.faults, stat.swaps)
        assert found == (
            model.used_bytes,
            len(model.resident),
            model.hits,
            model.faults,
            model.swaps,
        )
        assert held(self.url) == set(model.resident)


async def run_beside_the_model(url: str, shape: BlockShape, steps: int, seed: int) -> Pair:
    async with opened(url, shape) as block:
        pair = Pair(url, block, shape, seed)
        for number in range(steps):
            await pair.step()
            if number % 50 == 0:
                await pair.compare()
        await pair.compare()
        return pair


@pytest.mark.parametrize("number", range(len(SHAPES)))
async def test_it_equals_the_model(redis_url: str, number: int) -> None:
    pair = await run_beside_the_model(redis_url, SHAPES[number], FEW, seed=number)
    assert pair.model.swaps > 20  # there was pressure
    assert pair.model.hits > 50


@pytest.mark.slow
@pytest.mark.timeout(580)
@pytest.mark.parametrize("number", range(len(SHAPES)))
async def test_it_equals_the_model_over_a_hundred_thousand(redis_url: str, number: int) -> None:
    await run_beside_the_model(redis_url, SHAPES[number], MANY, seed=100 + number)


async def test_a_scan_does_not_push_out_what_is_used_again_and_again(redis_url: str) -> None:
    """What LRU-K is for: notes read once each do not displace those read twice."""
    async with opened(redis_url, BlockShape(1000, k=2, correlated_s=0.0)) as block:
        block.now_us = START_US
        for name in NAMES[:4]:
            await put(block, resident(name))
            block.now_us += 10
        for name in NAMES[:4]:
            block.now_us += 10
            await block.read(name)
        for name in NAMES[4:]:
            block.now_us += 10
            await put(block, resident(name))
            await block.free(await block.victims(goes_on=False))
        assert set(NAMES[:4]) <= held(redis_url)


async def test_references_within_the_correlated_period_are_one(redis_url: str) -> None:
    async with opened(redis_url, BlockShape(1000, k=2, correlated_s=1.0)) as block:
        block.now_us = START_US
        burst, spread = NAMES[:2]
        await put(block, resident(burst))
        await put(block, resident(spread))
        for _ in range(5):
            block.now_us += 1000
            await block.read(burst)
        block.now_us += 2_000_000
        await block.read(spread)
        block.now_us += 2_000_000
        for name in NAMES[2:9]:
            await put(block, resident(name))
        victims = await block.victims(goes_on=False)
        assert victims[0].id == burst  # five references, and still fewer than two that count
        assert spread not in {victim.id for victim in victims[:1]}


async def test_what_was_just_used_leaves_only_when_nothing_else_is_left(redis_url: str) -> None:
    async with opened(redis_url, BlockShape(1000, k=2, correlated_s=10.0)) as block:
        block.now_us = START_US
        await put(block, resident(NAMES[0]))
        block.now_us += 11_000_000
        for name in NAMES[1:9]:
            await put(block, resident(name))
            block.now_us += 1
        victims = await block.victims(goes_on=False)
        assert [victim.id for victim in victims] == NAMES[:3]


async def test_a_put_is_refused_once_the_note_has_changed(redis_url: str) -> None:
    async with opened(redis_url, BlockShape()) as block:
        name = NAMES[0]
        early = await block.token()
        late = await block.invalidate([name])
        assert await block.put(resident(name, 1), early, fault=True) == "stale"
        assert await block.put(resident(name, 2), late, fault=False) == "ok"
        assert await block.put(resident(name, 1), late, fault=False) == "stale"
        assert await block.read(name) == f"{name}.2".encode()


async def test_tokens_end_with_the_block(redis_url: str) -> None:
    async with opened(redis_url, BlockShape()) as block:
        before_drop = await block.token()
        await block.drop()
        assert await block.put(resident(NAMES[0]), before_drop, fault=True) == "stale"
        before_loss = await block.token()
        redis.Redis.from_url(redis_url).flushall()
        with pytest.raises(UnknownBlock):
            await block.read(NAMES[0])
        await block.open(BlockShape(), "t/a")
        assert await block.put(resident(NAMES[0]), before_loss, fault=True) == "stale"


async def test_old_changes_are_forgotten_on_the_safe_side(redis_url: str) -> None:
    async with opened(redis_url, BlockShape()) as block:
        token = await block.token()
        for number in range(1030):
            await block.invalidate([f"{number:032x}"])
        assert await block.put(resident("f" * 32), token, fault=True) == "stale"
        assert await block.put(resident("f" * 32), await block.token(), fault=True) == "ok"


async def test_another_life_of_the_server_begins_with_empty_blocks(redis_url: str) -> None:
    async with opened(redis_url, BlockShape()) as block:
        await put(block, resident(NAMES[0]))
        client = redis.Redis.from_url(redis_url)
        [key] = [
            key
            for key in client.scan_iter("rq:aios:memory:*")
            if client.type(key) == b"hash" and client.hexists(key, "run")
        ]
        client.hset(key, "run", "another life's")  # as a replica that is promoted finds it
        assert await block.read(NAMES[0]) is None
        assert (await block.stat()).used_bytes == 0
        assert int(client.hget("rq:aios:memory:totals", "used") or 0) == 0


async def test_an_expired_note_is_gone_at_once(redis_url: str) -> None:
    async with opened(redis_url, BlockShape()) as block:
        block.now_us = START_US
        await put(block, resident(NAMES[0], expires_us=START_US + 5))
        assert await block.read(NAMES[0]) is not None
        block.now_us += 5
        assert await block.touch([NAMES[0]]) == 0
        assert await block.read(NAMES[0]) is None
        assert (await block.stat()).resident_notes == 0


async def test_the_limit_is_hard(redis_url: str) -> None:
    async with opened(redis_url, BlockShape(1000)) as block:
        assert await put(block, resident(NAMES[0], size_bytes=700)) == "ok"
        assert await put(block, resident(NAMES[1], size_bytes=301)) == "full"
        assert await put(block, resident(NAMES[1], size_bytes=300)) == "over"
        assert await put(block, resident(NAMES[0], 2, size_bytes=701)) == "full"


async def test_a_victim_that_changed_stays(redis_url: str) -> None:
    async with opened(redis_url, BlockShape(1000)) as block:
        await put(block, resident(NAMES[0], 2, size_bytes=900))
        assert await block.free([Victim(NAMES[0], 1)]) == 0
        assert await block.victims(goes_on=False) == [Victim(NAMES[0], 2)]


async def test_totals_are_the_sum_of_all_blocks(redis_url: str) -> None:
    connection = Connection(redis_url)
    functions = memory_functions(connection)
    blocks = [Block(functions, Keys(), block_key("t", name, 1)) for name in ("a", "b")]
    for block in blocks:
        await block.open(BlockShape(1000), "t/x")
        for name in NAMES[:9]:
            await put(block, resident(name), fault=True)
            await block.read(name)
        await block.free(await block.victims(goes_on=False))
    await blocks[0].drop()
    stats = [await block.stat() for block in blocks]
    await connection.aclose()
    totals = redis.Redis.from_url(redis_url).hgetall("rq:aios:memory:totals")
    names = {
        "used": "used_bytes",
        "notes": "resident_notes",
        "hits": "hits",
        "faults": "faults",
        "swaps": "swaps",
    }
    for field, name in names.items():
        assert int(totals[field.encode()]) == sum(getattr(stat, name) for stat in stats), field


async def test_another_k_begins_with_an_empty_block(redis_url: str) -> None:
    async with opened(redis_url, BlockShape(1000, k=2)) as block:
        await put(block, resident(NAMES[0]))
        await block.open(BlockShape(1000, k=3), "t/a")
        stat = await block.stat()
        assert (stat.resident_notes, stat.swaps, stat.k) == (0, 1, 3)
        assert isinstance(stat, BlockStat)


async def test_a_smaller_block_is_above_its_watermark(redis_url: str) -> None:
    async with opened(redis_url, BlockShape(1000)) as block:
        await put(block, resident(NAMES[0], size_bytes=500))
        assert await block.open(BlockShape(4000), "t/a") is False
        assert await block.open(BlockShape(600), "t/a") is True
