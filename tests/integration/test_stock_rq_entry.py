"""Stock RQ and our kernel run each other's jobs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.version import VERSION

from aios_broker.contract.errors import KernelError
from aios_broker.contract.job import ENTRY, encode_job
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import Syscall, ToolEcho, new_id
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.rq import current_job, url_of
from aios_workers.entry import syscall
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module, tool_module
from tests.caller import ROOT, TIMEOUT_S, Caller, chat, chat_result, running_worker
from tests.waiting import wait_until_async

ECHO = {"type": "tool.echo", "text": "hi"}


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    yield caller
    await caller.aclose()


def enqueue(url: str, module: str, *arguments: object) -> Job:
    """Enqueue with nothing but RQ."""
    with redis.Redis.from_url(url) as client:
        return Queue(module, connection=client, serializer=JSONSerializer).enqueue(
            ENTRY, *arguments
        )


def fetch(url: str, job_id: str) -> Job:
    return Job.fetch(job_id, connection=redis.Redis.from_url(url), serializer=JSONSerializer)


async def run_stock_worker(url: str, module: str) -> str:
    """Let a stock RQ worker empty a queue; return its log."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("broker", "workers")),
        "AIOS_LLM_CORE": "simulated",
        "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rq.cli", "worker", module, "--burst", "--serializer", "json"),
        *("--url", url),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(TIMEOUT_S):
        output, _ = await process.communicate()
    return output.decode()


async def test_our_worker_runs_what_a_stock_producer_enqueued(caller: Caller) -> None:
    token = await caller.token("ada")
    job = enqueue(caller.url, "tool", {"agent": "ada", "token": token, "body": ECHO})

    async with running_worker(caller.url, "tool", await tool_module(4)):
        await wait_until_async(lambda: fetch(caller.url, job.id).is_finished)

    value = fetch(caller.url, job.id).return_value()
    assert value is not None
    assert value["result"] == {"type": "tool.echo", "text": "hi"}


def llm_core(name: str) -> SimulatedCore:
    return SimulatedCore(SimulatedCoreConfig(model=f"model-of-{name}", name=name, slots=2))


async def test_a_stock_job_goes_to_the_core_that_it_names_whoever_takes_it(caller: Caller) -> None:
    """And waits there for its worker; a name that is nobody's is refused as it always is."""
    body = {"type": "llm.chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    ada = {"agent": "ada", "token": await caller.token("ada")}
    asked = {**ada, "body": {**body, "core": "model-of-named"}}
    async with running_worker(caller.url, "llm", await llm_module(llm_core("named"))):
        await wait_until_async(lambda: _knows(caller, "named"))
    async with running_worker(caller.url, "llm", await llm_module(llm_core("taker"))):
        job = enqueue(caller.url, "llm", asked)
        nobodys = enqueue(caller.url, "llm", {**ada, "body": {**body, "core": "nobody"}})
        await wait_until_async(lambda: fetch(caller.url, job.id).origin == "llm.named")
        await wait_until_async(lambda: fetch(caller.url, nobodys.id).is_failed)
        async with running_worker(caller.url, "llm", await llm_module(llm_core("named"))):
            await wait_until_async(lambda: fetch(caller.url, job.id).is_finished)

    value = fetch(caller.url, job.id).return_value()
    assert value is not None
    assert value["result"]["core"] == "named"
    refused = fetch(caller.url, nobodys.id).latest_result()
    assert refused is not None
    assert "unknown-core" in str(refused.exc_string)


async def _knows(caller: Caller, core: str) -> bool:
    return core in {view.card.name for view in await caller.control.cores()}


async def test_a_stock_job_that_fails_here_has_failed_for_rq(caller: Caller) -> None:
    job = enqueue(caller.url, "tool", {"agent": "ada", "body": ECHO})

    async with running_worker(caller.url, "tool", await tool_module(4)):
        await wait_until_async(lambda: fetch(caller.url, job.id).is_failed)

    result = fetch(caller.url, job.id).latest_result()
    assert result is not None
    assert "access-denied" in str(result.exc_string)


async def test_a_stock_worker_runs_our_echo(caller: Caller) -> None:
    [syscall_id] = await caller.submit(ToolEcho("slow path"))

    log = await run_stock_worker(caller.url, "tool")

    reply = await caller.hear(syscall_id)
    assert reply.unwrap() == EchoResult("slow path"), log
    job = fetch(caller.url, syscall_id)
    assert job.is_finished, log
    assert (job.return_value() or {})["id"] == syscall_id
    assert (await caller.control.queue("tool")).running == 0


async def test_a_stock_worker_generates_the_same_answer(caller: Caller) -> None:
    body = chat("Same?", max_tokens=50, temperature=0.9, seed=5)
    core = SimulatedCore(SimulatedCoreConfig(slots=2, context_tokens=2048, end_probability=0.0))
    async with running_worker(caller.url, "llm", await llm_module(core)):
        expected = await caller.chat(body)
    [syscall_id] = await caller.submit(body)

    log = await run_stock_worker(caller.url, "llm.simulated")

    assert chat_result(await caller.hear(syscall_id)) == expected, log


async def test_a_failure_on_a_stock_worker_is_told_to_both_sides(caller: Caller) -> None:
    [syscall_id] = await caller.submit(chat("Too long", max_tokens=100_000))

    await run_stock_worker(caller.url, "llm")

    reply = await caller.hear(syscall_id)
    assert reply.error is not None
    assert reply.error.code == "context-too-long"
    assert fetch(caller.url, syscall_id).is_failed


async def test_a_stock_worker_checks_the_token_too(caller: Caller) -> None:
    job = enqueue(caller.url, "tool", {"agent": "ada", "body": ECHO})

    await run_stock_worker(caller.url, "tool")

    result = fetch(caller.url, job.id).latest_result()
    assert result is not None
    assert "AccessDenied" in str(result.exc_string)


async def test_a_job_that_a_worker_of_ours_runs_is_not_adopted(caller: Caller) -> None:
    queue = caller.queue("tool")
    [syscall_id] = await caller.submit(ToolEcho())
    await queue.claim("ours", ClaimRequest(1, 10.0))

    assert await queue.claim_one(syscall_id, "stock", 10.0) is None


def test_outside_of_an_rq_job_the_entry_says_so() -> None:
    assert current_job() is None
    with pytest.raises(KernelError, match="outside of an RQ job"):
        syscall({"agent": "ada", "body": ECHO})


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6390/3",
        "redis://:p%40ss@example.org:7000/0",
        "rediss://user:secret@[::1]:6380/1",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_a_clients_address_is_read_back(url: str) -> None:
    client = redis.Redis.from_url(url)
    again = redis.Redis.from_url(url_of(client))

    wanted = client.connection_pool.connection_kwargs
    found = again.connection_pool.connection_kwargs
    for name in ("host", "port", "path", "username", "password"):
        assert found.get(name) == wanted.get(name)
    assert (found.get("db") or 0) == (wanted.get("db") or 0)
    assert again.connection_pool.connection_class is client.connection_pool.connection_class


def test_the_pinned_major_version_of_rq_is_installed() -> None:
    assert VERSION.startswith("3.")


def test_the_entry_of_job_data_exists() -> None:
    assert f"{syscall.__module__}.{syscall.__name__}" == ENTRY
    assert ENTRY.encode() in encode_job(Syscall(new_id(), "ada", ToolEcho()))
