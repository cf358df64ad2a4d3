"""The floor: LPUSH and BLMOVE over redis-py, a list for the jobs and one for each result.

No retries, no records, no ids but our own: what a round trip through Redis costs at the least.
"""

from __future__ import annotations

import itertools
import json
import os
import sys

import redis
from line import WAIT_S, serve_sync

JOBS, RUNNING = "floor:jobs", "floor:running"
NUMBERS = itertools.count()


class Floor:
    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=WAIT_S)

    def enqueue(self, text: str) -> str:
        reply = f"floor:result:{next(NUMBERS)}"
        self._redis.lpush(JOBS, json.dumps({"reply": reply, "text": text}))
        return reply

    def result(self, reply: str) -> str:
        answer = self._redis.brpop([reply], timeout=WAIT_S)
        return str(json.loads(answer[1])["text"])


def work(url: str) -> None:
    client = redis.Redis.from_url(url, socket_timeout=None)
    while True:
        raw = client.blmove(JOBS, RUNNING, timeout=0, src="RIGHT", dest="LEFT")
        job = json.loads(raw)
        pipe = client.pipeline(transaction=False)
        pipe.lpush(job["reply"], json.dumps({"text": job["text"]}))
        pipe.lrem(RUNNING, 1, raw)
        pipe.execute()


if __name__ == "__main__":
    address = os.environ["BENCH_REDIS"]
    if sys.argv[1] == "client":
        serve_sync(lambda: Floor(address))
    else:
        work(address)
