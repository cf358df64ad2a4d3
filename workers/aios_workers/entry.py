"""The public entry point of jobs: `aios_workers.entry.syscall`.

Our workers know it by name and never import it. A stock RQ worker does, and calls it: then the
syscall runs right here, on the slow path, without slices: a core is built for this one job.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from aios_broker.config import environment
from aios_broker.contract.errors import Cancelled, KernelError, UnknownModule, from_wire
from aios_broker.contract.reply import decode_reply
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import Ending, Lease, PolicyRow, WorkerCard
from aios_broker.queues.rq import StockJob, current_job
from aios_broker.redis.connection import Connection
from aios_broker.retry import patiently
from aios_workers.config import WorkerConfig
from aios_workers.runtime.loop import WorkerSpec
from aios_workers.runtime.registry import load_modules, wired, worker_name
from aios_workers.runtime.runs import RENEWALS_PER_LEASE, Run

logger = logging.getLogger(__name__)

ADMITTED_EVERY_S = 0.25  # how often a job that may not run now is asked for again
UNSLICED = PolicyRow(name="stock", preempt="none", quantum_s=math.inf, quantum_tokens=2**31)


def syscall(request: object) -> object:
    """Run the syscall of the RQ job that is being executed; return its reply as a dict.

    Args:
        request: The syscall as an object: agent, token, body and so on. It is read again, and
            checked, from the job's own record, as our workers do it.

    Raises:
        KernelError: What the syscall ended with; RQ's worker records it as the job's failure.
            Also when this is called outside of an RQ job.
    """
    job = current_job()
    if job is None:
        raise KernelError(
            f"a syscall of type {type(request).__name__} was run outside of an RQ job",
            remedy="enqueue it, or use aios_sdk",
        )
    reply = asyncio.run(_answer(job))
    if error := decode_reply(reply).error:
        raise from_wire(error)
    return msgspec.json.decode(reply)


async def _answer(job: StockJob) -> bytes:
    """Take the job's lease, run it, and tell whoever waits; return the encoded reply."""
    module = next((each for each in MODULES if each == job.queue.partition(".")[0]), None)
    if module is None:
        raise UnknownModule(
            f"no module {job.queue!r}", field="module", remedy=f"use one of {', '.join(MODULES)}"
        )
    settings = {**environment(), "AIOS_REDIS_URL": job.redis_url}
    config = WorkerConfig.from_environment(settings)
    keys = Keys(job.key_prefix)
    spec = WorkerSpec(worker_name("rq"), module, job.redis_url, keys, config.limits)
    connection = Connection(job.redis_url, name=spec.name)
    try:
        queue = ModuleQueue(Functions(connection), spec.module, spec.keys)
        lease = await _admitted(queue, job.job_id, spec)
        if lease is None:
            state, reply = await queue.attach(job.job_id, "", None)
            if reply is None:
                why = f"another worker answers it: it is {state}"
                raise KernelError(why, remedy="wait for its reply")
            return reply
        try:
            ending = await _run(queue, spec, config, lease)
        finally:
            if not lease.trusted:
                await patiently(lambda: _forget_token(queue, job))
        await patiently(lambda: queue.finish_external(spec.name, ending))
        await queue.unregister(spec.name)
        return ending.reply
    finally:
        await connection.aclose()


async def _forget_token(queue: ModuleQueue, job: StockJob) -> None:
    """Have RQ keep of the job what its record has by now: its token was taken out of it."""
    fields = ("data", "description")
    data, description = await queue.functions.connection.execute(
        "HMGET", queue.keys.job(job.job_id), *fields
    )
    if data is not None:
        job.take_over(data, description.decode())


async def _admitted(queue: ModuleQueue, job_id: str, spec: WorkerSpec) -> Lease | None:
    """Wait until the job is admitted, or ends; RQ has popped it: nobody else would run it."""
    while True:
        lease = await queue.claim_one(job_id, spec.name, spec.limits.lease_s)
        if lease != "barred":
            return lease
        await asyncio.sleep(ADMITTED_EVERY_S)


async def _run(queue: ModuleQueue, spec: WorkerSpec, config: WorkerConfig, lease: Lease) -> Ending:
    async with AsyncExitStack() as stack:
        modules = await load_modules([spec.module], config, spec.name, stack)
        executor, card = await stack.enter_async_context(
            wired(queue, spec, modules[spec.module], lambda: UNSLICED, may_leave=False)
        )
        run = Run(lease)
        run.task = asyncio.create_task(executor.answer(run))
        await stack.enter_async_context(_renewed(queue, run, card, spec.limits.lease_s))
        with contextlib.suppress(asyncio.CancelledError):
            outcome = await run.task
            if isinstance(outcome, Ending):
                return outcome
    raise Cancelled("its lease was taken away", remedy="see who cancelled it: `aios journal`")


@asynccontextmanager
async def _renewed(
    queue: ModuleQueue, run: Run, card: WorkerCard, lease_s: float
) -> AsyncIterator[None]:
    """Keep the lease alive for the length of a block; when it is gone, stop the run."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease_s / RENEWALS_PER_LEASE)
            try:
                [verdict] = await patiently(lambda: queue.renew(card, [run.lease], lease_s))
            except KernelError as error:  # refused this time: the next may be taken
                logger.warning("the lease of %s could not be renewed: %s", run.lease.job_id, error)
                continue
            if verdict == "lost":
                run.stop("lost")

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
