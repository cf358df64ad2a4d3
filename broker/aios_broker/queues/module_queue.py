"""The run queue of one module: what clients and workers do with it.

Each method is one Redis function call, atomic and fenced, for as many jobs as are at hand.
All of them may be sent again after RedisUnavailable: submit is idempotent by id, the others by
attempt, and use is told as totals since the claim, which may be told twice.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from aios_broker.contract.errors import (
    KernelError,
    QueueFull,
    QuotaExceeded,
    RedisFull,
    UnknownCore,
)
from aios_broker.contract.names import Module
from aios_broker.contract.needs import checked_needs
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import refused
from aios_broker.queues.records import (
    Ending,
    JobMetadata,
    Lease,
    Pause,
    SliceUse,
    SliceVerdict,
    Submission,
    WorkerCard,
    iso_now,
)
from aios_broker.redis.connection import Answer, Argument, Connection

logger = logging.getLogger(__name__)

RESULT_TTL_S = 60  # how long a reply can be fetched again by id
FAILURE_TTL_S = 3600  # failed jobs stay longer: somebody will want to look at them
FULL_PAUSE_S = 0.2  # between looks at the queue of a Redis that is full
BLOCK_S = 2.0  # how long one blocking look lasts; then the caller sees to its other duties

_NEWCOMER = (0, 0, 0, 0, 0, 0)  # what a lease says of the past of a job that has none

SubmitStatus = Literal["queued", "known", "ended"]
_encode = msgspec.json.Encoder().encode
_SUBMIT_STATUS: dict[int, SubmitStatus] = {1: "queued", 2: "known", 3: "ended"}


@dataclass(frozen=True, slots=True)
class Differs:
    """The id is known with other data, to the byte; nobody was told to wait for it."""

    data: bytes  # what it was published with


Refusal = QueueFull | QuotaExceeded | UnknownCore | Differs


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of a batch of endings or pauses, and the jobs claimed in the same step."""

    accepted: list[bool]  # False: the lease was gone; the result was dropped, another answers
    leases: list[Lease]


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """How many more jobs a worker takes, and which."""

    want: int
    lease_s: float
    cores: tuple[str, ...] = ()  # model names it serves; jobs that need another are skipped


