"""The slots of a module in time: which slices ran in them lately, and which run now.

It follows the journal, as far as somebody looks: what is read once serves all who look. The lanes
of a worker are as many as run at a time (`views/lanes.py`).
"""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from aios_broker.contract.names import Module
from aios_broker.contract.transitions import TABLE, TERMINAL
from aios_broker.ledger.history import FRESH_ENTRIES, Filter, History, HistoryEvent
from aios_broker.ledger.journal import BEGINNINGS, JobUse, Position, read_use
from aios_broker.queues.records import JobView
from aios_broker.views.lanes import Lanes

WINDOW_MS = 60_000  # that is kept, and drawn
KEPT_CHANGES = 4_000  # of the window; of more the oldest go
MAX_USED = 100_000  # syscalls of which it is remembered what they used
FIRST_CHANGES = 2_000  # that are read when somebody begins to look
_ENDS = frozenset(event for event, (_, state) in TABLE.items() if state not in ("running", None))
_LAST = frozenset(event for event, (_, state) in TABLE.items() if state in TERMINAL)


class Slice(Struct, frozen=True):
    """One slice: a syscall in the slots of a worker."""

    number: int  # of this process; a slice that ends keeps its own
    worker: str
    lanes: tuple[int, ...]
    job_id: str
    tenant: str
    agent: str
    program: str
    kind: str
    begins_ms: int  # 0: before anybody looked
    goes_on: bool = False  # it ran before
    ends_ms: int | None = None  # None: it runs
    ended_by: str = ""  # the event, or `unheard`
    tokens: int = 0  # in this slice
    ran_ms: int = 0
    core: str = ""


class Changed(Struct, frozen=True):
    """Slices that began or ended since a place in the order of all such changes."""

    slices: Sequence[Slice]
    place: int
    left_out: int = 0  # that had changed, and are not kept any more


class SlotHistory:
    """The slices of one module; for one event loop."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self._position = Position()
        self._lanes: dict[str, Lanes] = {}
        self._running: dict[str, Slice] = {}
        self._used: dict[str, JobUse] = {}  # so far, of what has not ended
        self._changes: deque[tuple[int, int, Slice]] = deque()
        self._place = 0
        self._dropped = 0  # the place of the newest change that is not kept
        self._numbers = 0
        self._differed: set[str] = set()  # what the queue and the journal did not agree on
        self.tokens = 0  # output tokens that were charged since somebody looks

    async def begin(self, history: History) -> None:
        """Read what happened lately."""
        wanted = Filter(module=self.module)
        events = await history.last(wanted, FIRST_CHANGES, FRESH_ENTRIES)
        if events:
            self._position = events[-1].transition.position
        self.enter(events)
        self.tokens = 0

    async def follow(self, history: History) -> None:
        """Read what has come since."""
        events, self._position = await history.news(self._position, self.module)
        self.enter(events)

    def since(self, place: int) -> Changed:
        """Return what has changed behind a place; 0: all that is kept, and all that runs."""
        latest = {each.number: each for at, _, each in self._changes if at > place}
        if not place:
            latest |= {each.number: each for each in self._running.values()}
        left_out = max(0, self._dropped - place) if place else 0
        return Changed(list(latest.values()), self._place, left_out)

    def enter(self, events: Iterable[HistoryEvent]) -> None:
        """Let transitions happen."""
        for event in events:
            change = event.transition
            if change.event == "claim":
                self._claimed(event)
            elif change.event in _ENDS:
                self._ended(event)

    def compare(self, jobs: Sequence[JobView], now_ms: int) -> None:
        """Bring it in step with what the queue runs: what began unseen, what ended unheard.

        What differs once may be about to be read; what differs twice in a row is believed.
        `jobs`: all that run; their counts are newer than those of the journal.
        """
        running = {job.job_id: job for job in jobs if job.state == "running"}
        differ = running.keys() ^ self._running.keys()
        for job_id in differ & self._differed:
            if job_id in running:
                self._found(running[job_id])
            else:
                self._end(job_id, now_ms, "unheard")
                self._used.pop(job_id, None)
        self._differed = differ
        for job_id, job in running.items():
            self._count(job_id, JobUse(job.tokens, round(job.ran_s * 1000)))
        while self._changes and self._changes[0][1] < now_ms - WINDOW_MS:
            self._drop()

    def _claimed(self, event: HistoryEvent) -> None:
        change, one = event.transition, event.metadata
        self._end(change.job_id, change.position.ms, "claim")
        lanes = self._lanes.setdefault(change.who, Lanes()).begin(change.job_id, one.width)
        self._begin(
            Slice(
                self._next_number(),
                change.who,
                lanes,
                change.job_id,
                one.tenant,
                one.agent,
                one.program,
                one.kind,
                change.position.ms,
                (change.attempt or 1) > 1,
            )
        )

    def _found(self, job: JobView) -> None:
        """Take in a slice whose beginning was not seen."""
        one = job.metadata
        lanes = self._lanes.setdefault(job.worker, Lanes()).begin(job.job_id, one.width)
        names = (one.tenant, one.agent, one.program, one.kind)
        number = self._next_number()
        self._begin(Slice(number, job.worker, lanes, job.job_id, *names, 0, job.attempt > 1))

    def _ended(self, event: HistoryEvent) -> None:
        change = event.transition
        if change.event not in BEGINNINGS:
            self._count(change.job_id, read_use(change.detail))
        self._end(change.job_id, change.position.ms, change.event)
        if change.event in _LAST:
            self._used.pop(change.job_id, None)

    def _count(self, job_id: str, used: JobUse) -> None:
        """Charge the slice that runs with what is new in what its syscall has used so far."""
        running = self._running.get(job_id)
        if running is None:
            return
        before = self._used.get(job_id)
        if before is None:  # what it used before anybody looked is no news
            began_unseen = running.goes_on or not running.begins_ms
            before = used if began_unseen else JobUse()
        tokens = max(0, used.tokens - before.tokens)
        ran_ms = max(0, used.ran_ms - before.ran_ms)
        self.tokens += tokens
        if len(self._used) >= MAX_USED:
            self._used.clear()
        self._used[job_id] = JobUse(before.tokens + tokens, before.ran_ms + ran_ms)
        self._running[job_id] = msgspec.structs.replace(
            running,
            tokens=running.tokens + tokens,
            ran_ms=running.ran_ms + ran_ms,
            core=used.core or running.core,
        )

    def _begin(self, each: Slice) -> None:
        self._running[each.job_id] = each
        self._tell(each, each.begins_ms or self._position.ms)

    def _end(self, job_id: str, at_ms: int, how: str) -> None:
        each = self._running.pop(job_id, None)
        if each is None:
            return
        lanes = self._lanes[each.worker]
        lanes.end(job_id)
        if lanes.is_idle:
            del self._lanes[each.worker]
        self._tell(msgspec.structs.replace(each, ends_ms=at_ms, ended_by=how), at_ms)

    def _tell(self, each: Slice, at_ms: int) -> None:
        self._place += 1
        self._changes.append((self._place, at_ms, each))
        if len(self._changes) > KEPT_CHANGES:
            self._drop()

    def _drop(self) -> None:
        self._dropped, *_ = self._changes.popleft()

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers
