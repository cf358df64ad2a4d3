"""Run failed syscalls once more, as RQ's tools requeue failed jobs: under the same id.

The reply of the first run was given; who attaches by the id hears the new one. The scheduler takes
such a job in as it takes in what a stock tool requeues, with a new deadline.
"""

from collections.abc import Sequence

from aios_broker.contract.names import Module
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import iso_now
from aios_broker.redis.connection import Connection

_OF_THE_FIRST_RUN = ("started_at", "ended_at", "exc_info")


async def run_again(
    connection: Connection, keys: Keys, module: Module, job_ids: Sequence[str]
) -> int:
    """Put failed jobs back into their module's queue; return how many were still kept.

    A failed job is kept for an hour. Whoever removes its id from the registry is the one who
    requeues it, so that two who ask at once run it once.
    """
    again = 0
    for job_id in job_ids:
        job = keys.job(job_id)
        if not await connection.execute("HEXISTS", job, "data"):
            continue
        if not await connection.execute("ZREM", keys.registry("failed", module), job_id):
            continue
        await connection.execute("PERSIST", job)
        await connection.execute("HDEL", job, *_OF_THE_FIRST_RUN)
        await connection.execute("HSET", job, "status", "queued", "enqueued_at", iso_now())
        await connection.execute("RPUSH", keys.queue(module), job_id)
        again += 1
    return again
