"""Runs: what a job is between its claim and its ending, and all those of a worker.

What a run is charged, the tokens that are paid for and what they cost, is counted here alone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import msgspec
from msgspec import Struct

from aios_broker.contract.cores import CoreCard, Price
from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.contract.money import Billed, cost_pico, nano
from aios_broker.contract.reply import Timings, Usage
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.records import Charge, Lease, SliceVerdict, WorkerCard

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3  # two may fail and the third still comes in time
RETRY_S = 0.25
MOST_ASIDE = 256  # runs of one worker that hold no slot of it; those beyond hold one each

StopReason = Literal["lost", "stopped", "drain"]
# lost: the lease is gone, write nothing. stopped: a tool wants it to end, its caller hears so.
# drain: this worker leaves and can wait no longer, another one starts it again.
SuspendReason = Literal["suspend", "hold", "drain", "needs"]  # needs: see needs.lua


class Tally:
    """What one core is paid for in one run, since its claim. Earlier runs are the lease's.

    Where an endpoint counts (`bills_requests`), each of its requests is paid as it says. Elsewhere
    the kernel counts: the prompt once per syscall and core, however often it is read again,
    and the output tokens that the run is charged.
    """

    def __init__(
        self, core: str, price: Price | None, lease: Lease, *, bills_requests: bool = False
    ) -> None:
        self._core = core
        self._price = price
        self._lease = lease
        self._bills_requests = bills_requests
        self._was_read = core in lease.read_by
        self._prompt_tokens = 0
        self._cached_tokens: int | None = None  # None: no step has come
        self._output_tokens = 0
        self._billed = Billed()

    def prompt(self, tokens: int) -> None:
        """Note how long the prompt is."""
        self._prompt_tokens = tokens

    def output(self, tokens: int) -> None:
        """Note output tokens that were generated."""
        self._output_tokens += tokens

    def step(self, cached_tokens: int, billed: Billed | None) -> None:
        """Note what a step of the core says: of the first one, how much needed no prefill."""
        if self._prompt_tokens and self._cached_tokens is None:
            self._cached_tokens = cached_tokens
        if billed is not None:
            before = self._billed
            self._billed = Billed(
                before.prompt_tokens + billed.prompt_tokens,
                before.cached_tokens + billed.cached_tokens,
                before.output_tokens + billed.output_tokens,
            )

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is, as whoever counts it says; before an endpoint has, nothing."""
        return self._billed.prompt_tokens if self._bills_requests else self._prompt_tokens

    @property
    def billed(self) -> Billed:
        """The tokens that are paid for."""
        if self._bills_requests:
            return self._billed
        prompt = 0 if self._was_read else self._prompt_tokens
        return Billed(prompt, min(prompt, self._cached_tokens or 0), self._output_tokens)

    @property
    def charge(self) -> Charge:
        """What the queue is told: totals since the claim."""
        billed, price = self.billed, self._price
        if price is None:
            return Charge(self._core, cached_tokens=billed.cached_tokens)
        cost = cost_pico(price, billed)
        return Charge(self._core, cost, price.currency, billed.cached_tokens)

    def completed(self, usage: Usage) -> Usage:
        """Return the usage of a reply with what the syscall was charged in all its runs."""
        charge, lease = self.charge, self._lease
        currency = charge.currency or lease.currency
        cost: int | None = None
        if currency:
            earlier = lease.cost_pico if lease.currency in ("", currency) else 0
            cost = nano(earlier + charge.cost_pico)
        cached = min(usage.prompt_tokens, lease.cached_tokens + charge.cached_tokens)
        return msgspec.structs.replace(
            usage, cached_tokens=cached, cost_nano=cost, currency=currency
        )


class Use(Struct, frozen=True, gc=False):
    """What a run has used since its claim."""

    ran_s: float
    tokens: int  # output
    prompt_tokens: int
    charge: Charge | None  # None: no core worked on it


class Run:
    """The time between a claim and its ending: the lease, what it used, how it is told to stop."""

    __slots__ = (
        "_clock",
        "_interrupt",
        "_prompt_tokens",
        "_started_s",
        "_tokens",
        "kv_owner",
        "lease",
        "on_aside",
        "stopping",
        "suspending",
        "tally",
        "task",
    )

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.stopping: StopReason | None = None
        self.suspending: SuspendReason | None = None
        self.task: asyncio.Task[object] | None = None
        self.tally: Tally | None = None  # of the core that works on it
        self.kv_owner = ""  # whose contexts a core may reuse for it; empty: anybody's
        self.on_aside: Callable[[Run], None] | None = None  # a slot is free
        self._clock = asyncio.get_running_loop().time
        self._started_s = self._clock()
        self._tokens = 0
        self._prompt_tokens = 0
        self._interrupt: Callable[[SuspendReason], None] | None = None

    def step_aside(self) -> None:
        """Leave the slot to others from here on: what this run does is wait for somebody else."""
        if self.on_aside is not None:
            self.on_aside(self)

    def count_tokens(self, count: int) -> None:
        """Note output tokens that were generated."""
        self._tokens += count
        if self.tally is not None:
            self.tally.output(count)

    def count_prompt(self, count: int) -> None:
        """Note how long the prompt is; it is charged once per syscall."""
        self._prompt_tokens = count
        if self.tally is not None:
            self.tally.prompt(count)

    def note_step(self, cached_tokens: int, billed: Billed | None) -> None:
        """Note what a step of the core says of what is paid for."""
        if self.tally is not None:
            self.tally.step(cached_tokens, billed)

    def use(self) -> Use:
        """Return what was used since the claim: totals, which may be told more than once."""
        ran_s, tally = self._clock() - self._started_s, self.tally
        if tally is None:
            return Use(ran_s, self._tokens, self._prompt_tokens, None)
        return Use(ran_s, self._tokens, tally.prompt_tokens, tally.charge)

    def timings(self) -> Timings:
        """Return where the time went so far, earlier slices included."""
        lease = self.lease
        return Timings(
            queued_s=lease.queued_s,
            ran_s=round(lease.ran_s + self._clock() - self._started_s, 6),
            slices=lease.slices + 1,
            suspensions=lease.suspensions,
            attempts=lease.attempt,
        )

    def on_suspend(self, interrupt: Callable[[SuspendReason], None]) -> None:
        """Tell how this run is suspended; called at once if it already should be."""
        self._interrupt = interrupt
        if self.suspending is not None:
            interrupt(self.suspending)

    def suspend(self, reason: SuspendReason) -> None:
        """Ask the handler to stop half-way. One that cannot goes on to its end."""
        if self.suspending is None:
            self.suspending = reason
            if self._interrupt is not None:
                self._interrupt(reason)

    def stop(self, reason: StopReason) -> None:
        """Cancel the handler; the first reason counts."""
        if self.stopping is None:
            self.stopping = reason
            if self.task is not None:
                self.task.cancel()


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
