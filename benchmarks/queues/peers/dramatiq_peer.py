"""Dramatiq: one process of eight threads, results in Redis."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq import cli
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from line import WAIT_S, serve_sync

ADDRESS = os.environ["BENCH_REDIS"]
broker = RedisBroker(url=ADDRESS)
broker.add_middleware(Results(backend=RedisBackend(url=ADDRESS), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def echo(text: str) -> str:
    return text


class DramatiqPeer:
    def enqueue(self, text: str) -> dramatiq.Message:
        return echo.send(text)

    def result(self, message: dramatiq.Message) -> str:
        return str(message.get_result(block=True, timeout=int(WAIT_S * 1000)))


if __name__ == "__main__":
    if sys.argv[1] == "client":
        serve_sync(DramatiqPeer)
    else:
        sys.argv = ["dramatiq", "dramatiq_peer", "--processes", "1", "--threads", "8"]
        sys.exit(cli.main())
