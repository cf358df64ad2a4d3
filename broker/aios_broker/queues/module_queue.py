"""The run queue of one module: what clients and workers do with it.

Each method is one Redis function call, atomic and fenced, for as many jobs as are at hand.
All of them may be sent again after RedisUnavailable: submit is idempotent by id, the others by
attempt, and use is told as totals since the claim, which may be told twice.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import msgspec

from aios_broker.contract.errors import (
    AccessDenied,
    AgentSuspended,
    KernelError,
    QueueFull,
    QuotaExceeded,
    RedisFull,
    UnknownCore,
)
from aios_broker.contract.ids import id_refused
from aios_broker.contract.job import encode_job, without_arguments
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import Chunk, Part, encode
from aios_broker.contract.syscall import Syscall, checked_needs
from aios_broker.contract.tokens import digest
from aios_broker.queues.needs import NeedSteps
from aios_broker.queues.no_core import unknown_core, unserved_core
from aios_broker.queues.quota import refused
from aios_broker.queues.rate_limits import terms_row
from aios_broker.queues.records import (
    Charge,
    Ending,
    JobMetadata,
    Lease,
    SliceUse,
    SliceVerdict,
    Submission,
    Suspension,
    WorkerCard,
    iso_now,
    metadata_of,
    rq_result,
    who,
)
from aios_broker.queues.rows import (
    CardRow,
    ChunkRow,
    ClaimRow,
    EndingRow,
    LeaseRow,
    ProofRow,
    RenewalRow,
    SliceRow,
    SubmissionRow,
    SuspensionRow,
    VouchRow,
    WorkerRow,
)
from aios_broker.queues.tokens import token_refused
from aios_broker.redis.connection import Answer, Argument, Connection

logger = logging.getLogger(__name__)

RESULT_TTL_S = 60  # how long a reply can be fetched again by id
FAILURE_TTL_S = 3600  # failed jobs stay longer: somebody will want to look at them
FULL_PAUSE_S = 0.2  # between looks at the queue of a Redis that is full
BLOCK_S = 2.0  # how long one blocking look lasts; then the caller does what else is due

SubmitStatus = Literal["queued", "known", "ended"]
_WIDE, _WIDE_BYTES = "utf-32-le", 4  # of text that is read from a character on
_encode = msgspec.json.Encoder().encode
_SUBMIT_STATUS: dict[int, SubmitStatus] = {1: "queued", 2: "known", 3: "ended"}


@dataclass(frozen=True, slots=True)
class Differs:
    """The id is known with other data, to the byte; nobody was told to wait for it."""

    data: bytes  # what it was published with


Refusal = QueueFull | QuotaExceeded | UnknownCore | AccessDenied | AgentSuspended | Differs


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of a batch of endings or suspensions, and the jobs claimed in the same step."""

    accepted: list[bool]  # False: the lease was gone; the result was dropped, another answers
    leases: list[Lease]


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """How many more jobs a worker takes, and which."""

    want: int
    lease_s: float
    cores: tuple[str, ...] = ()  # names of those that it serves; jobs of others are left alone


