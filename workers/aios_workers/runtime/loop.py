"""The worker: one asyncio loop that takes jobs from one module's queue and answers each.

    claim ──▶ Run, a task each ──▶ Outbox ──▶ finish or suspend, which claims the next ones
      ▲                              ▲
      └─ a blocking wait, while there is room        Leases renews all leases in one call

Every job that is taken ends in exactly one ending or suspension. Only the death of the process, or
a lease that is lost, leaves one unanswered, and then the queue lends it to another worker.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import hiredis
import msgspec
from msgspec import Struct
from prometheus_client.core import Metric

from aios_broker.contract.cores import CoreCard, queue_of
from aios_broker.contract.errors import KernelError, RedisUnavailable
from aios_broker.contract.names import Module
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import Ending, Lease, Suspension, WorkerCard
from aios_broker.redis.channel import Channel
from aios_broker.redis.connection import Connection
from aios_broker.retry import Backoff
from aios_workers.runtime.executor import Executor, Measured
from aios_workers.runtime.results import Outbox, worker_metrics
from aios_workers.runtime.runs import Leases, Run

logger = logging.getLogger(__name__)


DEFAULT_LEASE_S = 4.0  # with one scheduler tick: a killed worker's jobs run again within 5 s
DEFAULT_DRAIN_S = 8.0
STOP_S = 2.0  # for an attempt that lost its lease to end, before the job is begun again here
LAST_WORDS_S = 2.0  # after the drain: for results that are still on their way
MISS_FIRST_S = 0.02  # the head of the queue is for another worker: look again after ...
MISS_LONGEST_S = 0.1
LARGE_CAPACITY = 32  # slots: from here on they are filled in two portions
AHEAD_AFTER = 2  # portions in a row that came in full: jobs wait, claim the next ones ahead


class Command(Struct, frozen=True, rename={"name": "command"}):
    """One command: shutdown, stop-job, stop-execution or kill-horse."""

    name: str
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a worker holds on."""

    lease_s: float = DEFAULT_LEASE_S
    drain_s: float = DEFAULT_DRAIN_S


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker before it is wired: its name, its module, its Redis, and how long it holds on."""

    name: str
    module: Module
    redis_url: str
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)


class Worker:
    """Serves one module until it is told to stop."""

    def __init__(
        self,
        spec: WorkerSpec,
        queue: ModuleQueue,
        waiting: Sequence[
            Connection
        ],  # one for each queue that it takes from; nothing else uses them
        executor: Executor,
        card: WorkerCard,
    ) -> None:
        self._spec = spec
        self._queue = queue
        self._waiting = waiting
        self._executor = executor
        self._handler = executor.handler
        self._cores = card.core_names
        self._leases = Leases(queue, card, spec.limits.lease_s)
        self._outbox = Outbox(queue, spec.name)
        self._wake = asyncio.Event()  # the pump has something to do
        self._hungry = asyncio.Event()  # room, and the last claim found less than there is room for
        self._quiet = asyncio.Event()  # nothing runs, is being claimed, or waits to be settled
        self._told_to_stop = asyncio.Event()
        self._work_seen = False
        self._asking = False  # a call is under way that may bring leases
        self._misses = 0  # claims in a row that found nothing for us
        self._full_portions = 0  # in a row: there is a backlog

    def stop(self) -> None:
        """Drain and leave: `run` returns within the drain time. Safe from a signal handler."""
        self._told_to_stop.set()

    @property
    def is_stopping(self) -> bool:
        """True once it was told to stop."""
        return self._told_to_stop.is_set()

    @property
    def running(self) -> int:
        """How many jobs run now; results that wait to be settled do not count."""
        return len(self._leases)

    def show(self, core: CoreCard) -> None:
        """Tell the fleet of its core what has changed, with the next renewal."""
        self._leases.show((core,))

    def metrics(self) -> Iterable[Metric]:
        """Yield what this worker has done and has to do; safe from another thread."""
        yield from worker_metrics(
            self._queue.module,
            self._outbox.counts,
            running=len(self._leases),
            slots=self._handler.capacity,
            unsettled=len(self._outbox),
        )
        if isinstance(self._handler, Measured):
            yield from self._handler.metrics()

    async def run(self) -> None:
        """Serve until `stop`; then suspend or finish what runs, and leave in good order."""
        keys = self._queue.keys
        serving = [
            asyncio.create_task(work)
            for work in (
                self._pump(),
                *(
                    self._await_work(keys.queue(queue_of(self._spec.module, core)), connection)
                    for core, connection in zip(("", *self._cores), self._waiting, strict=True)
                ),
                self._leases.keep(self._outbox.leases),
                self._listen(),
            )
        ]
        stopped = asyncio.create_task(self._told_to_stop.wait())
        self._see_work()  # claim first, wait when that finds nothing
        try:
            await asyncio.wait([*serving, stopped], return_when=asyncio.FIRST_COMPLETED)
            for part in serving:
                if part.done():
                    part.result()  # none of them ends: this raises what broke it
            await self._drain()
        finally:
            for task in (*serving, stopped):
                task.cancel()
            await asyncio.gather(*serving, stopped, return_exceptions=True)
        await self._leave()

    # Claim and settle: one task does both, so that no two of them fill the same slot.

    async def _pump(self) -> None:
        backoff = Backoff()
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while len(self._outbox) or (self._work_seen and self._room()):
                    await self._step()
                    backoff.reset()
            except KernelError as error:
                if backoff.calm:
                    logger.warning(
                        "%d results wait, the queue does not answer: %s", len(self._outbox), error
                    )
                self._note_quiet()
                self._see_work()
                await backoff.wait()

    async def _step(self) -> None:
        self._asking = True
        try:
            leases = await self._take(self._room())
            while self._full_portions >= AHEAD_AFTER and (room := self._room() - len(leases)) > 0:
                # There is more where these came from: Redis lends it while these are answered.
                ahead = asyncio.create_task(self._take(room))
                await asyncio.sleep(0)  # the request is on its way
                self._begin_all(leases)
                leases = await ahead
            self._begin_all(leases)
        finally:
            self._asking = False
        self._note_quiet()

    async def _take(self, room: int) -> list[Lease]:
        """Settle what is done and claim the next jobs; note whether there are more of them."""
        portion = self._portion()
        want = min(room, portion or room)
        if want:
            self._work_seen = False  # set again by whoever sees work while we ask
        request = ClaimRequest(want, self._spec.limits.lease_s, self._cores)
        if len(self._outbox):
            leases = await self._outbox.settle(request)
        else:
            leases = await self._queue.claim(self._spec.name, request)
            self._misses = 0 if leases else self._misses + 1
        if len(leases) < want:
            self._hungry.set()
        elif want:
            self._work_seen = True  # there may be more where these came from
        self._full_portions = self._full_portions + 1 if 0 < portion == len(leases) else 0
        return leases

    def _portion(self) -> int:
        """Return how many prompt answers are claimed at a time: half of them; 0: as many as fit.

        So that one half can be claimed while the other is answered.
        """
        capacity = self._handler.capacity
        return capacity // 2 if self._executor.is_prompt and capacity >= LARGE_CAPACITY else 0

    def _begin_all(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._begin(lease)

    def _room(self) -> int:
        if self.is_stopping or self._leases.has_lone_run:
            return 0
        # What the last step had no room for still holds its slot: else it would pile up here.
        return max(0, self._handler.capacity - self._leases.in_slots - self._outbox.left)

    async def _await_work(self, key: str, blocking: Connection) -> None:
        """Wait for work in a run queue, not taking it, whenever a claim did not fill all room."""
        backoff = Backoff()
        while True:
            await self._hungry.wait()
            if self._misses > 1:  # there is work, and none of it for us: do not spin
                await asyncio.sleep(min(MISS_FIRST_S * 2 ** (self._misses - 2), MISS_LONGEST_S))
            try:
                seen = await self._queue.wait_for_work(blocking, key)
            except (KernelError, hiredis.ReplyError):  # the pump and the leases say so
                await backoff.wait()
                continue
            backoff.reset()
            if seen:
                self._hungry.clear()
                self._see_work()

    def _see_work(self) -> None:
        self._work_seen = True
        self._wake.set()

    # Runs.

    def _begin(self, lease: Lease) -> None:
        run = Run(lease)
        earlier = self._leases.find(lease.job_id)
        if earlier is None and not lease.alone:
            ending = self._executor.answer_at_once(run)
            if ending is not None:
                self._outbox.add(ending)
                return
        run.on_aside = self._stepped_aside
        self._leases.add(run)
        task = asyncio.get_running_loop().create_task(self._answer(run, earlier))
        run.task = task
        task.add_done_callback(partial(self._ended, run))
        if self.is_stopping:
            run.suspend("drain")

    def _stepped_aside(self, run: Run) -> None:
        self._leases.note_aside(run)
        self._see_work()

    async def _answer(self, run: Run, earlier: Run | None) -> Ending | Suspension:
        """Answer a job; first end an attempt of it that lost its lease and does not know it yet."""
        if earlier is not None and earlier.task is not None:
            earlier.stop("lost")
            await asyncio.wait([earlier.task], timeout=STOP_S)
        return await self._executor.answer(run)

    def _ended(self, run: Run, task: asyncio.Task[Ending | Suspension]) -> None:
        self._leases.remove(run)
        entry = self._executor.stopped(run) if task.cancelled() else task.result()
        if entry is not None:
            self._outbox.add(entry)
        self._see_work()
        self._note_quiet()

    async def _listen(self) -> None:
        """Obey what RQ's tools, or our own cancel function, publish to this worker.

        Commands of a time without connection are lost. They are an optimisation, the lease is what
        decides: a job that was cancelled is noticed at its next renewal in any case.
        """
        backoff = Backoff()
        name = self._queue.keys.commands(self._spec.name)
        while True:
            try:
                async with Channel(self._spec.redis_url, name) as channel:
                    backoff.reset()
                    while True:
                        self._read_command(await channel.next())
            except RedisUnavailable as error:
                if backoff.calm:
                    logger.warning("no commands reach this worker: %s", error)
            await backoff.wait()

    def _read_command(self, data: bytes) -> None:
        try:
            command = msgspec.json.decode(data, type=Command)
        except (msgspec.DecodeError, UnicodeDecodeError):  # anybody may publish
            logger.warning("not a command: %.100r", data)
        else:
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command.name:
            case "shutdown":
                self.stop()
            case "kill-horse":
                self._stop_runs(list(self._leases))
            case "stop-job" | "stop-execution":
                found = self._leases.find(command.job_id)
                self._stop_runs([found] if found else [])
            case unknown:
                logger.warning("a command that workers do not know: %.50r", unknown)

    def _stop_runs(self, runs: Sequence[Run]) -> None:
        for run in runs:
            logger.info("told to stop %s", run.lease.job_id)
            run.stop("stopped")

    # Leaving.

    async def _drain(self) -> None:
        logger.info("draining %s: %d jobs are running", self._spec.name, len(self._leases))
        for run in self._leases:
            run.suspend("drain")
        if await self._quiet_within(self._spec.limits.drain_s):
            return
        for run in self._leases:
            logger.warning(
                "%s did not end in time, another worker starts it again", run.lease.job_id
            )
            run.stop("drain")
        await self._quiet_within(LAST_WORDS_S)

    async def _quiet_within(self, limit_s: float) -> bool:
        self._quiet.clear()
        self._wake.set()
        self._note_quiet()
        try:
            async with asyncio.timeout(limit_s):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    def _note_quiet(self) -> None:
        if not (len(self._leases) or len(self._outbox) or self._asking):
            self._quiet.set()

    async def _leave(self) -> None:
        if len(self._outbox):
            lost = [lease.job_id for lease in self._outbox.leases()]
            logger.error("leaving with results that could not be delivered: %s", lost)
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._queue.unregister(self._spec.name)
        except (KernelError, TimeoutError) as error:
            logger.warning("could not sign off, the record expires by itself: %s", error)
