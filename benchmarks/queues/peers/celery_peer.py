"""Celery: threads pool (it beats prefork at no-ops), no gossip, mingle, heartbeat or events."""

from __future__ import annotations

import os
import sys

from celery import Celery
from celery.result import AsyncResult
from line import WAIT_S, serve_sync

ADDRESS = os.environ["BENCH_REDIS"].replace("unix://", "redis+socket://").partition("?")[0]
app = Celery("bench", broker=ADDRESS, backend=ADDRESS)
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    result_serializer="json",
    worker_prefetch_multiplier=16,
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="echo")
def echo(text: str) -> str:
    return text


class CeleryPeer:
    def enqueue(self, text: str) -> AsyncResult:
        return echo.delay(text)

    def result(self, handle: AsyncResult) -> str:
        return str(handle.get(timeout=WAIT_S))


if __name__ == "__main__":
    if sys.argv[1] == "client":
        serve_sync(CeleryPeer)
    else:
        app.worker_main(
            [
                "worker",
                "--pool",
                "threads",
                "--concurrency",
                "8",
                "--loglevel",
                "ERROR",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
            ]
        )