class ModuleQueue(NeedSteps):
    """One module's queue, seen by clients and workers."""

    async def submit(self, jobs: Sequence[Submission]) -> list[SubmitStatus | Refusal]:
        """Publish of these jobs what may be published, in one step; return what came of each.

        Acknowledged (a status) means: it will reach exactly one terminal state; for one that has
        ended the stored reply is pushed to `client` again. One that is refused (QueueFull,
        QuotaExceeded, UnknownCore) leaves nothing behind, and the others do not hear of it. Of one
        agent's jobs those without room are the last ones. Sent again after a lost answer, what was
        published is `known` and what was refused may be published now: whoever has not read a
        refusal has not been refused. One with the digest of a token is refused (AccessDenied) where
        that is not its agent's, and so is one whose id is another agent's.

        Raises:
            InvalidSyscall: a job has more needs than it may, or they contradict each other.
        """
        answer = await self._call("submit", _published(jobs))
        return [
            _SUBMIT_STATUS[each]
            if isinstance(each, int)
            else self._refusal(each, job.metadata.owner)
            for each, job in zip(answer, jobs, strict=True)
        ]

    def _refusal(self, answer: Answer, owner: Owner) -> Refusal:
        match answer:
            case [b"denied" | b"owned" as why]:
                return (token_refused if why == b"denied" else id_refused)(owner)
            case [b"full", waiting, limit]:
                return QueueFull(
                    f"the queue of module {self.module} holds {waiting} syscalls, its limit is "
                    f"{limit}",
                    remedy="send it again later",
                    retry_after_s=1.0,
                )
            case [b"quota" | b"nice" | b"unread" | b"stopped" as what, *refusal]:
                return refused(what, refusal)
            case [b"core", name, *cores]:
                return unknown_core(name.decode(), cores)
            case [b"unserved", name, core, silent_ms]:
                return unserved_core(core.decode(), silent_ms / 1000)
            case [b"differs", data]:
                return Differs(data)
            case _:
                raise KernelError(f"submit answered {answer!r}")

    async def claim(self, worker: str, claim_request: ClaimRequest) -> list[Lease]:
        """Take up to `want` jobs that this worker can run, from the head of the queue."""
        answer = await self._call("claim", _claim(worker, claim_request))
        return _leases(answer)

    async def claim_one(
        self, job_id: str, worker: str, lease_s: float
    ) -> Lease | Literal["barred"] | None:
        """Take the lease of a job that a stock RQ worker has popped and is about to run.

        None: it ended meanwhile, or a worker of ours runs it; the stock worker must leave it.
        `barred`: something that it needs is not free; nothing was changed, ask again.
        """
        answer = await self._call("claim_one", [worker, iso_now(), round(lease_s * 1000), job_id])
        if answer == 0:
            return "barred"
        return _lease(answer[0]) if answer else None

    async def vouch(self, lease: Lease, syscall: Syscall) -> None:
        """Exchange the token in a stock producer's job for the agent whose it is.

        From here on the job is this agent's like one that was submitted, and no token is in its
        record.

        Raises:
            AccessDenied: the token is not this agent's, or it may not go before others by so much.
            AgentSuspended: an operator has suspended it.
            KernelError: the lease is gone.
        """
        metadata = metadata_of(syscall)
        row = VouchRow(
            id=lease.job_id,
            attempt=lease.attempt,
            data=encode_job(syscall),
            description=_description(metadata),
            token_digest=digest(syscall.token),
            metadata=_encode(metadata),
        )
        answer = await self._call("vouch", row)
        if answer == 0:
            raise KernelError(f"the lease of job {lease.job_id} is gone: another worker answers it")
        if answer != 1:
            refusal = self._refusal(answer, syscall.owner)
            assert not isinstance(refusal, Differs)
            raise refusal

    async def disarm(self, lease: Lease) -> None:
        """Take the arguments, which may hold tokens, out of a stock job that is not to run."""
        row = VouchRow(lease.job_id, lease.attempt, without_arguments(lease.data), "", "", b"")
        await self._call("vouch", row)

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
        ended = [
            EndingRow(
                id=end.lease.job_id,
                attempt=end.lease.attempt,
                status=end.status,
                reply=end.reply,
                result=rq_result(end),
                ran_ms=round(end.ran_s * 1000),
                tokens=end.tokens,
                prompt=end.prompt_tokens,
                bill=_bill(end.charge),
                quarantine=int(end.quarantine),
            )
            for end in endings
        ]
        kept = (RESULT_TTL_S, FAILURE_TTL_S, int(external))
        return _settled(
            await self._call("finish", [*_claim(worker, claim_request), *kept, *_counted(ended)])
        )

    async def suspend(
        self, worker: str, suspensions: Sequence[Suspension], claim_request: ClaimRequest
    ) -> Settled:
        """Take snapshots to Redis, jobs back to the run queue, and claim the next ones."""
        rows = [
            SuspensionRow(
                id=each.lease.job_id,
                attempt=each.lease.attempt,
                reason=each.reason,
                snapshot=each.snapshot or b"",
                ran_ms=round(each.ran_s * 1000),
                tokens=each.tokens,
                prompt=each.prompt_tokens,
                bill=_bill(each.charge),
                core=each.core,
            )
            for each in suspensions
        ]
        claim = _claim(worker, claim_request)
        return _settled(await self._call("suspend", [*claim, *_counted(rows)]))

    async def slice_end(
        self, worker: str, uses: Sequence[SliceUse], claim_request: ClaimRequest
    ) -> list[SliceVerdict]:
        """Ask, at the end of a slice, whether somebody more deserving waits for the slot.

        Charges what was used, keeps the checkpoint and renews the lease in the same step.
        Of `claim_request` only the lease time and the cores count.
        """
        rows = [
            SliceRow(
                id=use.lease.job_id,
                attempt=use.lease.attempt,
                ran_ms=round(use.ran_s * 1000),
                tokens=use.tokens,
                prompt=use.prompt_tokens,
                bill=_bill(use.charge),
                checkpoint=use.checkpoint or b"",
                slice_ms=round(use.terms.slice_ms),
                resume_ms=round(use.terms.resume_ms),
                least_ms=round(use.terms.least_ms),
                crowded_ms=round(use.terms.crowded_ms),
                fits=use.terms.fits,
                memory=use.terms.memory or worker,
            )
            for use in uses
        ]
        arguments = [*_claim(worker, claim_request), *_counted(rows)]
        return [verdict.decode() for verdict in await self._call("slice", arguments)]

    async def renew(
        self, worker: WorkerCard, leases: Sequence[Lease], lease_s: float
    ) -> list[SliceVerdict]:
        """Renew all leases and the worker's heartbeat; a lease that is gone answers `lost`."""
        rows = [RenewalRow(lease.job_id, lease.attempt) for lease in leases]
        claim = _claim(worker.name, ClaimRequest(0, lease_s, worker.core_names))
        arguments = [*claim, *_counted(rows)]
        return [verdict.decode() for verdict in await self._call("renew", arguments)]

    async def emit(self, chunks: Sequence[tuple[Lease, Chunk]]) -> None:
        """Push streamed chunks to whoever waits, and keep their text; without a lease, nothing."""
        rows = [
            ChunkRow(
                id=lease.job_id,
                attempt=lease.attempt,
                chunk=encode(chunk),
                part=chunk.part,
                offset=chunk.offset,
                text=chunk.text.encode(_WIDE, "surrogatepass"),
            )
            for lease, chunk in chunks
        ]
        await self._call("emit", _counted(rows))

    async def streamed(self, job_id: str, part: Part, offset: int) -> str:
        """Return what was streamed of a job, from a character on.

        It holds at least what was sent before the call, but for what a full Redis did not take.
        """
        first = _WIDE_BYTES * offset
        data: bytes = await self._execute("GETRANGE", self.keys.text(part, job_id), first, -1)
        return data.decode(_WIDE, "surrogatepass")

    async def snapshot(self, job_id: str) -> bytes | None:
        """Return the latest snapshot, or None where there is none in Redis."""
        data: bytes | None = await self._execute("GET", self.keys.snapshot(job_id))
        return data

    async def attach(
        self, job_id: str, client: str, owner: Owner | None
    ) -> tuple[str, bytes | None]:
        """Let one more client hear of a job; return its state and, if it ended, its reply.

        The state is that of the contract, or `unknown`, as of a job that is not `owner`'s; None:
        whoever's it is.
        """
        state, reply = await self._call("attach", [job_id, client, who(owner)])
        return state.decode(), reply

    async def register(self, card: WorkerCard) -> None:
        """Show the worker to RQ's tools and ours.

        Raises:
            InvalidConfig: A worker of another process lives under this name.
        """
        row = WorkerRow(
            worker=card.name,
            iso=iso_now(),
            pid=card.pid,
            hostname=card.hostname,
            version=card.version,
            slots=card.slots,
            cores=",".join(card.core_names),
            instance=card.instance,
        )
        cards = [CardRow(core.name, _encode(core)) for core in card.cores]
        taken = await self._call("register", [*row, *_counted(cards)])
        if taken:
            raise card.refused(*taken)
        for core in card.cores:
            await self._call("terms", terms_row(core))

    async def knows(self, card: WorkerCard) -> bool:
        """Tell whether all that `register` wrote is there: the worker's record, its cores' cards.

        An operator may take a card away while its worker is silent.
        """
        cards = self.keys.own("core_cards")
        asked = [
            (self.keys.worker(card.name), "birth"),
            *((cards, core) for core in card.core_names),
        ]
        return all(await asyncio.gather(*(self._execute("HEXISTS", *each) for each in asked)))

    async def address(self, lease: Lease, core: str, cores: Sequence[str]) -> bool:
        """Enter which core a stock producer's job names; return whether it is one of `cores`.

        Else it goes to the queue of the core that its name leads to when it is suspended.

        Raises:
            UnknownCore: The name is nobody's.
        """
        answer = await self._call("address", [",".join(cores), lease.job_id, lease.attempt, core])
        if isinstance(answer, list):
            raise unknown_core(core, answer)
        return bool(answer == b"here")

    async def unregister(self, worker: str) -> None:
        """Take a worker that stops in good order off the books."""
        await self._call("unregister", [worker, iso_now()])

    async def wait_for_work(
        self, blocking: Connection, key: str, *, timeout_s: float = BLOCK_S
    ) -> bool:
        """Return True as soon as the run queue at `key` holds something, False after `timeout_s`.

        Looks without taking: BLMOVE of the head onto itself. `blocking` must be a connection
        that nothing else uses. It also wakes for jobs that a stock RQ producer enqueued.
        """
        try:
            moved = await blocking.execute(
                "BLMOVE", key, key, "LEFT", "LEFT", timeout_s, timeout_s=timeout_s + 5.0
            )
        except RedisFull:  # to Redis this is a write; only jobs that end make room again
            await asyncio.sleep(FULL_PAUSE_S)
            return bool(await blocking.execute("LLEN", key))
        return moved is not None


def _published(jobs: Sequence[Submission]) -> list[Argument]:
    rows = [
        SubmissionRow(
            id=job.job_id,
            data=job.data,
            description=job.description or _description(job.metadata),
            metadata=_encode(job.metadata),
            needs=_needs(job),
            client=job.client,
            deadline_ms=round(job.deadline_s * 1000),
        )
        for job in jobs
    ]
    proofs = [
        ProofRow(place, job.token_digest)
        for place, job in enumerate(jobs, start=1)
        if job.token_digest
    ]
    return [iso_now(), *_counted(rows), *_counted(proofs)]


def _counted(rows: Sequence[tuple[Argument, ...]]) -> list[Argument]:
    return [len(rows), *chain.from_iterable(rows)]


def _claim(worker: str, request: ClaimRequest) -> ClaimRow:
    lease_ms = round(request.lease_s * 1000)
    return ClaimRow(worker, iso_now(), request.want, lease_ms, ",".join(request.cores))


def _bill(charge: Charge | None) -> str:
    return "" if charge is None else charge.packed()


def _needs(job: Submission) -> str:
    return " ".join(map(str, checked_needs(job.needs))) if job.needs else ""


def _description(metadata: JobMetadata) -> str:
    """Return what RQ's tools show of a job; without it they would show the whole call."""
    return f"{metadata.kind} of {metadata.agent}, program {metadata.program}"


def _leases(rows: Answer) -> list[Lease]:
    leases = []
    for row in rows:
        if row[1]:
            leases.append(_lease(row))
        else:
            logger.warning("quarantined a job whose id is no text: %s", row[0].decode())
    return leases


def _lease(answer: Answer) -> Lease:
    row = LeaseRow(*answer)
    return Lease(
        job_id=row.id.decode(),
        attempt=row.attempt,
        data=row.data,
        trusted=row.trusted == 1,
        wants_chunks=row.wanted == 1,
        queued_s=row.queued_ms / 1000,
        ran_s=row.ran_ms / 1000,
        slices=row.slices,
        suspensions=row.suspensions,
        losses=row.losses,
        deadline_in_s=row.deadline_ms / 1000,
        has_snapshot=row.has_snapshot == 1,
        alone=row.alone == 1,
        decided=row.decided == b"1",
        cost_pico=int(row.cost),
        currency=row.currency.decode(),
        cached_tokens=row.cached,
        read_by=tuple(row.read_by.decode().split()),
        tried=tuple(row.tried.decode().split()),
    )


def _settled(answer: Answer) -> Settled:
    accepted, rows = answer
    return Settled([flag == 1 for flag in accepted], _leases(rows))
