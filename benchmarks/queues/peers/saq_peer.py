"""saq: concurrency 100; results polled every millisecond (its default is 500)."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import redis.asyncio
from line import batches, serve_async
from saq import Worker
from saq.queue.redis import RedisQueue

POLL_S = 0.001
ENQUEUED_AT_ONCE = 50
TTL_S = 600


def new_queue() -> RedisQueue:
    return RedisQueue(redis.asyncio.Redis.from_url(os.environ["BENCH_REDIS"]), name="bench")


async def echo(_context: Any, *, text: str) -> str:
    return text


class SaqPeer:
    def __init__(self) -> None:
        self._queue = new_queue()

    async def open(self, clients: int) -> None:
        await self._queue.connect()

    async def all(self, texts: list[str]) -> list[str]:
        keys: list[str] = []
        for batch in batches(texts, ENQUEUED_AT_ONCE):
            jobs = await asyncio.gather(*(self._queue.enqueue("echo", text=t) for t in batch))
            keys += [job.key for job in jobs if job]
        came: list[str] = []
        for batch in batches(keys, ENQUEUED_AT_ONCE):
            jobs = await self._queue.jobs(batch)
            while not all(job.completed for job in jobs):
                await asyncio.sleep(POLL_S)
                jobs = await self._queue.jobs(batch)
            came += [str(job.result) for job in jobs]
        return came

    async def one(self, _client: int, text: str) -> str:
        return str(await self._queue.apply("echo", poll_interval=POLL_S, text=text))

    async def close(self) -> None:
        await self._queue.disconnect()


async def work() -> None:
    queue = new_queue()
    await queue.connect()
    await Worker(queue, functions=[echo], concurrency=100).start()


if __name__ == "__main__":
    if sys.argv[1] == "client":
        serve_async(SaqPeer)
    else:
        import uvloop

        uvloop.run(work())
