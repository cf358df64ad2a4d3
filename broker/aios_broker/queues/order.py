"""What the scheduler does with a module's queue. Every change is fenced by the epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import msgspec

from aios_broker.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    KernelError,
    UnknownCore,
    WorkerLost,
)
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import core_of, known_needs
from aios_broker.queues.functions import Functions, ModuleSteps
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import Quotas
from aios_broker.queues.reconciliation import (
    ALL_AT_ONCE,
    EpochOver,
    Reconciliation,
    unlist_ghosts,
)
from aios_broker.queues.records import JobMetadata, read_metadata
from aios_broker.queues.rows import WaitingRow
from aios_broker.queues.watch import NOTHING, Notes, Watch
from aios_broker.redis.connection import Answer, Argument

ROUTED: Module = "llm"  # the module whose cores have run queues of their own
SWEEP_STEP = 64  # jobs that one step ends or puts back: about 3 ms of Redis' time


@dataclass(frozen=True, slots=True)
class Waiting:
    """One waiting job as a policy sees it. Times are Redis' clock, in ms since 1970."""

    job_id: str
    metadata: JobMetadata
    core: str  # in whose run queue it is, or that it needs; empty: any
    submitted_ms: int
    ready_ms: int  # since when it waits this time
    ran_ms: int
    tokens: int
    slices: int
    deadline_ms: int  # 0: none
    basis: str = ""  # what a score of it goes by and a step may change: `reorder` compares it


class Score(NamedTuple):
    """A job's score, lower goes first, as it is to be kept."""

    job_id: str
    value: float
    # The `Waiting.basis` that it was made of. A job that has another by now (its nice value was
    # changed, it was suspended) gets no score: the next look finds it without one. Empty: of none.
    basis: str = ""


@dataclass(frozen=True, slots=True)
class Leadership:
    """The scheduler's lease on the order of the queues."""

    epoch: int
    leading: bool
    now_ms: int
    began: bool  # with this call; also where Redis has lost its data and counts anew


