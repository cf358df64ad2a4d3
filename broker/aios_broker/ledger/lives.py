"""From transitions to lives: where each syscall was, from when to when, and what it used there.

Pure. The figures are the journal's own: what all stays of a life used adds up to its row in the
ledger, and its stays follow each other without a gap, from its submission to its end.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from aios_broker.contract.syscall import State
from aios_broker.contract.transitions import TABLE, TERMINAL
from aios_broker.ledger.history import HistoryEvent
from aios_broker.ledger.journal import BEGINNINGS, JobUse, Transition, read_use
from aios_broker.queues.records import JobMetadata

_TARGETS: dict[str, State | None] = {event: target for event, (_, target) in TABLE.items()}
_WITHOUT_USE = frozenset((*BEGINNINGS, "move"))  # their details say something else


@dataclass(slots=True)
class Stay:
    """A time that a syscall was in one state without a break: a wait, or a slice."""

    state: State
    begins_ms: int
    ends_ms: int | None = None  # None: it is there still
    attempt: int = 0
    worker: str = ""  # of a slice; the next too
    core: str = ""  # known when it has ended
    tokens: int = 0  # output, used in it
    ran_ms: int = 0  # slot time, as its worker measured it
    cost_nano: int = 0
    currency: str = ""
    ended_by: str = ""  # the event

    @property
    def is_slice(self) -> bool:
        """Whether it ran."""
        return self.state == "running"

    def lasts_ms(self, now_ms: int) -> int:
        """Return how long it has lasted."""
        return max(0, (now_ms if self.ends_ms is None else self.ends_ms) - self.begins_ms)


@dataclass(slots=True)
class Life:
    """One syscall from its submission on. An id that comes again begins another one."""

    job_id: str
    module: str
    metadata: JobMetadata
    begins_ms: int
    is_whole: bool = True  # its beginning is known
    ends_ms: int | None = None
    state: State = "queued"
    error_code: str = ""
    stays: list[Stay] = field(default_factory=list)
    changes: list[Transition] = field(default_factory=list)
    used: JobUse = field(default_factory=JobUse)  # all in all, so far

    @property
    def slices(self) -> list[Stay]:
        """Return the stays in which it ran."""
        return [stay for stay in self.stays if stay.is_slice]

    def waited_ms(self, now_ms: int) -> int:
        """Return how long it waited, in whatever state."""
        return sum(stay.lasts_ms(now_ms) for stay in self.stays if not stay.is_slice)

    def lasts_ms(self, now_ms: int) -> int:
        """Return how long it has lived."""
        return max(0, (now_ms if self.ends_ms is None else self.ends_ms) - self.begins_ms)


def lives_of(events: Iterable[HistoryEvent]) -> list[Life]:
    """Return the lives that transitions tell of, in the order of their beginnings."""
    lives: list[Life] = []
    latest: dict[str, Life] = {}
    for event in events:
        change = event.transition
        life = latest.get(change.job_id)
        if life is None or (life.ends_ms is not None and change.event in BEGINNINGS):
            life = latest[change.job_id] = _begun(event, life)
            lives.append(life)
        enter(life, change)
    return lives


def _begun(event: HistoryEvent, before: Life | None) -> Life:
    """Begin a life. What a stock tool requeues goes on with the counters of the one before."""
    change = event.transition
    whole = change.event in BEGINNINGS
    life = Life(change.job_id, change.module, event.metadata, change.position.ms, is_whole=whole)
    if before is not None and change.event == "adopt":
        life.used = before.used._replace(code="")
    return life


def enter(life: Life, change: Transition) -> None:
    """Let one more transition happen. What has ended stays as it is, as in the ledger."""
    if life.ends_ms is not None:
        return
    life.changes.append(change)
    if change.event not in _TARGETS:
        return
    used = JobUse() if change.event in _WITHOUT_USE else read_use(change.detail)
    _charge(life, used)
    state = _TARGETS[change.event]
    if state is None or (life.stays and state == life.state):
        _go_on(life, change)
    elif state in TERMINAL:
        _leave(life, change)
        life.state, life.ends_ms = state, change.position.ms
        life.error_code = "" if state == "finished" else used.code or state
    else:
        _leave(life, change)
        worker = change.who if state == "running" else ""
        life.state = state
        life.stays.append(Stay(state, change.position.ms, None, change.attempt or 0, worker))


def _leave(life: Life, change: Transition) -> None:
    if life.stays:
        life.stays[-1].ends_ms, life.stays[-1].ended_by = change.position.ms, change.event


def _go_on(life: Life, change: Transition) -> None:
    """Stay in the state. What is claimed although it runs was lost by its worker."""
    if not life.stays:  # what it did before it was moved is not known; it waits
        life.stays.append(Stay(life.state, change.position.ms))
    if change.event == "claim":
        life.stays[-1].worker, life.stays[-1].attempt = change.who, change.attempt or 0


def _charge(life: Life, used: JobUse) -> None:
    """Charge the stay that ends with what is new in what the syscall used so far."""
    before = life.used
    life.used = after = JobUse(
        max(before.tokens, used.tokens),
        max(before.ran_ms, used.ran_ms),
        used.code,
        used.core or before.core,
        used.cost_nano if used.core else before.cost_nano,
        used.currency if used.core else before.currency,
    )
    if life.stays:
        stay = life.stays[-1]
        stay.tokens += after.tokens - before.tokens
        stay.ran_ms += after.ran_ms - before.ran_ms
        stay.cost_nano += after.cost_nano - before.cost_nano
        stay.currency = after.currency
        stay.core = used.core if stay.is_slice else ""
