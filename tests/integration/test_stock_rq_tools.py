"""What stock RQ tools see of a busy kernel."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from rq import Queue, Worker
from rq.command import send_shutdown_command, send_stop_execution_command
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import BaseRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from aios_broker.contract.job import ENTRY
from tests.busy_kernel import LEASE_S, LLM, Busy, busy_kernel, run_tool
from tests.waiting import wait_until, wait_until_async


@pytest.fixture
async def busy(redis_url: str) -> AsyncIterator[Busy]:
    async with busy_kernel(redis_url) as busy:
        yield busy


def queue(busy: Busy) -> Queue:
    return Queue(LLM, connection=busy.redis, serializer=JSONSerializer)


def fetch(busy: Busy, job_id: str) -> Job:
    return Job.fetch(job_id, connection=busy.redis, serializer=JSONSerializer)


async def test_rq_info_shows_queues_workers_and_counts(busy: Busy) -> None:
    text = await run_tool("rq", "info", "-u", busy.caller.url)

    assert re.search(
        r"^llm\.simulated .* 3, 2 executing, 1 finished, 1 failed$", text, re.MULTILINE
    )
    assert "2 queues, 3 jobs total" in text
    assert re.search(
        r"^\S+\.\d+-[0-9a-f]{6}\.llm \(\S+ \S+ \d+\): "
        r"\S+ llm\.simulated, llm\. jobs: 1 finished, 1 failed$",
        text,
        re.MULTILINE,
    )
    assert "1 workers, 2 queues" in text

    raw = await run_tool("rq", "info", "-u", busy.caller.url, "--raw")
    assert re.search(
        r"^queue llm\.simulated 3, 2 executing, 1 finished, 1 failed$", raw, re.MULTILINE
    )
    assert re.search(r"^worker \S+\.llm \(.*\) busy llm\.simulated, llm\.", raw, re.MULTILINE)

    queues = await run_tool("rq", "info", "-u", busy.caller.url, "-Q")
    workers = await run_tool("rq", "info", "-u", busy.caller.url, "-W")
    assert ("llm" in queues, ".llm (" in queues) == (True, False)
    assert (".llm (" in workers, "executing" in workers) == (True, False)
    await busy.settle()


async def test_rqs_clean_up_never_takes_our_running_jobs_for_abandoned(busy: Busy) -> None:
    started = queue(busy).started_job_registry
    for _ in range(3):
        await run_tool("rq", "info", "-u", busy.caller.url)
        in_two_hours = round((datetime.now(UTC) + timedelta(hours=2)).timestamp())
        started.cleanup(in_two_hours)

    assert sorted(started.get_job_ids()) == sorted(busy.running)
    assert [await busy.caller.state(each) for each in busy.running] == ["running"] * 2
    assert [fetch(busy, each).get_status() for each in busy.running] == [JobStatus.STARTED] * 2
    await busy.settle()


async def test_the_queue_and_its_registries_in_rqs_api(busy: Busy) -> None:
    llm = queue(busy)

    assert sorted(each.name for each in Queue.all(connection=busy.redis)) == ["llm", LLM]
    assert sorted(llm.job_ids) == sorted([busy.suspended, *busy.queued])
    assert (llm.count, len(llm), llm.is_empty()) == (3, 3, False)
    assert [job.id for job in llm.jobs] == llm.job_ids
    assert llm.get_job_position(llm.job_ids[1]) == 1

    registries: dict[str, BaseRegistry] = {
        "started": llm.started_job_registry,
        "deferred": llm.deferred_job_registry,
        "finished": llm.finished_job_registry,
        "failed": llm.failed_job_registry,
        "scheduled": llm.scheduled_job_registry,
        "canceled": llm.canceled_job_registry,
    }
    assert {name: sorted(each.get_job_ids()) for name, each in registries.items()} == {
        "started": sorted(busy.running),
        "deferred": [busy.held],
        "finished": [busy.finished],
        "failed": [busy.failed],
        "scheduled": [],
        "canceled": [],
    }
    assert {name: each.count for name, each in registries.items()} == {
        "started": 2,
        "deferred": 1,
        "finished": 1,
        "failed": 1,
        "scheduled": 0,
        "canceled": 0,
    }
    assert busy.running[0] in llm.started_job_registry
    await busy.settle()


async def test_jobs_in_rqs_api(busy: Busy) -> None:
    statuses = {
        busy.running[0]: JobStatus.STARTED,
        busy.suspended: JobStatus.QUEUED,
        busy.queued[0]: JobStatus.QUEUED,
        busy.held: JobStatus.DEFERRED,
        busy.finished: JobStatus.FINISHED,
        busy.failed: JobStatus.FAILED,
    }
    [worker] = Worker.all(connection=busy.redis)
    for job_id, status in statuses.items():
        job = queue(busy).fetch_job(job_id)
        assert job is not None
        assert (job.id, job.origin, job.get_status()) == (job_id, LLM, status)
        assert (job.func_name, job.kwargs) == (ENTRY, {})
        assert job.args[0]["agent"] == "ada"
        assert job.enqueued_at is not None
        assert datetime.now(UTC) - job.enqueued_at < timedelta(minutes=1)
        assert job.timeout in (60, 500)
        assert job.is_started == (status == JobStatus.STARTED)
        ran = status not in (JobStatus.QUEUED, JobStatus.DEFERRED)
        assert (job.worker_name == worker.name) == ran
        assert (job.started_at is not None) == (ran or job_id == busy.suspended)
        assert (job.ended_at is not None) == (job_id in (busy.finished, busy.failed))
    await busy.settle()


async def test_results_and_failures_in_rqs_api(busy: Busy) -> None:
    finished, failed = fetch(busy, busy.finished), fetch(busy, busy.failed)

    reply = finished.return_value()
    assert reply is not None
    assert (reply["id"], reply["result"]["type"]) == (busy.finished, "llm.chat")
    assert reply["result"]["text"]
    latest = finished.latest_result()
    assert latest is not None
    assert (latest.type, latest.return_value) == (Result.Type.SUCCESSFUL, reply)

    assert failed.return_value() is None
    latest = failed.latest_result()
    assert latest is not None
    assert latest.type == Result.Type.FAILED
    assert latest.exc_string is not None
    assert "context-too-long" in latest.exc_string
    assert "shorten the conversation" in latest.exc_string
    await busy.settle()


async def test_workers_in_rqs_api(busy: Busy) -> None:
    [worker] = Worker.all(connection=busy.redis)
    assert [each.name for each in Worker.all(queue=queue(busy))] == [worker.name]
    assert Worker.count(connection=busy.redis) == 1

    assert (worker.get_state(), worker.queue_names()) == ("busy", [LLM, "llm"])
    assert (worker.successful_job_count, worker.failed_job_count) == (1, 1)
    assert worker.hostname
    assert worker.pid
    assert worker.total_working_time > 0
    assert worker.birth_date is not None
    assert worker.last_heartbeat is not None
    beat = worker.last_heartbeat

    def is_renewed() -> bool:
        worker.refresh()  # type: ignore[no-untyped-call]
        return worker.last_heartbeat is not None and worker.last_heartbeat > beat

    wait_until(is_renewed, 2 * LEASE_S)
    await busy.settle()


async def test_what_runs_longer_than_a_renewal_has_an_execution_that_can_be_stopped(
    busy: Busy,
) -> None:
    started = queue(busy).started_job_registry
    executions = dict(started.get_job_and_execution_ids())
    assert sorted(executions) == sorted(busy.running)
    stopped, other = busy.running

    execution = wait_until(lambda: find_execution(busy, stopped, executions[stopped]))
    assert execution is not None
    assert execution.worker_name == fetch(busy, stopped).worker_name
    send_stop_execution_command(busy.redis, stopped, executions[stopped])

    reply = await busy.caller.hear(stopped)
    assert reply.error is not None
    assert reply.error.code == "cancelled"
    assert await busy.caller.state(other) == "running"
    await busy.settle()


def find_execution(busy: Busy, job_id: str, execution_id: str) -> Execution | None:
    try:
        return Execution.fetch(execution_id, job_id, busy.redis)
    except ValueError:
        return None


async def test_rq_suspend_stops_claiming_and_rq_resume_starts_it(busy: Busy) -> None:
    [kept, *rest] = busy.running
    await run_tool("rq", "suspend", "-u", busy.caller.url)
    await busy.cancel(kept)

    # A slot is free, jobs wait, a policy that preempts: nothing is claimed and nothing yields.
    await busy.caller.publish_policy(name="rr", preempt="waiting", quantum_s=0.1)
    heartbeat = busy.redis.hget(worker_key(busy), "last_heartbeat")
    wait_until(lambda: busy.redis.hget(worker_key(busy), "last_heartbeat") != heartbeat)
    assert [await busy.caller.state(each) for each in rest] == ["running"]
    assert busy.redis.llen(f"rq:queue:{LLM}") == 3

    await run_tool("rq", "resume", "-u", busy.caller.url)
    await wait_until_async(lambda: busy.redis.zcard("rq:aios:leases:llm") == 2)
    await busy.settle()


def worker_key(busy: Busy) -> str:
    [worker] = Worker.all(connection=busy.redis)
    return str(worker.key)


async def test_a_worker_that_leaves_is_gone_for_rqs_tools(busy: Busy) -> None:
    [worker] = Worker.all(connection=busy.redis)
    send_shutdown_command(busy.redis, worker.name)

    await wait_until_async(lambda: not Worker.all(connection=busy.redis))
    assert queue(busy).started_job_registry.count == 0
    assert sorted(queue(busy).job_ids) == sorted([*busy.running, busy.suspended, *busy.queued])
    await busy.settle()