@dataclass(frozen=True, slots=True)
class Ends:
    """How many wait, and what of the ends of the queue is not as it should be."""

    length: int
    settled: bool = True  # all that was looked at has a score and stands right; the rest is empty
    head: tuple[str, ...] = ()
    low: tuple[str, ...] = ()  # of the tail: without a score, or with one among the head's
    scores: dict[str, float] = field(default_factory=dict)  # of those that have one
    running: tuple[str, ...] = ()  # without a score
    # What is known of those without a score: of up to 200 of them; None for one that is gone.
    metadata: dict[str, Waiting | None] = field(default_factory=dict)
    middle: tuple[str, ...] = ()  # between the ends, with a score among the head's: the lowest ones


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two waiting jobs that change places."""

    place: int
    job_id: str
    other_place: int
    other_id: str


class Order(ModuleSteps):
    """One module's queue, or that of one of its cores, seen by the scheduler.

    What is about a list (its ends, its order) is about that one; the rest is about the module.
    """

    def __init__(
        self, functions: Functions, module: Module, keys: Keys | None = None, *, core: str = ""
    ) -> None:
        super().__init__(functions, module, keys, core=core)
        self.watch = Watch(functions, module, self.keys)
        self._stale: frozenset[bytes] = frozenset()  # what the last full pass found of no use

    async def lead(self, holder: str, lease_s: float, *, seen_epoch: int = 0) -> Leadership:
        """Take or renew the lease of the scheduler; a new holder gets the next epoch.

        The lease is of the whole deployment (one key), not of this module. `seen_epoch`: the
        highest one that the holder has heard of; a Redis that lost its data goes on from there.
        """
        arguments: list[Argument] = [holder, round(lease_s * 1000), seen_epoch]
        epoch, leading, now_ms, began = await self._call("lead", arguments)
        return Leadership(int(epoch), bool(leading), int(now_ms), bool(began))

    async def head(self, count: int, *, tail: int = 0) -> tuple[int, list[str]]:
        """Return how many wait, and the ids of the first `count` (and the last `tail`)."""
        key = self.keys.queue(self.queue)
        length = await self._execute("LLEN", key)
        ids = await self._execute("LRANGE", key, 0, count - 1)
        if tail and length > count:
            ids += await self._execute("LRANGE", key, max(count, length - tail), -1)
        return length, [job_id.decode() for job_id in ids]

    async def ends(self, whole: int, head: int, *, running: bool, middle: bool = False) -> Ends:
        """Look at the whole of a queue of up to `whole` jobs, else at `head` jobs at either end.

        With `running` also at those that run; with `middle` at a few between the ends whose scores
        belong among the head's. What it costs does not depend on how many wait; where all is in
        order next to nothing travels.
        """
        answer = await self._call("look", ["ends", whole, head, int(running), int(middle)])
        if len(answer) == 1:
            return Ends(answer[0])
        length, first, first_scores, low, low_scores, rest, unknown, rows, *between = answer
        pairs = zip(
            (*first, *low, *between[0]), (*first_scores, *low_scores, *between[1]), strict=True
        )
        scores = {job_id.decode(): float(score) for job_id, score in pairs if score}
        metadata = _by_id(unknown, rows)
        return Ends(
            length,
            False,
            _texts(first),
            _texts(low),
            scores,
            _texts(rest),
            metadata,
            _texts(between[0]),
        )

    async def turns(
        self, count: int, least_ms: int
    ) -> tuple[int, tuple[str, ...], tuple[str, ...]] | str:
        """Return how many wait, and the ids of the first and the last `count`.

        A text: nobody waits for anybody. It is the last id that waits where all that is live is of
        one program, and empty where the first one has waited for less than `least_ms`.
        """
        answer = await self._call("turns", [count, least_ms])
        if isinstance(answer, bytes):
            return answer.decode()
        return answer[0], _texts(answer[1]), _texts(answer[2])

    async def before_tail(self, offset: int, count: int) -> list[str]:
        """Return up to `count` ids, in the queue's order: those before the last `offset`."""
        key = self.keys.queue(self.queue)
        ids = await self._execute("LRANGE", key, -offset - count, -offset - 1)
        return [job_id.decode() for job_id in ids]

    async def owners(self, job_ids: Sequence[str]) -> list[JobMetadata | None]:
        """Return whose jobs these are; None for one that is gone."""
        rows = await self._call("owners", job_ids)
        return [None if row == 0 else read_metadata(row) for row in rows]

    async def put_first(
        self, epoch: int, job_ids: Sequence[str], *, ends: int, middle: int
    ) -> list[str] | None:
        """Put ids at the head in this order, without a score; the arguments are `reorder`'s.

        Returns:
            The ids that wait and were not found where they were looked for. None: the epoch is
            over, another scheduler leads, nothing was changed.
        """
        arguments: list[Argument] = [epoch, ends, ends, middle, len(job_ids), 0, *job_ids]
        answer = await self._call("reorder", arguments)
        return None if answer == 0 else [job_id.decode() for job_id in answer]

    async def piece(self, start: int, count: int) -> list[str]:
        """Return the ids at these places of the queue."""
        ids = await self._execute("LRANGE", self.keys.queue(self.queue), start, start + count - 1)
        return [job_id.decode() for job_id in ids]

    async def exchange(
        self, epoch: int, pairs: Sequence[Exchange], *, shift: int = 0
    ) -> tuple[int, int] | None:
        """Let pairs of waiting jobs change places where both stand at, or near, their places.

        Args:
            epoch: Of the caller's leadership.
            pairs: Places count from the head as it was when the caller read the queue.
            shift: By how many jobs the head has moved since, as far as the caller knows.

        Returns:
            How many were exchanged, and the shift as of now. None: the epoch is over.
        """
        arguments: list[Argument] = [epoch, shift, len(pairs)]
        for pair in pairs:
            arguments += (pair.place, pair.job_id, pair.other_place, pair.other_id)
        answer = await self._call("exchange", arguments)
        return None if answer == 0 else (answer[0], answer[1])

    async def metadata(self, job_ids: Sequence[str]) -> list[Waiting | None]:
        """Return what a policy needs to know of jobs; None for one that is gone."""
        rows = await self._call("look", ["metadata", *job_ids])
        return [_waiting(job_id, row) for job_id, row in zip(job_ids, rows, strict=True)]

    async def running_facts(self, most: int) -> list[Waiting]:
        """Return what a policy needs to know of up to `most` jobs that run."""
        rows = _by_id(*await self._call("running", [most]))
        return [row for row in rows.values() if row is not None]

    async def ranked(
        self, parts: Sequence[tuple[str, str, int]]
    ) -> list[dict[str, Waiting | None]]:
        """Return jobs of subjects that have a score, in the order of their ids.

        Args:
            parts: Of each subject that is watched: its name, the id after which to go on (from the
                first where it is empty), and how many at most.

        Returns:
            Per subject what a policy needs to know of each job; None for one that is gone.
        """
        flat: list[Argument] = [argument for part in parts for argument in part]
        return [_by_id(*part) for part in await self._call("ranked", flat)]

    async def scores(self, job_ids: Sequence[str]) -> list[float | None]:
        """Return the scores that jobs stand with.

        None: it has none yet, or lost it, because it was suspended or its nice value changed.
        """
        if not job_ids:
            return []
        answer = await self._execute("ZMSCORE", self.keys.own(f"scores:{self.module}"), *job_ids)
        return [None if score is None else float(score) for score in answer]

    async def running(self, limit: int = 1000) -> list[str]:
        """Return the ids of up to `limit` jobs that run."""
        members = await self._execute(
            "ZRANGE", self.keys.own(f"leases:{self.module}"), 0, limit - 1
        )
        return [member.decode().rpartition(":")[0] for member in members]

    async def reorder(
        self,
        epoch: int,
        job_ids: Sequence[str],
        *,
        scored: Sequence[Score] = (),
        ends: tuple[int, int] = (0, 0),
        middle: int = 0,
        notes: Notes = NOTHING,
    ) -> bool:
        """Put ids at the head in this order, and keep scores.

        Args:
            epoch: Of the caller's leadership.
            job_ids: Those that no longer wait are left out; others keep their order behind them.
            scored: Of jobs that wait or run, named by `job_ids` or not.
            ends: Look for `job_ids` only among that many at the head and at the tail of the queue,
                and leave the middle alone; (0, 0): the whole queue, which costs its length.
            middle: How many of `job_ids` may be searched for between the ends, each of which costs
                its place.
            notes: What is to be kept beside the scores, of a policy that watches.

        Returns:
            False: the epoch is over, another scheduler leads, nothing was changed.
        """
        arguments: list[Argument] = [epoch, *ends, middle, len(job_ids), len(scored), *job_ids]
        for score in scored:
            arguments += score
        arguments += notes.arguments()
        is_over: bool = await self._call("reorder", arguments) == 0
        return not is_over

    async def spill(self, epoch: int, stored: Sequence[tuple[str, str]]) -> list[bool]:
        """Drop snapshots from Redis that were stored elsewhere, as (job id, their SHA-1 in hex).

        False for one that changed meanwhile, and for all of them when the epoch is over. The
        snapshots are of the whole deployment, not of this module.
        """
        arguments: list[Argument] = [epoch]
        for job_id, sha1 in stored:
            arguments += (job_id, sha1)
        return [bool(dropped) for dropped in await self._call("spill", arguments)]

    async def reclaim(self, epoch: int, *, limit: int = 1000) -> int:
        """Put back the jobs whose lease ran out; quarantine those that lost too many workers."""
        lost = WorkerLost(
            "its workers died as often as it may be tried; the job is quarantined",
            remedy="send it again under a new id; an operator sees why in the workers' logs "
            "(`aios queues`, `aios status`)",
        )
        return await self._sweep("reclaim", epoch, lost, limit)

    async def expire(self, epoch: int, *, limit: int = 1000) -> int:
        """End the jobs whose deadline has passed, waiting or running."""
        late = DeadlineExceeded(
            "it outlived its deadline", field="deadline_s", remedy="allow it more time"
        )
        return await self._sweep("expire", epoch, late, limit)

    async def reconcile(self, epoch: int, *, all_at_once: int = ALL_AT_ONCE) -> int:
        """Answer for what stock RQ tools changed: deleted, emptied, cancelled, requeued jobs.

        Returns how many jobs were put right. Cheap while the counts agree; where more than
        `all_at_once` jobs are live, a full pass is made part by part.
        """
        gone = Cancelled("it was removed from the queue by a stock RQ tool")
        body = msgspec.json.encode(gone.to_wire())
        answer = await self._call("reconcile", [epoch, body, all_at_once])
        if isinstance(answer, int):
            return answer
        mended, began_ms, uncounted, ghosts = answer
        if ghosts:
            await unlist_ghosts(
                self.functions.connection,
                self.keys,
                self.module,
                [self.module, *await self.core_queues()],
                lambda queue, arguments: self.functions.call(
                    "unlist", self.keys, [queue, epoch, *arguments]
                ),
            )
        if began_ms:
            found, uncounted = await self._reconcile_in_parts(epoch, body, began_ms, all_at_once)
            mended += found
        if uncounted:
            await Quotas(self.functions, self.keys).recount(self.module)
        return int(mended)

    async def core_queues(self) -> list[str]:
        """Return the names of the run queues of the module's cores."""
        if self.module != ROUTED:
            return []
        found = await self._execute("SMEMBERS", self.keys.own(f"queues:{self.module}"))
        return sorted(name.decode() for name in found)

    def of_queue(self, name: str) -> "Order":
        """Return the same of another run queue of the module."""
        return Order(self.functions, self.module, self.keys, core=name.partition(".")[2])

    async def move(self, epoch: int) -> tuple[int, int]:
        """Take waiting jobs from cores that do not serve them to others that their names lead to.

        Returns how many moved, and how many ended because their core was removed. A part of each
        queue at a time.
        """
        gone = UnknownCore(
            "its core was removed while it waited, and its name leads to no other",
            field="body.core",
            remedy="`aios cores list` shows those that are known",
        )
        answer = await self._call("move", [epoch, msgspec.json.encode(gone.to_wire())])
        return (0, 0) if answer == 0 else (answer[0], answer[1])

    async def _reconcile_in_parts(
        self, epoch: int, body: bytes, began_ms: int, all_at_once: int
    ) -> tuple[int, bool]:
        """Return how many jobs were put right, and whether the load is to be counted anew."""
        full = Reconciliation(
            self.functions.connection,
            self.keys,
            self.module,
            lambda arguments: self._call("mend", [epoch, body, began_ms, *arguments]),
            self._stale,
            [self.module, *await self.core_queues()],
        )
        try:
            found = await full.run(all_at_once)
        except EpochOver:
            return 0, False
        self._stale = full.stale
        return found, full.uncounted

    async def _sweep(self, step: str, epoch: int, error: KernelError, limit: int) -> int:
        body = msgspec.json.encode(error.to_wire())
        done = 0
        while True:
            part = min(SWEEP_STEP, limit - done)
            count = int(await self._call(step, [epoch, body, part]))
            done += count
            if count < SWEEP_STEP or done >= limit:
                return done


def _texts(ids: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(job_id.decode() for job_id in ids)


def _by_id(ids: Sequence[bytes], rows: Sequence[Answer]) -> dict[str, Waiting | None]:
    return {job_id: _waiting(job_id, row) for job_id, row in zip(_texts(ids), rows, strict=True)}


def _waiting(job_id: str, row: Answer) -> Waiting | None:
    if not isinstance(row, list):
        return None
    known = WaitingRow(*row)
    metadata = read_metadata(known.metadata)
    if known.nice:
        metadata = msgspec.structs.replace(metadata, nice=int(known.nice))
    core = known.core.decode() or _core(known.needs)
    basis = f"{known.nice.decode()} {known.ready_ms}"
    return Waiting(job_id, metadata, core, *known[2:-2], basis=basis)


@lru_cache(maxsize=1024)  # many need the same
def _core(needs: bytes) -> str:
    return core_of(known_needs(needs.decode()))
