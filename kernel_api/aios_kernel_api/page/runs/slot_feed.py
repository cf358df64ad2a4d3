"""What the slots of a module do now, read once for all who look at this process of the API."""

import asyncio
from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from aios_broker.contract.names import Module
from aios_broker.ledger.history import History
from aios_broker.retry import now_s
from aios_broker.views.slots import Slice, SlotHistory
from aios_kernel_api.kernel import Kernel

FOLLOW_EVERY_S = 0.25
SAMPLE_EVERY_S = 1.0
SAMPLES = 600  # that are kept, for whoever comes to look while others do
RUNNING_LOOKED_AT = 512  # the first jobs of the module: those that run come first
MOST_SLICES = 1_000  # of one event; of more the longest are sent
UNWATCHED_S = 5.0  # after so long without anybody it begins anew


class Sample(Struct, frozen=True, array_like=True):
    """One moment of a module, for the charts."""

    at_s: float
    tokens_per_s: float
    running: int
    waiting: int
    oldest_wait_s: float


class Served(Struct, frozen=True, array_like=True):
    """A worker and its slots."""

    worker: str
    slots: int
    cores: tuple[str, ...]


class News(Struct, frozen=True):
    """What one who looks has not been sent yet."""

    now_ms: int
    is_new: bool  # what was sent before counts no more
    slices: Sequence[Slice]
    workers: Sequence[Served]
    samples: Sequence[Sample]
    left_out: int = 0  # slices that were too many to be sent


class Place(Struct):
    """How far one who looks has been told."""

    beginning: int = 0
    change: int = 0
    sampled_at_s: float = 0.0


class SlotFeed:
    """Follows one module while somebody looks."""

    def __init__(self, kernel: Kernel, module: Module) -> None:
        self._kernel = kernel
        self._module: Module = module
        self._history = History(kernel.connection, kernel.keys, kernel.database)
        self._slots = SlotHistory(module)
        self._workers: Sequence[Served] = ()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._lock = asyncio.Lock()
        self._beginning = 0
        self._followed_at_s = self._sampled_at_s = -1.0e9
        self._tokens_at_sample = 0
        self._now_ms = 0

    async def news(self, place: Place) -> News:
        """Return what is new for one who looks, and move its place.

        Raises:
            KernelError: Redis or Postgres does not answer.
        """
        async with self._lock:
            await self._follow()
        is_new = place.beginning != self._beginning
        if is_new:
            place.change, place.sampled_at_s = 0, 0.0
        changed = self._slots.since(place.change)
        slices = sorted(changed.slices, key=_weight)[:MOST_SLICES]
        samples = [each for each in self._samples if each.at_s > place.sampled_at_s]
        place.beginning, place.change = self._beginning, changed.place
        if samples:
            place.sampled_at_s = samples[-1].at_s
        left_out = changed.left_out + len(changed.slices) - len(slices)
        return News(self._now_ms, is_new, slices, self._workers, samples, left_out)

    async def _follow(self) -> None:
        """Read what has come, unless somebody has just read it."""
        at_s = now_s()
        if at_s - self._followed_at_s < FOLLOW_EVERY_S:
            return
        if at_s - self._followed_at_s > UNWATCHED_S:
            await self._begin()
        else:
            await self._slots.follow(self._history)
        self._followed_at_s = at_s
        self._now_ms = round((await self._kernel.fleet.now()).timestamp() * 1000)
        if at_s - self._sampled_at_s >= SAMPLE_EVERY_S:
            await self._sample(at_s)

    async def _begin(self) -> None:
        slots = SlotHistory(self._module)
        await slots.begin(self._history)
        self._slots = slots
        self._beginning += 1
        self._samples.clear()
        self._sampled_at_s, self._tokens_at_sample = -1.0e9, 0

    async def _sample(self, at_s: float) -> None:
        control = self._kernel.control
        jobs = await control.jobs(self._module, limit=RUNNING_LOOKED_AT)
        self._slots.compare(jobs, self._now_ms)
        workers = await self._kernel.fleet.live_workers()
        self._workers = [
            Served(one.name, one.slots, one.cores) for one in workers if one.module == self._module
        ]
        queue = await control.queue(self._module)
        lasted_s = at_s - self._sampled_at_s
        tokens = self._slots.tokens - self._tokens_at_sample
        self._samples.append(
            Sample(
                self._now_ms / 1000,
                round(tokens / lasted_s, 1),
                queue.running,
                queue.waiting,
                queue.oldest_wait_s,
            )
        )
        self._sampled_at_s, self._tokens_at_sample = at_s, self._slots.tokens


def _weight(each: Slice) -> tuple[bool, int]:
    """Return what comes first where not all can be sent: what runs, then what was long."""
    return each.ends_ms is not None, each.begins_ms - (each.ends_ms or 0)


class SlotFeeds:
    """The feeds of one process, by module."""

    def __init__(self) -> None:
        self._feeds: dict[Module, SlotFeed] = {}

    def of(self, kernel: Kernel, module: Module) -> SlotFeed:
        """Return the feed of a module."""
        if module not in self._feeds:
            self._feeds[module] = SlotFeed(kernel, module)
        return self._feeds[module]
