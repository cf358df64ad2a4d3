"""A stock RQ worker beside a running kernel: each job runs once, and nothing foreign ever does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from rq import Queue
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer, Serializer

from aios_broker.contract.job import encode_job
from aios_broker.contract.reply import EchoResult, Reply, encode
from aios_broker.contract.syscall import Need, Syscall, ToolEcho, new_id
from aios_broker.queues.admission import Admission, Resource
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Ending, JobMetadata, Submission
from tests.busy_kernel import Listener, at_rest, busy_kernel
from tests.caller import ROOT, WorkerProcess, chat, chat_result
from tests.queue_user import submitted
from tests.scheduler_process import SchedulerProcess
from tests.waiting import wait_until_async

LEASE_S = 2.5  # renewed in time also where a machine stands still for a second
SLOW = {
    "AIOS_LLM_CORE": "simulated",
    "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "20",
    "AIOS_WORKER_LEASE_S": str(LEASE_S),
}
FAST = {**SLOW, "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "0"}


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Listener]:
    caller = Listener(redis_url)
    yield caller
    await caller.aclose()


@pytest.fixture
def scheduler(redis_url: str, tmp_path: Path) -> Iterator[SchedulerProcess]:
    with SchedulerProcess(redis_url, tmp_path / "scheduler.log") as scheduler:
        yield scheduler


@asynccontextmanager
async def stock_worker(url: str, module: str, settings: dict[str, str]) -> AsyncIterator[Process]:
    """Run `rq worker` in a session of its own; kill all of it at the end."""
    folders = (ROOT / "broker", ROOT / "workers")
    worker = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("rq"),
        "worker",
        module,
        "--url",
        url,
        "--serializer",
        "json",
        "--quiet",
        stdout=DEVNULL,
        start_new_session=True,
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(map(str, folders))},
    )
    try:
        yield worker
    finally:
        kill_all(worker)
        await worker.wait()


def kill_all(worker: Process) -> None:
    """Kill a stock worker and its horses, which lead process groups of their own."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == worker.pid:  # the session
                os.kill(int(entry.name), signal.SIGKILL)


async def claims(caller: Listener) -> Counter[str]:
    """Return how often each syscall was claimed, by the journal."""
    entries = await caller.connection.execute("XRANGE", "rq:aios:journal", "-", "+")
    lines = [line for _, fields in entries for line in fields[3].decode().split("\n")]
    return Counter(line.split("\t")[1] for line in lines if line.startswith("claim\t"))


async def test_a_long_job_of_a_stock_worker_is_not_run_a_second_time(
    caller: Listener, scheduler: SchedulerProcess
) -> None:
    [syscall_id] = await caller.submit(chat("a story", max_tokens=120))  # 6 s: more than two leases

    async with stock_worker(caller.url, "llm", SLOW):
        await wait_until_async(lambda: caller.connection.execute("ZCARD", "rq:aios:leases:llm"))
        with WorkerProcess(caller.url, "llm", **FAST):  # would take it at once, were it free
            reply = await caller.hear(syscall_id)
            await at_rest(caller)

    assert len(chat_result(reply).output_ids) == 120
    assert reply.timings.attempts == 1
    assert ".rq" in reply.worker
    assert await claims(caller) == {syscall_id: 1}


async def test_ours_and_stock_workers_share_a_queue(
    caller: Listener, scheduler: SchedulerProcess
) -> None:
    async with stock_worker(caller.url, "tool", FAST):
        ids = await caller.submit(*(ToolEcho(str(n)) for n in range(4)))
        await caller.hear(ids[0])
        with WorkerProcess(caller.url, "tool"):
            ids += await caller.submit(*(ToolEcho(str(n)) for n in range(4, 60)))
            replies: list[Reply] = await caller.hear_all(ids)
            await at_rest(caller)

    assert [reply.unwrap() for reply in replies] == [EchoResult(str(n)) for n in range(60)]
    assert await claims(caller) == dict.fromkeys(ids, 1)
    assert len({reply.worker.rpartition(".")[2] for reply in replies}) == 2  # both took part


