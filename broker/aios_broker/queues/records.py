"""What the queue functions take and give, in domain types.

None of them can be part of a cycle, so the garbage collector need not follow them (`gc=False`):
with thousands under way that was a good part of a client's time.
"""

import base64
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Literal

import msgspec
from msgspec import Struct

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Owner, tree_of
from aios_broker.contract.syscall import Need, State, Syscall, core_of
from aios_broker.contract.tools import ToolRun


def iso_now() -> str:
    """Return the time for RQ's records: display only, decisions use Redis' own clock."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


SliceVerdict = Literal["go", "suspend", "hold", "lost"]
# go: nobody waits who deserves the slot more. suspend: somebody does.
# hold: an operator suspends it. lost: the lease is gone (dead-lined, cancelled, reclaimed):
# stop, write nothing, the caller has its answer.


class JobMetadata(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the scheduler and the tools know of a syscall, beside its place and its counters."""

    agent: str
    kind: str
    program: str = "main"
    tenant: str = "default"
    nice: int = 0
    width: int = 1  # places of a core that it takes at a time: answers, times beams
    traceparent: str = ""
    asked_by: str = ""  # a syscall's id
    tool: str = ""  # that it calls

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.tenant, self.agent)

    @property
    def tree(self) -> str:
        """The tree of programs that it is of: the unit that policies are fair to."""
        return tree_of(self.program)


_STRANGER = JobMetadata(agent="?", kind="?")
_metadata_decoder = msgspec.json.Decoder(JobMetadata)


def who(owner: Owner | None) -> str:
    """Return an agent as the steps name it; the empty string: the kernel, or its operator."""
    return "" if owner is None else " ".join(owner)


def metadata_of(syscall: Syscall) -> JobMetadata:
    """Return what is kept of a syscall beside its job."""
    return JobMetadata(
        syscall.agent,
        syscall.kind,
        syscall.program,
        syscall.tenant,
        syscall.nice,
        syscall.width,
        syscall.traceparent,
        syscall.asked_by,
        syscall.body.tool if isinstance(syscall.body, ToolRun) else "",
    )


def read_metadata(data: bytes) -> JobMetadata:
    """Return the metadata in a job's record; of one that a foreign hand wrote, nothing is known."""
    try:
        return _metadata_decoder.decode(data) if data else _STRANGER
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _STRANGER


class Submission(Struct, frozen=True, gc=False):
    """One job to publish. `data` is RQ's: JSON of [function, null, args, kwargs]."""

    job_id: str
    data: bytes
    metadata: JobMetadata
    client: str  # whose reply list hears of it; "": nobody waits
    needs: tuple[Need, ...] = ()
    deadline_s: float = 600.0
    description: str = ""
    token_digest: str = ""  # of the token that says who it is from; "": the door vouches for it


class Charge(Struct, frozen=True, gc=False):
    """What a run has cost since its claim, on the core that it runs on."""

    core: str
    cost_pico: int = 0
    currency: str = ""  # empty: the core has no price
    cached_tokens: int = 0  # of the prompt tokens that it was charged

    def packed(self) -> str:
        """Return it as the queue takes it."""
        return f"{self.core} {self.currency or '-'} {self.cost_pico} {self.cached_tokens}"


class Lease(Struct, frozen=True, gc=False):
    """A worker's time-limited right to a job. The attempt is the fencing token."""

    job_id: str
    attempt: int
    data: bytes
    trusted: bool  # published by the submit function; else by a stock tool: check its token
    wants_chunks: bool  # somebody waits for it
    queued_s: float  # waited so far, all waits together
    ran_s: float  # ran so far, in earlier slices
    slices: int  # earlier slices that ended in a suspension or a loss
    suspensions: int
    losses: int  # how often a worker died with it
    deadline_in_s: float
    has_snapshot: bool
    alone: bool = False  # its last try: it may be what killed its workers
    decided: bool = False  # it was parked, and a person has decided: it looks what
    cost_pico: int = 0  # what earlier attempts were charged
    currency: str = ""
    cached_tokens: int = 0  # of the prompt tokens that they were charged
    read_by: tuple[str, ...] = ()  # cores on which the prompt was charged
    tried: tuple[str, ...] = ()  # cores that have given it to another one, see Suspension.core


class Ending(Struct, frozen=True, gc=False):
    """How a job ended on a worker. `reply` is the encoded Reply, result and error alike."""

    lease: Lease
    status: Literal["finished", "failed"]
    reply: bytes
    ran_s: float  # since the claim, as the tokens
    tokens: int = 0  # output tokens
    quarantine: bool = False  # a job that must never run again (foreign code)
    prompt_tokens: int = 0  # charged once per syscall, however often the prompt is read again
    charge: Charge | None = None  # None: no core worked on it


RQ_RESULT_BYTES = 64 * 1024  # of a reply that RQ's tools are shown


def rq_result(end: Ending) -> bytes:
    """Return what RQ's result stream holds: the value, or, compressed, the text of the error.

    Of a long reply to one of our own clients, which has it under its id, RQ's tools are told its
    length: Redis would keep it a third time, and stand still for that.
    """
    if end.status == "failed":
        return base64.b64encode(zlib.compress(end.reply))
    if not end.lease.trusted or len(end.reply) <= RQ_RESULT_BYTES:
        return base64.b64encode(end.reply)
    told = {"kind": "reply", "id": end.lease.job_id, "bytes": len(end.reply), "left_out": "result"}
    return base64.b64encode(msgspec.json.encode(told))


