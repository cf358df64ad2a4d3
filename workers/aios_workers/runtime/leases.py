"""All leases of a worker: of what runs, and of results on their way. Renewed in one call."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import Lease, SliceVerdict, WorkerCard
from aios_workers.runtime.executor import Run

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3  # two may fail and the third still comes in time
RETRY_S = 0.25
MOST_ASIDE = 256  # runs of one worker that hold no slot of it; those beyond hold one each


class Leases:
    """Knows every run of the worker, renews all leases; the renewal is also the heartbeat."""

    def __init__(self, queue: ModuleQueue, card: WorkerCard, lease_s: float) -> None:
        self._queue = queue
        self._card = card
        self._card_changed = False
        self._lease_s = lease_s
        self._runs: dict[str, Run] = {}
        self._alone: set[str] = set()  # jobs that have their last try
        self._aside: set[str] = set()  # jobs whose runs hold no slot

    def __len__(self) -> int:
        """Return how many jobs are running."""
        return len(self._runs)

    @property
    def in_slots(self) -> int:
        """How many of them hold a slot: of those that stepped aside only what is too many."""
        return len(self._runs) - min(len(self._aside), MOST_ASIDE)

    def __iter__(self) -> Iterator[Run]:
        """Iterate over what is running; safe while runs end."""
        return iter(list(self._runs.values()))

    def add(self, run: Run) -> None:
        """Enter a run."""
        self._runs[run.lease.job_id] = run
        self._aside.discard(run.lease.job_id)
        if run.lease.alone:
            self._alone.add(run.lease.job_id)

    def remove(self, run: Run) -> None:
        """Strike out a run that has ended."""
        if self._runs.get(run.lease.job_id) is run:
            del self._runs[run.lease.job_id]
            self._alone.discard(run.lease.job_id)
            self._aside.discard(run.lease.job_id)

    def note_aside(self, run: Run) -> None:
        """Note that a run has left its slot to others."""
        if self._runs.get(run.lease.job_id) is run:
            self._aside.add(run.lease.job_id)

    @property
    def has_lone_run(self) -> bool:
        """Whether a job has its last try: nothing else is begun meanwhile."""
        return bool(self._alone)

    def find(self, job_id: str) -> Run | None:
        """Return the run of a job, if it runs here."""
        return self._runs.get(job_id)

    def show(self, cores: Sequence[CoreCard]) -> None:
        """Show the worker with these cores, from the next renewal on."""
        self._card = replace(self._card, cores=tuple(cores))
        self._card_changed = True

    async def keep(self, unsettled: Callable[[], list[Lease]]) -> None:
        """Renew until cancelled; `unsettled`: leases of results that are on their way.

        Raises:
            InvalidConfig: a setting that no waiting makes right.
        """
        while True:
            try:
                await self.renew(unsettled())
                wait_s = self._lease_s / RENEWALS_PER_LEASE
            except InvalidConfig:
                raise
            except KernelError as error:
                logger.warning("leases of %d jobs could not be renewed: %s", len(self), error)
                wait_s = min(RETRY_S, self._lease_s / RENEWALS_PER_LEASE)
            await asyncio.sleep(wait_s)

    async def renew(self, unsettled: Iterable[Lease] = ()) -> None:
        """Renew all leases now, and obey what the queue says of each."""
        # It may have been emptied, or be another one, however well the connection stood.
        card = self._card
        if self._card_changed or not await self._queue.knows(card):
            await self._queue.register(card)
            self._card_changed = self._card is not card
        leases = [run.lease for run in self._runs.values()]
        leases += unsettled
        verdicts = await self._queue.renew(self._card, leases, self._lease_s)
        for lease, verdict in zip(leases, verdicts, strict=True):
            self._obey(lease, verdict)

    def _obey(self, lease: Lease, verdict: SliceVerdict) -> None:
        run = self._runs.get(lease.job_id)
        if run is None or run.lease.attempt != lease.attempt:
            return  # it ended meanwhile; that it no longer has a lease is no news
        if verdict == "lost":
            logger.info("the lease of %s is gone, its run is dropped", lease.job_id)
            run.stop("lost")
        elif verdict == "hold":
            run.suspend("hold")
