"""The border around handlers: whatever comes of a job, its caller hears exactly one thing."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from aios_broker.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    ForeignJob,
    KernelError,
    ModuleError,
    UnknownModule,
)
from aios_broker.contract.job import decode_job, syscall_id_of
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Reply, encode
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.records import Ending, Lease, Pause
from aios_broker.queues.tokens import Tokens
from aios_broker.retry import patiently
from aios_workers.runtime.run import (
    Done,
    Handler,
    Outcome,
    Parked,
    PromptHandler,
    Run,
    Suspended,
    SuspendReason,
)

logger = logging.getLogger(__name__)

_CRASHED = "a handler failed: syscall %s"

MAX_REPLY_BYTES = 32 * 1024 * 1024  # embeddings of the most and longest texts fit


class Executor:
    """Opens jobs, runs the handler, and turns every way it can end into an ending or a pause."""

    def __init__(self, handler: Handler, module: Module, tokens: Tokens, worker: str) -> None:
        self._handler = handler
        self._module = module
        self._tokens = tokens
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
        except KernelError as error:
            return self._failed(run, error)
        except Exception as error:  # the border: a module raised, its caller hears it
            logger.exception(_CRASHED, lease.job_id)
            return self._crashed(run, error)

    async def answer(self, run: Run) -> Ending | Pause:
        """Run a job to its end or its suspension; raises nothing but CancelledError."""
        lease = run.lease
        limit = asyncio.timeout(lease.deadline_in_s)
        try:
            async with limit:
                syscall = await self._open(lease)
                return self._settled(run, await self._handler.run(run, syscall))
        except KernelError as error:
            return self._failed(run, error)
        except Exception as error:  # the border: a module raised, its caller hears it
            if isinstance(error, TimeoutError) and limit.expired():
                return self._failed(run, _late())
            logger.exception(_CRASHED, lease.job_id)
            return self._crashed(run, error)

    def stopped(self, run: Run) -> Ending | Pause | None:
        """Return what becomes of a run whose task was cancelled; None: nothing is written."""
        match run.stopping:
            case "lost":
                return None
            case "stopped":
                return self._failed(run, Cancelled("its worker was told to stop it"))
            case "drain" | None:
                return _pause(run, None, "drain")

    async def _open(self, lease: Lease) -> Syscall:
        """Read the syscall; check who it is from, unless the submit function vouches for that."""
        syscall = decode_job(lease.data, lease.job_id, trusted=lease.trusted)
        if not lease.trusted:
            await patiently(
                lambda: self._tokens.verify(
                    syscall.token, agent=syscall.agent, tenant=syscall.tenant
                )
            )
        return self._of_our_module(syscall)

    def _of_our_module(self, syscall: Syscall) -> Syscall:
        if syscall.module != self._module:
            raise UnknownModule(
                f"{syscall.kind!r} is not of module {self._module!r}, whose queue it was in",
                field="body.type",
                remedy=f"enqueue it in {syscall.module!r}",
            )
        return syscall

    def _settled(self, run: Run, outcome: Outcome) -> Ending | Pause:
        match outcome:
            case Done():
                return self._finished(run, outcome, syscall_id_of(run.lease.job_id))
            case Suspended(snapshot, reason):
                return _pause(run, snapshot, reason)
            case Parked():
                return _pause(run, None, "park")

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

    def _crashed(self, run: Run, error: Exception) -> Ending:
        """A handler raised what is no error of the kernel's."""
        return self._failed(
            run, ModuleError(f"{type(error).__name__}: {error}", remedy="see the worker's log")
        )

    def _failed(self, run: Run, error: KernelError) -> Ending:
        syscall_id = syscall_id_of(run.lease.job_id)
        error.syscall_id = syscall_id
        reply = Reply(syscall_id, error=error.to_wire(), timings=run.timings(), worker=self._worker)
        foreign = isinstance(error, ForeignJob)
        if foreign:
            logger.warning("quarantined job %s: %s", run.lease.job_id, error)
        return _ending(run, "failed", encode(reply), quarantine=foreign)


def _ending(
    run: Run, status: Literal["finished", "failed"], reply: bytes, *, quarantine: bool = False
) -> Ending:
    use = run.use()
    return Ending(run.lease, status, reply, use.ran_s, use.tokens, quarantine, use.prompt_tokens)


def _pause(run: Run, snapshot: bytes | None, reason: SuspendReason | Literal["park"]) -> Pause:
    use = run.use()
    return Pause(run.lease, snapshot, use.ran_s, use.tokens, reason, use.prompt_tokens)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "it outlived its deadline", field="deadline_s", remedy="allow it more time"
    )
