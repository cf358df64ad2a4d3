"""What stock RQ tools change in a busy kernel: whoever waits gets exactly one reply, in seconds."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import pytest
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from aios_broker.contract.errors import WorkerLost
from aios_broker.contract.reply import Reply
from tests.busy_kernel import LLM, Busy, busy_kernel, run_tool
from tests.caller import chat
from tests.waiting import wait_until_async

WITHIN_S = 15.0  # from the change to the reply, on a machine that others use
REMOVED = "it was removed from the queue by a stock RQ tool"

Change = Callable[[Busy, str], None]


@pytest.fixture
async def busy(redis_url: str) -> AsyncIterator[Busy]:
    async with busy_kernel(redis_url) as busy:
        yield busy


def queue(busy: Busy) -> Queue:
    return Queue(LLM, connection=busy.redis, serializer=JSONSerializer)


def fetch(busy: Busy, job_id: str) -> Job:
    return Job.fetch(job_id, connection=busy.redis, serializer=JSONSerializer)


def cancel(busy: Busy, job_id: str) -> None:
    fetch(busy, job_id).cancel()


def delete(busy: Busy, job_id: str) -> None:
    fetch(busy, job_id).delete()


def remove(busy: Busy, job_id: str) -> None:
    queue(busy).remove(job_id)


async def reply_soon(busy: Busy, job_id: str) -> Reply:
    began = time.monotonic()
    reply = await busy.caller.hear(job_id)
    assert time.monotonic() - began < WITHIN_S
    return reply


def code(reply: Reply) -> str:
    return reply.error.code if reply.error else "none"


@pytest.mark.parametrize("change", [cancel, delete])
async def test_cancelled_or_deleted_jobs_are_answered_in_every_state(
    busy: Busy, change: Change
) -> None:
    gone = [busy.running[0], busy.suspended, busy.queued[0], busy.held]
    for job_id in gone:
        change(busy, job_id)

    for job_id in gone:
        reply = await reply_soon(busy, job_id)
        assert (code(reply), reply.error and reply.error.message) == ("cancelled", REMOVED)
    # The slot is free for what waits: the worker was told, or noticed at its next renewal.
    await wait_until_async(lambda: busy.redis.zcard("rq:aios:leases:llm") == 2)
    assert await busy.caller.state(busy.queued[1]) == "running"
    await busy.settle()


async def test_an_emptied_queue_is_answered_and_what_runs_goes_on(busy: Busy) -> None:
    assert queue(busy).empty() == 3  # type: ignore[no-untyped-call]

    for job_id in (busy.suspended, *busy.queued):
        assert code(await reply_soon(busy, job_id)) == "cancelled"
    assert [await busy.caller.state(each) for each in busy.running] == ["running"] * 2
    assert await busy.caller.state(busy.held) == "held"
    await busy.settle()


async def test_a_deleted_queue_works_on_when_something_comes(busy: Busy) -> None:
    queue(busy).delete(delete_jobs=True)
    for job_id in (busy.suspended, *busy.queued):
        assert code(await reply_soon(busy, job_id)) == "cancelled"
    await busy.cancel(*busy.running)

    [later] = await busy.caller.submit(chat("hi", max_tokens=2))
    assert code(await reply_soon(busy, later)) == "none"
    assert sorted(each.name for each in Queue.all(connection=busy.redis)) == ["llm", LLM]
    await busy.settle()


async def test_an_id_that_was_only_taken_out_of_the_list_is_put_back(busy: Busy) -> None:
    remove(busy, busy.queued[0])
    assert busy.redis.llen(f"rq:queue:{LLM}") == 2

    await wait_until_async(lambda: busy.redis.llen(f"rq:queue:{LLM}") == 3)
    assert await busy.caller.state(busy.queued[0]) == "queued"
    await busy.settle()


async def test_an_id_that_is_in_the_list_twice_runs_once(busy: Busy) -> None:
    [short] = await busy.caller.submit(chat("short", max_tokens=2))
    busy.redis.lpush(f"rq:queue:{LLM}", short, busy.running[0], busy.finished, "never-was")
    await busy.cancel(busy.running[1])

    reply = await reply_soon(busy, short)
    assert (code(reply), reply.timings.attempts) == ("none", 1)
    await busy.settle()


async def test_send_stop_job_ends_a_running_job_and_no_other(busy: Busy) -> None:
    send_stop_job_command(busy.redis, busy.running[0], serializer=JSONSerializer)
    with pytest.raises(InvalidJobOperation):
        send_stop_job_command(busy.redis, busy.queued[0], serializer=JSONSerializer)

    reply = await reply_soon(busy, busy.running[0])
    assert code(reply) == "cancelled"
    assert await busy.caller.state(busy.running[1]) == "running"
    assert await busy.caller.state(busy.queued[0]) in ("queued", "running")
    assert fetch(busy, busy.running[0]).get_status() == JobStatus.FAILED
    await busy.settle()


async def test_send_stop_job_to_a_job_that_was_suspended_does_nothing(busy: Busy) -> None:
    with pytest.raises(InvalidJobOperation):
        send_stop_job_command(busy.redis, busy.suspended, serializer=JSONSerializer)

    assert await busy.caller.state(busy.suspended) == "suspended"
    await busy.settle()


def has_newer_result(busy: Busy, than: Result) -> bool:
    latest = fetch(busy, busy.failed).latest_result()
    return latest is not None and latest.id != than.id


@pytest.mark.parametrize(
    "requeue",
    [
        lambda busy: fetch(busy, busy.failed).requeue(),
        lambda busy: FailedJobRegistry(queue=queue(busy)).requeue(busy.failed),
    ],
)
async def test_a_requeued_job_runs_again_and_is_answered_to_who_asks(
    busy: Busy, requeue: Callable[[Busy], Job]
) -> None:
    first = fetch(busy, busy.failed).latest_result()
    await busy.cancel(*busy.running, busy.suspended, *busy.queued)

    assert requeue(busy).id == busy.failed

    assert first is not None
    await wait_until_async(lambda: has_newer_result(busy, first))
    assert fetch(busy, busy.failed).get_status() == JobStatus.FAILED
    assert busy.failed in FailedJobRegistry(queue=queue(busy))
    state, reply = await busy.caller.queue("llm").attach(busy.failed, "", None)
    assert (state, reply is not None) == ("failed", True)
    assert busy.redis.ttl(f"rq:job:{busy.failed}") > 0  # not kept for ever
    await busy.settle()


async def test_rq_requeue_of_all_in_a_cores_queue_runs_them_again(busy: Busy) -> None:
    first = fetch(busy, busy.failed).latest_result()
    await busy.cancel(*busy.running, busy.suspended, *busy.queued)

    said = await run_tool(
        *("rq", "requeue", "--queue", LLM, "--all", "-u", busy.caller.url),
        *("--serializer", "json"),
    )

    assert "Unable" not in said
    assert first is not None
    await wait_until_async(lambda: has_newer_result(busy, first))
    assert fetch(busy, busy.failed).get_status() == JobStatus.FAILED
    await busy.settle()


async def test_requeueing_a_poison_job_tries_it_anew(busy: Busy) -> None:
    lost = WorkerLost("its workers died")
    await busy.caller.control.cancel([busy.queued[0]], lost, module="llm")
    assert code(await reply_soon(busy, busy.queued[0])) == "worker-lost"
    await busy.cancel(*busy.running, busy.suspended, busy.queued[1])

    fetch(busy, busy.queued[0]).requeue()

    await wait_until_async(lambda: fetch(busy, busy.queued[0]).get_status() == JobStatus.STARTED)
    assert await busy.caller.state(busy.queued[0]) == "running"
    await busy.settle()


async def test_finished_jobs_can_be_deleted_and_are_then_unknown(busy: Busy) -> None:
    delete(busy, busy.finished)

    assert await busy.caller.queue("llm").attach(busy.finished, "", None) == ("unknown", None)
    assert queue(busy).finished_job_registry.count == 0
    assert not busy.redis.exists(f"rq:results:{busy.finished}")
    await busy.settle()


async def test_a_deleted_job_leaves_no_record_without_an_end(busy: Busy) -> None:
    gone = [*busy.running, busy.suspended, busy.held]
    for job_id in gone:
        delete(busy, job_id)
    await busy.caller.hear_all(gone)
    await busy.settle()

    for job_id in gone:
        assert busy.redis.ttl(f"rq:job:{job_id}") != -1