class Suspension(Struct, frozen=True, gc=False):
    """A suspended job on its way back to the run queue (or, held or parked, out of it)."""

    lease: Lease
    snapshot: bytes | None  # None: the last checkpoint stands, or it starts from the beginning
    ran_s: float  # since the claim, as the tokens
    tokens: int = 0
    reason: Literal["suspend", "hold", "drain", "park", "needs"] = "suspend"
    prompt_tokens: int = 0
    charge: Charge | None = None
    core: str = ""  # it goes on there, in that core's run queue: a fallback. Empty: where it was


class SliceTerms(Struct, frozen=True, gc=False):
    """From when on a slice may be cut: by somebody who waits, not by an operator or a quota."""

    slice_ms: float = 0.0  # since its first token
    resume_ms: float = 0.0  # what going on later costs
    least_ms: float = 0.0  # a shorter slice is not cut ...
    crowded_ms: float = 0.0  # ... nor one below this, where contexts do not fit the memory
    fits: int = 0  # contexts that the core's memory holds; 0: it does not say
    memory: str = ""  # which: cores on one server share theirs


class SliceUse(Struct, frozen=True, gc=False):
    """What a running job used since its claim, at the end of a slice. Sent again, it is no more."""

    lease: Lease
    ran_s: float
    tokens: int
    checkpoint: bytes | None  # snapshot bytes: what a killed worker does not lose
    prompt_tokens: int = 0
    charge: Charge | None = None
    terms: SliceTerms = SliceTerms()


class Uncut(Struct, frozen=True, gc=False):
    """A cut that was due and was not made."""

    slice_s: float
    resume_s: float
    least_s: float  # a longer slice would have been cut
    contexts: int  # begun, with the one that waited
    fits: int  # in memory; 0: it is not known, or does not matter

    @property
    def is_crowded(self) -> bool:
        """Whether it was for the memory's sake."""
        return 0 < self.fits < self.contexts


@cache
def instance() -> str:
    """Return what tells this process from all others, whatever their host names and ids."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """How a worker shows itself to RQ's tools and to ours."""

    name: str
    module: str
    pid: int
    hostname: str
    slots: int
    cores: tuple[CoreCard, ...] = ()  # that it serves; only the llm module has them
    version: str = ""
    instance: str = field(default_factory=instance)  # of its process: no two live under one name

    @property
    def core_names(self) -> tuple[str, ...]:
        """The names of its cores, which are those of their run queues."""
        return tuple(core.name for core in self.cores)

    def refused(self, pid: bytes, host: bytes) -> InvalidConfig:
        """Return the error where another process has a worker of this name."""
        return InvalidConfig(
            f"a worker called {self.name} lives: process {pid.decode()} on {host.decode()}",
            field="name",
            remedy="give this one another name, or wait until the lease of that one is over",
        )


@dataclass(frozen=True, slots=True)
class JobView:
    """One syscall as `ps`, `why` and the SDK's handle see it."""

    job_id: str
    module: str
    state: State
    metadata: JobMetadata
    needs: tuple[Need, ...]
    worker: str
    attempt: int
    slices: int
    suspensions: int
    losses: int
    tokens: int
    queued_s: float  # up to now
    ran_s: float  # up to the last charge
    age_s: float  # since submission
    deadline_in_s: float | None
    position: int | None  # 0 is next in its queue; None when it does not wait
    score: float | None
    uncut: Uncut | None = None  # the last one of the slice that runs
    queue: str = ""  # where it waits, or waited last: its module's own, or that of a core
    submitted_at_s: float = 0.0  # since 1970, by the clock of Redis

    @property
    def core(self) -> str:
        """The core in whose run queue it is; else what it asks for; the empty string: any."""
        return self.queue.partition(".")[2] or core_of(self.needs)

    @property
    def tool(self) -> str:
        """The tool that it calls; the empty string: none."""
        return next((need.name for need in self.needs if need.kind == "tool"), "")

    @property
    def asked_core(self) -> str:
        """The name, alias or model that it asks for; the empty string: none."""
        return core_of(self.needs)


@dataclass(frozen=True, slots=True)
class CoreView:
    """One core that is known, and its run queue."""

    card: CoreCard
    slots: int | None  # of its living workers; None: none lives
    silent_s: float  # since a worker said that it serves it
    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """One module's queue at a glance."""

    module: str
    waiting: int
    running: int
    held: int
    finished: int  # in RQ's registry: those whose result has not expired
    failed: int
    quarantined: int
    policy: str
    oldest_wait_s: float
    parked: int = 0
    cores: Sequence[CoreView] = ()  # of the one module whose cores have queues of their own


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """What the scheduler publishes for a queue; workers obey it while no scheduler lives."""

    name: str = "rr"
    preempt: Literal["none", "waiting", "score"] = "waiting"
    quantum_s: float = 0.5  # a slice ends after this time ...
    quantum_tokens: int = 64  # ... or this many output tokens, whichever comes first
    max_waiting: int = 100_000  # beyond it submit refuses with QueueFull
    # A syscall whose core is known and has no worker: it waits up to its deadline, or is refused.
    unserved_core: Literal["wait", "refuse"] = "wait"
    max_losses: int = 3  # workers that may die with a job before it is quarantined
