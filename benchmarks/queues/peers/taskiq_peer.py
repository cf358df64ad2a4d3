"""Taskiq on a Redis list: one worker process, results polled every millisecond (default 200)."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from line import batches, serve_async
from taskiq import AsyncTaskiqTask
from taskiq.__main__ import main
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

POLL_S = 0.001
AT_ONCE = 50
ADDRESS = os.environ["BENCH_REDIS"]
backend: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(ADDRESS, result_ex_time=600)
broker = ListQueueBroker(ADDRESS, queue_name="bench").with_result_backend(backend)


@broker.task(task_name="echo")
async def echo(text: str) -> str:
    return text


class TaskiqPeer:
    async def open(self, clients: int) -> None:
        await broker.startup()

    async def all(self, texts: list[str]) -> list[str]:
        tasks: list[AsyncTaskiqTask[str]] = []
        for batch in batches(texts, AT_ONCE):
            tasks += await asyncio.gather(*(echo.kiq(text) for text in batch))
        came: list[str] = []
        for batch in batches(tasks, AT_ONCE):
            came += await asyncio.gather(*(self._result(task) for task in batch))
        return came

    async def one(self, _client: int, text: str) -> str:
        return await self._result(await echo.kiq(text))

    async def close(self) -> None:
        await broker.shutdown()

    async def _result(self, task: AsyncTaskiqTask[str]) -> str:
        return str((await task.wait_result(check_interval=POLL_S)).return_value)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        serve_async(TaskiqPeer)
    else:
        sys.argv = [
            "taskiq",
            "worker",
            "taskiq_peer:broker",
            "--workers",
            "1",
            "--max-async-tasks",
            "100",
            "--log-level",
            "ERROR",
        ]
        main()
