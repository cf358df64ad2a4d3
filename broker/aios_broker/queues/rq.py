"""What we ask of RQ itself. The only file that imports it; everything else knows its keys."""

from dataclasses import dataclass
from urllib.parse import quote

import rq
import rq.job
from redis import Redis, SSLConnection
from rq.defaults import RQ_KEY_PREFIX


@dataclass(frozen=True, slots=True)
class StockJob:
    """A job that a stock RQ worker is executing in this process."""

    job_id: str
    queue: str
    redis_url: str
    key_prefix: str
    _job: rq.job.Job

    def take_over(self, data: bytes, description: str) -> None:
        """Have RQ write these when it saves the job: it would write again what it has read."""
        self._job.data = data
        self._job.description = description


def current_job() -> StockJob | None:
    """Return the job within whose execution this is called, or None outside of RQ."""
    job = rq.get_current_job()
    if job is None:
        return None
    return StockJob(job.id, job.origin, url_of(job.connection), RQ_KEY_PREFIX, job)


def url_of(client: Redis) -> str:
    """Return the URL of the Redis that a redis-py client talks to, credentials included."""
    pool = client.connection_pool
    at = pool.connection_kwargs
    user, password = quote(at.get("username") or ""), quote(at.get("password") or "", safe="")
    credentials = f"{user}:{password}@" if password else ""
    db = at.get("db") or 0
    if path := at.get("path"):
        return f"unix://{credentials}{quote(path)}?db={db}"
    tls = issubclass(pool.connection_class, SSLConnection)
    scheme = "rediss" if tls else "redis"
    host = at.get("host") or "127.0.0.1"
    return f"{scheme}://{credentials}{f'[{host}]' if ':' in host else host}:{at.get('port')}/{db}"
