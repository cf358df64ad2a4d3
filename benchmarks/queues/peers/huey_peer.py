"""huey: eight threads, blocking pops, the result announced to who waits (notify_result)."""

from __future__ import annotations

import os
import sys

from huey import RedisHuey
from huey.api import Result
from line import WAIT_S, serve_sync

huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"], notify_result=True, utc=True)


@huey.task()
def echo(text: str) -> str:
    return text


class HueyPeer:
    def enqueue(self, text: str) -> Result:
        return echo(text)

    def result(self, handle: Result) -> str:
        return str(handle.get(blocking=True, timeout=WAIT_S))


if __name__ == "__main__":
    if sys.argv[1] == "client":
        serve_sync(HueyPeer)
    else:
        huey.create_consumer(workers=8, worker_type="thread", periodic=False).run()