class ModuleQueue:
    """One module's queue, seen by clients and workers."""

    def __init__(self, functions: Functions, module: Module, keys: Keys | None = None) -> None:
        self.module = module
        self.keys = keys or Keys()
        self.functions = functions
        self._key = self.keys.queue(module)

    async def submit(self, jobs: Sequence[Submission]) -> list[SubmitStatus | Refusal]:
        """Publish of these jobs what may be published, in one step; return what came of each.

        Acknowledged (a status) means: it will reach exactly one terminal state; for one that has
        ended the stored reply is pushed to `client` again. One that is refused (QueueFull,
        QuotaExceeded, UnknownCore) leaves nothing behind, and the others do not hear of it. Of one
        agent's jobs those without room are the last ones. Sent again after a lost answer, what was
        published is `known` and what was refused may be published now: whoever has not read a
        refusal has not been refused.

        Raises:
            InvalidSyscall: a job has more needs than it may, or they contradict each other.
        """
        answer = await self._call("submit", _published(jobs))
        return [
            _SUBMIT_STATUS[each] if isinstance(each, int) else self._refusal(each)
            for each in answer
        ]

    def _refusal(self, answer: Answer) -> Refusal:
        match answer:
            case [b"full", waiting, limit]:
                return QueueFull(
                    f"the queue of module {self.module} holds {waiting} syscalls, its limit is "
                    f"{limit}",
                    remedy="send it again later",
                    retry_after_s=1.0,
                )
            case [b"quota", *refusal]:
                return refused(refusal)
            case [b"core", name, *served]:
                known = ", ".join(sorted(core.decode() for core in served)) or "none"
                return UnknownCore(
                    f"no worker serves the core {name.decode()!r}",
                    field="body.core",
                    remedy=f"leave it out, or use one of: {known}",
                )
            case [b"differs", data]:
                return Differs(data)
            case _:
                raise KernelError(f"submit answered {answer!r}")

    async def claim(self, worker: str, claim_request: ClaimRequest) -> list[Lease]:
        """Take up to `want` jobs that this worker can run, from the head of the queue."""
        answer = await self._call("claim", [worker, iso_now(), *_claim_arguments(claim_request)])
        return _leases(answer)

    async def adopt(
        self, job_id: str, worker: str, lease_s: float
    ) -> Lease | Literal["barred"] | None:
        """Take the lease of a job that a stock RQ worker has popped and is about to run.

        None: it ended meanwhile, or a worker of ours runs it; the stock worker must leave it.
        `barred`: something that it needs is not free; nothing was changed, ask again.
        """
        answer = await self._call("adopt", [worker, iso_now(), round(lease_s * 1000), job_id])
        if answer == 0:
            return "barred"
        return _lease(answer[0]) if answer else None

    async def finish(
        self, worker: str, endings: Sequence[Ending], claim_request: ClaimRequest
    ) -> Settled:
        """End jobs: result, RQ's records, statistics and the reply, and claim the next ones."""
        return await self._finish(worker, endings, claim_request, external=False)

    async def finish_external(self, worker: str, ending: Ending) -> bool:
        """End a job that a stock RQ worker runs: the reply is ours, RQ's records are its own.

        False: the lease was gone; another worker answers.
        """
        settled = await self._finish(worker, [ending], ClaimRequest(0, 0.0), external=True)
        return settled.accepted[0]

    async def _finish(
        self, worker: str, endings: Sequence[Ending], claim_request: ClaimRequest, *, external: bool
    ) -> Settled:
        arguments: list[Argument] = [
            worker,
            iso_now(),
            *_claim_arguments(claim_request),
            RESULT_TTL_S,
            FAILURE_TTL_S,
            int(external),
            len(endings),
        ]
        for end in endings:
            arguments += (
                end.lease.job_id,
                end.lease.attempt,
                end.status,
                end.reply,
                _for_rq(end),
                round(end.ran_s * 1000),
                end.tokens,
                end.prompt_tokens,
                int(end.quarantine),
            )
        return _settled(await self._call("finish", arguments))

    async def pause(
        self, worker: str, pauses: Sequence[Pause], claim_request: ClaimRequest
    ) -> Settled:
        """Yield: snapshots to Redis, jobs back to the run queue, and claim the next ones."""
        arguments: list[Argument] = [
            worker,
            iso_now(),
            *_claim_arguments(claim_request),
            len(pauses),
        ]
        for pause in pauses:
            arguments += (
                pause.lease.job_id,
                pause.lease.attempt,
                pause.reason,
                pause.snapshot if pause.snapshot is not None else b"",
                round(pause.ran_s * 1000),
                pause.tokens,
                pause.prompt_tokens,
            )
        return _settled(await self._call("yield", arguments))

    async def slice_end(
        self, worker: str, uses: Sequence[SliceUse], claim_request: ClaimRequest
    ) -> list[SliceVerdict]:
        """Ask, at the end of a slice, whether somebody more deserving waits for the slot.

        Charges what was used, keeps the checkpoint and renews the lease in the same step.
        Of `claim_request` only the lease time and the cores count.
        """
        arguments: list[Argument] = [worker, *_claim_arguments(claim_request), len(uses)]
        for use in uses:
            arguments += (
                use.lease.job_id,
                use.lease.attempt,
                round(use.ran_s * 1000),
                use.tokens,
                use.prompt_tokens,
                use.checkpoint if use.checkpoint is not None else b"",
            )
        return [verdict.decode() for verdict in await self._call("slice", arguments)]

    async def renew(
        self, worker: WorkerCard, leases: Sequence[Lease], lease_s: float
    ) -> list[SliceVerdict]:
        """Renew all leases and the worker's heartbeat; a lease that is gone answers `lost`."""
        arguments: list[Argument] = [
            worker.name,
            iso_now(),
            round(lease_s * 1000),
            ",".join(worker.cores),
            len(leases),
        ]
        for lease in leases:
            arguments += (lease.job_id, lease.attempt)
        return [verdict.decode() for verdict in await self._call("renew", arguments)]

    async def emit(self, chunks: Sequence[tuple[Lease, bytes]]) -> None:
        """Push streamed chunks to whoever waits; those of a lost lease are dropped."""
        arguments: list[Argument] = [len(chunks)]
        for lease, chunk in chunks:
            arguments += (lease.job_id, lease.attempt, chunk)
        await self._call("emit", arguments)

    async def snapshot(self, job_id: str) -> bytes | None:
        """Return the latest snapshot, or None where there is none in Redis."""
        data: bytes | None = await self.functions.connection.execute(
            "GET", self.keys.snapshot(job_id)
        )
        return data

    async def attach(self, job_id: str, client: str) -> tuple[str, bytes | None]:
        """Let one more client hear of a job; return its state and, if it ended, its reply.

        The state is that of the contract, or `unknown`.
        """
        state, reply = await self._call("attach", [job_id, client])
        return state.decode(), reply

    async def register(self, card: WorkerCard) -> None:
        """Show the worker to RQ's tools and ours."""
        await self._call(
            "register",
            [
                card.name,
                iso_now(),
                card.pid,
                card.hostname,
                card.version,
                card.slots,
                ",".join(card.cores),
            ],
        )

    async def knows(self, worker: str) -> bool:
        """Tell whether the worker's record is there: what `birth` wrote."""
        return bool(
            await self.functions.connection.execute("HEXISTS", self.keys.worker(worker), "birth")
        )

    async def unregister(self, worker: str) -> None:
        """Take a worker that stops in good order off the books."""
        await self._call("unregister", [worker, iso_now()])

    async def wait_for_work(self, blocking: Connection, *, timeout_s: float = BLOCK_S) -> bool:
        """Return True as soon as the queue holds something, False after `timeout_s`.

        Looks without taking: BLMOVE of the head onto itself. `blocking` must be a connection
        that nothing else uses. It also wakes for jobs that a stock RQ producer enqueued.
        """
        try:
            moved = await blocking.execute(
                "BLMOVE", self._key, self._key, "LEFT", "LEFT", timeout_s, timeout_s=timeout_s + 5.0
            )
        except RedisFull:  # to Redis this is a write; only jobs that end make room again
            await asyncio.sleep(FULL_PAUSE_S)
            return bool(await blocking.execute("LLEN", self._key))
        return moved is not None

    async def _call(self, step: str, arguments: Sequence[Argument]) -> Answer:
        return await self.functions.call(step, self.keys, [self.module, *arguments])


