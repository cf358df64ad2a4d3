"""The bodies of failed calls stay to be looked at, up to a limit in bytes: the oldest go first."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal, cast

import pytest
import redis
from rq.job import Job
from rq.serializers import JSONSerializer

from aios_broker.contract.errors import Cancelled, InvalidSyscall
from aios_broker.contract.job import decode_job, without_arguments
from aios_broker.contract.syscall import new_id
from aios_broker.queues.module_queue import FAILURE_TTL_S, ClaimRequest, Differs
from aios_broker.queues.records import Ending, JobMetadata, Submission
from tests.queue_user import DATA, QueueUser, submitted

MIB = 1024 * 1024
LIMIT_BYTES = 64 * MIB
LARGE = b'["aios_workers.entry.run",null,["%s"],{}]' % (b"x" * (8 * MIB))
Way = Literal["finish", "cancel"]


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


async def fail(user: QueueUser, way: Way, data: bytes = LARGE) -> str:
    job_id = new_id()
    job = Submission(job_id, data, JobMetadata("ada", "llm.chat"), "me")
    assert await submitted(user.queue, [job]) == ["queued"]
    if way == "cancel":
        assert await user.control.cancel([job_id], Cancelled("no"), module="llm") == ["done"]
        return job_id
    [lease] = await user.claim()
    reply = b'{"kind":"reply","error":{"code":"core-error","message":"it broke"}}'
    endings = [Ending(lease, "failed", reply, 0.25, 0)]
    settled = await user.queue.finish("worker", endings, ClaimRequest(0, 30.0))
    assert settled.accepted == [True]
    return job_id


def body(user: QueueUser, raw: redis.Redis, job_id: str) -> bytes | None:
    return cast("bytes | None", raw.hget(user.keys.job(job_id), "data"))


def noted_bytes(user: QueueUser, raw: redis.Redis) -> int:
    return int(cast("bytes | None", raw.get(user.keys.own("failed_bytes:llm"))) or 0)


def kept_bytes(user: QueueUser, raw: redis.Redis, job_ids: list[str]) -> int:
    found = [body(user, raw, job_id) or b"" for job_id in job_ids]
    return sum(len(each) for each in found if each in (LARGE, DATA))


@pytest.mark.parametrize("way", ["finish", "cancel"])
async def test_the_oldest_bodies_go_beyond_the_limit(
    user: QueueUser, raw: redis.Redis, way: Way
) -> None:
    job_ids = [await fail(user, way) for _ in range(9)]
    kept = [body(user, raw, job_id) == LARGE for job_id in job_ids]
    assert kept == [False, False, *[True] * 7]
    assert noted_bytes(user, raw) == kept_bytes(user, raw, job_ids) <= LIMIT_BYTES
    # What is left says what it was, and what became of it, and that it is not to run again.
    job = Job.fetch(job_ids[0], connection=raw, serializer=JSONSerializer)
    assert job.get_status() == ("canceled" if way == "cancel" else "failed")
    left = body(user, raw, job_ids[0])
    assert left is not None
    assert left == without_arguments(b'["aios_workers.entry.syscall",null,[{}],{}]')
    with pytest.raises(InvalidSyscall):
        decode_job(left, job_ids[0])


async def test_small_bodies_stay_beside_one_that_is_too_much(
    user: QueueUser, raw: redis.Redis
) -> None:
    """What would take very many old ones away goes itself: the limit holds at any time."""
    large = [await fail(user, "cancel") for _ in range(7)]
    small = [await fail(user, "cancel", DATA) for _ in range(70)]
    assert noted_bytes(user, raw) == kept_bytes(user, raw, large + small)
    for _ in range(8):
        await fail(user, "cancel")
        assert noted_bytes(user, raw) <= LIMIT_BYTES
    newest = await fail(user, "cancel")
    assert noted_bytes(user, raw) <= LIMIT_BYTES
    assert body(user, raw, newest) is not None


async def test_who_sends_it_again_hears_how_it_ended(user: QueueUser, raw: redis.Redis) -> None:
    first, *_ = [await fail(user, "cancel") for _ in range(9)]
    again = Submission(first, LARGE, JobMetadata("ada", "llm.chat"), "me")
    assert await submitted(user.queue, [again]) == ["ended"]
    # Another agent's it is not, whatever is left of it.
    other = Submission(first, LARGE, JobMetadata("bob", "llm.chat"), "me")
    [outcome] = await user.queue.submit([other])
    assert not isinstance(outcome, str | Differs)


async def test_what_is_over_or_was_taken_away_counts_no_more(
    user: QueueUser, raw: redis.Redis
) -> None:
    gone, again = await fail(user, "cancel"), await fail(user, "finish")
    notes = user.keys.own("failures:llm")
    raw.delete(user.keys.job(gone))
    Job.fetch(again, connection=raw, serializer=JSONSerializer).requeue()
    epoch = await user.lead()
    await user.order.reconcile(epoch)
    earlier = [
        b"%d %s" % (int(note.split()[0]) - FAILURE_TTL_S - 1, note.partition(b" ")[2])
        for note in cast("list[bytes]", raw.lrange(notes, 0, -1))
    ]
    raw.delete(notes)
    raw.rpush(notes, *earlier)
    await user.order.expire(epoch)
    assert noted_bytes(user, raw) == 0
    assert raw.exists(notes, user.keys.job(gone)) == 0
    assert zlib.decompress(body(user, raw, again) or b"") == LARGE  # as RQ writes it again


async def test_what_was_deleted_stays_so_and_what_runs_again_keeps_its_body(
    user: QueueUser, raw: redis.Redis
) -> None:
    gone, again = await fail(user, "cancel"), await fail(user, "finish")
    raw.delete(user.keys.job(gone))
    Job.fetch(again, connection=raw, serializer=JSONSerializer).requeue()
    await user.order.reconcile(await user.lead())
    for _ in range(9):
        await fail(user, "cancel")
    assert raw.exists(user.keys.job(gone)) == 0
    assert zlib.decompress(body(user, raw, again) or b"") == LARGE  # as RQ writes it again
