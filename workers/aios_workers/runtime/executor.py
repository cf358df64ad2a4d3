"""What runs a leased job: its handler, and the executor between it and the queue.

Whatever comes of a job, its caller hears exactly one thing.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Literal, Protocol, TypeVar, runtime_checkable

from msgspec import Struct
from prometheus_client.core import Metric

from aios_broker import log
from aios_broker.contract.errors import (
    Cancelled,
    DatabaseUnavailable,
    DeadlineExceeded,
    ForeignJob,
    KernelError,
    ModuleError,
    UnknownModule,
)
from aios_broker.contract.job import decode_job, syscall_id_of, without_tokens
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Reply, Result, encode
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import Ending, Lease, Suspension
from aios_broker.retry import patiently
from aios_workers.runtime.runs import Run, SuspendReason

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 32 * 1024 * 1024  # embeddings of the most and longest texts fit

T = TypeVar("T")


class Done(Struct, frozen=True):
    """The handler has the result."""

    result: Result


class Suspended(Struct, frozen=True):
    """The handler stopped half-way; `snapshot` is all that is needed to go on."""

    snapshot: bytes | None
    reason: SuspendReason
    core: str = ""  # who goes on, see Suspension.core


class Parked(Struct, frozen=True):
    """A person has to decide first: it leaves the worker, and begins anew when it comes back."""


Outcome = Done | Suspended | Parked


class BackgroundTasks:
    """What is done beside a run: questions to the kernel, aborts. Nothing is left behind."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Begin a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait for all, those included that they start."""
        while self._tasks:
            tasks = frozenset(self._tasks)
            await asyncio.gather(*tasks)
            # By hand: from Python 3.12 on, gather over ended tasks does not let the loop run, and
            # their callbacks would never come to it.
            self._tasks -= tasks

    def drop(self) -> None:
        """Cancel all."""
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()