def _published(jobs: Sequence[Submission]) -> list[Argument]:
    arguments: list[Argument] = [iso_now(), len(jobs)]
    for job in jobs:
        arguments += (
            job.job_id,
            job.data,
            job.description or _description(job.metadata),
            _encode(job.metadata),
            _needs(job),
            job.client,
            round(job.deadline_s * 1000),
        )
    return arguments


def _claim_arguments(claim_request: ClaimRequest) -> tuple[Argument, ...]:
    return (claim_request.want, round(claim_request.lease_s * 1000), ",".join(claim_request.cores))


def _needs(job: Submission) -> str:
    return " ".join(map(str, checked_needs(job.needs))) if job.needs else ""


def _description(metadata: JobMetadata) -> str:
    """Return what RQ's tools show of a job; without it they would show the whole call."""
    return f"{metadata.kind} of {metadata.agent}, program {metadata.program}"


def _for_rq(end: Ending) -> bytes:
    """Return what RQ's result stream holds: the value, or, compressed, the text of the error."""
    return base64.b64encode(end.reply if end.status == "finished" else zlib.compress(end.reply))


def _leases(rows: Answer) -> list[Lease]:
    leases = []
    for row in rows:
        if row[1]:
            leases.append(_lease(row))
        else:
            logger.warning("quarantined a job whose id is no text: %s", row[0].decode())
    return leases


def _lease(row: Answer) -> Lease:
    job_id, attempt, data, trusted, client, queued_ms, deadline_ms, *past = row
    ran_ms, slices, suspensions, losses, has_snapshot, alone, *decided = past or _NEWCOMER
    return Lease(
        job_id.decode(),
        attempt,
        data,
        trusted == 1,
        client == 1,
        queued_ms / 1000,
        ran_ms / 1000,
        slices,
        suspensions,
        losses,
        deadline_ms / 1000,
        has_snapshot == 1,
        alone == 1,
        bool(decided),
    )


def _settled(answer: Answer) -> Settled:
    accepted, rows = answer
    return Settled([flag == 1 for flag in accepted], _leases(rows))
