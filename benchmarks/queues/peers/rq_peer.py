"""RQ, as its documentation has it: JSON, one queue, results from their streams."""

from __future__ import annotations

import logging
import os
import sys

import redis
from line import WAIT_S, serve_sync
from rq import Queue, SimpleWorker, Worker
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

QUEUE = "bench"
# RQ's worker says a line or two per job; neither it nor the others log here.
logging.getLogger("rq.worker").setLevel(logging.ERROR)


def echo(text: str) -> str:
    return text


class Rq:
    def __init__(self, url: str) -> None:
        connection = redis.Redis.from_url(url, socket_timeout=WAIT_S)
        self._queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer)

    def enqueue(self, text: str) -> Job:
        return self._queue.enqueue("rq_peer.echo", text)

    def result(self, job: Job) -> str:
        result = Result.fetch_latest(job, serializer=JSONSerializer, timeout=int(WAIT_S))
        return str(result.return_value if result else "no result")


def work(url: str, *, fork: bool) -> None:
    connection = redis.Redis.from_url(url)
    kind = Worker if fork else SimpleWorker
    worker = kind([QUEUE], connection=connection, serializer=JSONSerializer)
    worker.work(logging_level="ERROR")


if __name__ == "__main__":
    address = os.environ["BENCH_REDIS"]
    if sys.argv[1] == "client":
        serve_sync(lambda: Rq(address))
    else:
        work(address, fork=sys.argv[1] == "fork-worker")