async def test_a_stock_worker_waits_for_what_its_job_needs(
    caller: Listener, scheduler: SchedulerProcess
) -> None:
    """RQ pops what is next; our entry point asks whether it is admitted before it runs it."""
    queue, once = caller.queue("tool"), (Need("tool", "w"),)
    await Admission(Functions(caller.connection)).set_limit("tool", Resource.tool("w"), 1)

    def submission(text: str) -> Submission:
        call = Syscall(new_id(), "ada", ToolEcho(text))
        return Submission(call.id, encode_job(call), JobMetadata("ada", call.kind), "", once)

    first, second = submission("first"), submission("second")
    await submitted(queue, [first, second])
    [lease] = await queue.claim("ours", ClaimRequest(1, 60.0))
    barred = Keys().job(second.job_id)

    async with stock_worker(caller.url, "tool", FAST) as worker:
        await wait_until_async(lambda: has_asked_for_a_second(caller))
        assert worker.returncode is None
        assert await caller.connection.execute("HGET", barred, "status") == b"started"  # by RQ
        assert await caller.connection.execute("HEXISTS", barred, "aios_attempt") == 0
        answer = encode(Reply(first.job_id, EchoResult("first")))
        await queue.finish("ours", [Ending(lease, "finished", answer, 0.1)], ClaimRequest(0, 1.0))
        await wait_until_async(lambda: caller.connection.execute("HGET", barred, "aios_reply"))
        await at_rest(caller)

    assert await claims(caller) == {first.job_id: 1, second.job_id: 1}


async def has_asked_for_a_second(caller: Listener) -> bool:
    """Return whether the entry point in a stock worker has called our functions that long."""
    clients = (await caller.connection.execute("CLIENT", "LIST")).decode().splitlines()
    found = [dict(part.split("=", 1) for part in line.split()) for line in clients]
    return any(
        client["name"].partition(".rq")[1] and client["cmd"] == "fcall" and int(client["age"]) >= 1
        for client in found
    )


async def test_the_job_of_a_stock_worker_that_was_killed_runs_again(
    caller: Listener, scheduler: SchedulerProcess
) -> None:
    [syscall_id] = await caller.submit(chat("a story", max_tokens=400))
    async with stock_worker(caller.url, "llm", SLOW) as worker:
        await wait_until_async(lambda: caller.connection.execute("ZCARD", "rq:aios:leases:llm"))
        kill_all(worker)

    with WorkerProcess(caller.url, "llm", **FAST):
        reply = await caller.hear(syscall_id)
        await caller.hear_more()

    assert len(chat_result(reply).output_ids) == 400
    assert reply.timings.attempts == 2
    assert len(caller.replies[syscall_id]) == 1


@pytest.mark.parametrize("serializer", [JSONSerializer, DefaultSerializer])
@pytest.mark.parametrize("function", ["os.system", "subprocess.getoutput"])
async def test_a_stock_job_that_names_other_code_is_quarantined_and_never_run(
    redis_url: str, tmp_path: Path, serializer: Serializer, function: str
) -> None:
    trap = tmp_path / "trap"
    async with busy_kernel(redis_url) as busy:
        queue = Queue("llm", connection=busy.redis, serializer=serializer)
        job = queue.enqueue(function, f"touch {trap}", at_front=True)
        await busy.cancel(busy.running[0])  # a slot is free: it is the next

        def is_failed() -> bool:
            return Job.fetch(job.id, busy.redis, serializer).is_failed

        await wait_until_async(is_failed)
        await busy.settle()

        result = Job.fetch(job.id, busy.redis, JSONSerializer).latest_result()
        assert result is not None
        assert "foreign-job" in str(result.exc_string)
        assert "aios_workers.entry.syscall" in str(result.exc_string)
        assert busy.redis.zscore("rq:aios:quarantine:llm", job.id)
    assert not trap.exists()