async def gathered(works: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Return what all return; where one fails the others are cancelled before it is raised."""
    tasks = [asyncio.get_running_loop().create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise


class Handler(Protocol):
    """A module's code: what runs a syscall. Built in main, one per worker process."""

    @property
    def capacity(self) -> int:
        """How many syscalls it runs at the same time."""
        ...

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run one syscall.

        Raises KernelError for what the caller is to know; anything else becomes ModuleError.
        Cancelled when the run has to stop at once.
        """
        ...

    async def close(self) -> None:
        """Free what it holds. Safe to call twice."""
        ...


@runtime_checkable
class Measured(Protocol):
    """A part of a worker that has numbers of its own for the worker's page of metrics."""

    def metrics(self) -> Iterable[Metric]:
        """Yield them; called from another thread."""
        ...


@runtime_checkable
class PromptHandler(Protocol):
    """A handler that has some answers ready: they need no task, no timer, no turn of the loop."""

    def answer_at_once(self, run: Run, syscall: Syscall) -> Done | None:
        """Return the result where nothing has to be waited for; None: `run` answers it.

        Takes some microseconds at the most: the worker's loop stands still meanwhile. Raises as
        `run` does.
        """
        ...


class Executor:
    """Opens jobs, runs the handler, makes every way it can end an ending or a suspension."""

    def __init__(self, handler: Handler, module: Module, queue: ModuleQueue, worker: str) -> None:
        self.handler = handler
        self._module = module
        self._queue = queue
        self._worker = worker
        self._prompt = handler if isinstance(handler, PromptHandler) else None

    @property
    def is_prompt(self) -> bool:
        """Whether the handler answers most jobs without waiting for anything."""
        return self._prompt is not None

    def answer_at_once(self, run: Run) -> Ending | None:
        """Answer a job for which nothing has to be waited; None: `answer` does it."""
        lease = run.lease
        if self._prompt is None or not lease.trusted or lease.deadline_in_s <= 0:
            return None
        try:
            syscall = self._of_our_module(decode_job(lease.data, lease.job_id))
            done = self._prompt.answer_at_once(run, syscall)
            return None if done is None else self._finished(run, done, syscall.id)
        except Exception as error:  # noqa: BLE001  whatever a module raises, its caller hears it
            return self._failed(run, error)

    async def answer(self, run: Run) -> Ending | Suspension:
        """Run a job to its end or its suspension; raises nothing but CancelledError."""
        lease = run.lease
        limit = asyncio.timeout(lease.deadline_in_s)
        try:
            async with limit:
                syscall = await self._open(lease)
                log.about.set(
                    {
                        "syscall": syscall.id,
                        "program": syscall.program,
                        "agent": syscall.agent,
                        "tenant": syscall.tenant,
                    }
                )
                return self._entry(run, await self.handler.run(run, syscall))
        except Exception as error:  # noqa: BLE001  whatever a module raises, its caller hears it
            late = isinstance(error, TimeoutError) and limit.expired()
            return self._failed(run, _late() if late else error)

    def stopped(self, run: Run) -> Ending | Suspension | None:
        """Return what becomes of a run whose task was cancelled; None: nothing is written."""
        match run.stopping:
            case "lost":
                return None
            case "stopped":
                return self._failed(run, Cancelled("its worker was told to stop it"))
            case "drain" | None:
                return _suspension(run, None, "drain")

    async def _open(self, lease: Lease) -> Syscall:
        """Read the syscall; check who it is from, unless the submit function vouches for that."""
        if lease.trusted:
            return self._of_our_module(decode_job(lease.data, lease.job_id))
        try:
            syscall = decode_job(lease.data, lease.job_id, trusted=False)
            await patiently(lambda: self._queue.vouch(lease, syscall))
        except KernelError:
            await patiently(lambda: self._queue.disarm(lease))
            raise
        return self._of_our_module(without_tokens(syscall))

    def _of_our_module(self, syscall: Syscall) -> Syscall:
        if syscall.module != self._module:
            raise UnknownModule(
                f"{syscall.kind!r} is not of module {self._module!r}, whose queue it was in",
                field="body.type",
                remedy=f"enqueue it in {syscall.module!r}",
            )
        return syscall

    def _entry(self, run: Run, outcome: Outcome) -> Ending | Suspension:
        match outcome:
            case Done():
                return self._finished(run, outcome, syscall_id_of(run.lease.job_id))
            case Suspended(snapshot, reason, core):
                return _suspension(run, snapshot, reason, core)
            case Parked():
                return _suspension(run, None, "park")

    def _finished(self, run: Run, done: Done, syscall_id: str) -> Ending:
        reply = Reply(syscall_id, done.result, timings=run.timings(), worker=self._worker)
        data = encode(reply)
        if len(data) > MAX_REPLY_BYTES:  # Redis would serve nobody else meanwhile
            return self._failed(
                run,
                ModuleError(
                    f"the result has {len(data)} bytes, the limit is {MAX_REPLY_BYTES}",
                    field="result",
                    remedy="ask for less at a time, or keep it in storage",
                ),
            )
        return _ending(run, "finished", data)

    def _failed(self, run: Run, error: Exception) -> Ending:
        error = self._told(run, error)
        syscall_id = syscall_id_of(run.lease.job_id)
        error.syscall_id = syscall_id
        reply = Reply(syscall_id, error=error.to_wire(), timings=run.timings(), worker=self._worker)
        foreign = isinstance(error, ForeignJob)
        if foreign:
            logger.warning("quarantined job %s: %s", run.lease.job_id, error, extra=_named(run))
        return _ending(run, "failed", encode(reply), quarantine=foreign)

    def _told(self, run: Run, error: Exception) -> KernelError:
        """Return an error as its caller hears it; what servers and libraries say, the log has.

        Their words may be another agent's: a database repeats the key that is there already.
        """
        if isinstance(error, DatabaseUnavailable):
            logger.warning("syscall %s: %s", run.lease.job_id, error, extra=_named(run))
            return DatabaseUnavailable(
                "the kernel's database does not answer", retry_after_s=error.retry_after_s
            )
        if isinstance(error, KernelError):
            return error
        logger.error(
            "a handler failed: syscall %s", run.lease.job_id, exc_info=error, extra=_named(run)
        )
        return ModuleError(
            f"the module {self._module} failed: {type(error).__name__}",
            remedy="see the worker's log, where the syscall's id stands",
        )


def _ending(
    run: Run, status: Literal["finished", "failed"], reply: bytes, *, quarantine: bool = False
) -> Ending:
    use = run.use()
    return Ending(
        run.lease,
        status,
        reply,
        use.ran_s,
        use.tokens,
        quarantine,
        use.prompt_tokens,
        use.charge,
    )


def _suspension(
    run: Run, snapshot: bytes | None, reason: SuspendReason | Literal["park"], core: str = ""
) -> Suspension:
    use = run.use()
    return Suspension(
        run.lease, snapshot, use.ran_s, use.tokens, reason, use.prompt_tokens, use.charge, core
    )


def _named(run: Run) -> dict[str, str]:
    return {"syscall": syscall_id_of(run.lease.job_id)}


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "it outlived its deadline", field="deadline_s", remedy="allow it more time"
    )
