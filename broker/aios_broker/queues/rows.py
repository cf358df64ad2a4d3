"""The rows that the Lua steps take and give: declared here, and nowhere else.

Python packs and reads them by name. For Lua, `lua_source` writes a function for each:
`read.submission(c)` takes the next row of the call's arguments, `pack.lease(job)` gives the fields
of a table in the row's order.
"""

from collections.abc import Sequence
from typing import NamedTuple


class ClaimRow(NamedTuple):
    """Who takes how many more jobs, and which; also before what a worker ends or suspends."""

    worker: str
    iso: str
    want: int
    lease_ms: int
    cores: str  # a comma between


class SubmissionRow(NamedTuple):
    """A job to publish."""

    id: str
    data: bytes
    description: str
    metadata: bytes  # JSON
    needs: str
    client: str
    deadline_ms: int  # from now


class ProofRow(NamedTuple):
    """Who a job is from, by a token."""

    place: int  # of the job among those that are submitted, from 1
    token_digest: str


class VouchRow(NamedTuple):
    """A stock producer's job, as it is once its token was exchanged."""

    id: str
    attempt: int
    data: bytes
    description: str
    token_digest: str
    metadata: bytes  # JSON; empty: it is not to run


class NeedsRow(NamedTuple):
    """What a running job needs, as its worker knows it."""

    id: str
    attempt: int
    needs: str
    tool: str  # whose card its worker has; empty: none
    limits: str  # of that card


class EndingRow(NamedTuple):
    """How a job ended. What it used (ran_ms to bill) is told as totals since its claim."""

    id: str
    attempt: int
    status: str  # finished, failed
    reply: bytes
    result: bytes  # as RQ stores it
    ran_ms: int
    tokens: int
    prompt: int
    bill: str  # of a `Charge`; empty: no core worked on it
    quarantine: int  # 0, 1


class SuspensionRow(NamedTuple):
    """A job that leaves its worker, to go on later."""

    id: str
    attempt: int
    reason: str
    snapshot: bytes  # empty: the last one stands
    ran_ms: int
    tokens: int
    prompt: int
    bill: str
    core: str  # that goes on with it; empty: the same


class SliceRow(NamedTuple):
    """What a job has used at the end of a slice."""

    id: str
    attempt: int
    ran_ms: int
    tokens: int
    prompt: int
    bill: str
    checkpoint: bytes  # empty: the last one stands
    slice_ms: int  # the rest is `SliceTerms`
    resume_ms: int
    least_ms: int
    crowded_ms: int
    fits: int
    memory: str


class RenewalRow(NamedTuple):
    """A lease that goes on."""

    id: str
    attempt: int


class ChunkRow(NamedTuple):
    """A piece of a stream."""

    id: str
    attempt: int
    chunk: bytes
    part: str
    offset: int  # in characters
    text: bytes  # four bytes a character


class WorkerRow(NamedTuple):
    """A worker that begins."""

    worker: str
    iso: str
    pid: int
    hostname: str
    version: str
    slots: int
    cores: str
    instance: str  # of its process


class CardRow(NamedTuple):
    """A core of a worker's."""

    name: str
    json: bytes


class ContextRow(NamedTuple):
    """Which context a syscall is at, and for how long both are kept."""

    owner: str  # its part of the key
    syscall: str
    op_ttl_s: int
    ttl_s: int


class ContextChangeRow(NamedTuple):
    """What is done to a context; the messages follow."""

    how: str  # set, append, clear, replace
    drop: int  # of replace: so many first messages
    rewrites: int  # of replace: those that were seen
    attempt: str  # whose lease must stand; empty: nobody's
    max_messages: int
    max_bytes: int
    tenant: str
    agent: str
    name: str


class ResponseRow(NamedTuple):
    """An answer that is kept for its agent."""

    owner: str  # its part of the key
    id: str
    record: bytes
    context: str  # that it stands in; empty: none
    known: int  # 1: only where it is kept already
    ttl_s: int
    most: int
    most_bytes: int


class LeaseRow(NamedTuple):
    """A job that is lent; of a newcomer the row ends before its past."""

    id: bytes
    attempt: int
    data: bytes
    trusted: int
    wanted: int  # somebody waits for it
    queued_ms: int
    deadline_ms: int  # from now
    ran_ms: int = 0
    slices: int = 0
    suspensions: int = 0
    losses: int = 0
    has_snapshot: int = 0
    alone: int = 0
    decided: bytes = b""
    cost: bytes = b"0"  # pico-units, of earlier attempts
    currency: bytes = b""
    cached: int = 0  # prompt tokens that were charged as such
    read_by: bytes = b""  # cores that the prompt was charged on, a space between
    tried: bytes = b""  # cores that gave it to another one, a space between


class JobRow(NamedTuple):
    """A job that has not ended."""

    id: bytes
    state: bytes
    metadata: bytes
    needs: bytes
    worker: bytes
    attempt: int
    slices: int
    suspensions: int
    losses: int
    tokens: int
    queued_ms: int
    ran_ms: int
    age_ms: int
    submitted_ms: int
    deadline_ms: int | None  # from now
    position: int | None  # where it waits
    score: bytes | None
    nice: bytes | None  # None: as submitted
    uncut: bytes | None  # see slice.lua
    queue: bytes  # where it waits, or waited last


class WaitingRow(NamedTuple):
    """What a policy needs to know of a job."""

    metadata: bytes
    needs: bytes
    submitted_ms: int
    ready_ms: int
    ran_ms: int
    tokens: int
    slices: int
    deadline_ms: int
    nice: bytes  # empty: as submitted
    core: bytes  # in whose run queue it is; empty: the module's own


class QueueRow(NamedTuple):
    """A queue at a glance."""

    waiting: int
    running: int
    held: int
    finished: int
    failed: int
    quarantined: int
    policy: bytes
    oldest_ms: int
    parked: int


class CoreRow(NamedTuple):
    """A core that is known, and its queue."""

    card: bytes
    slots: int  # of its living workers; -1: none lives
    silent_ms: int  # since a worker said that it serves it
    waiting: int
    running: int


_TAKEN = (
    ClaimRow,
    SubmissionRow,
    ProofRow,
    VouchRow,
    NeedsRow,
    EndingRow,
    SuspensionRow,
    SliceRow,
    RenewalRow,
    ChunkRow,
    WorkerRow,
    CardRow,
    ContextRow,
    ContextChangeRow,
    ResponseRow,
)
_GIVEN = (LeaseRow, JobRow, WaitingRow, QueueRow, CoreRow)


def lua_source() -> str:
    """Return the functions by which the steps read and pack rows, such as `read.claim`."""
    readers = [_reader(row.__name__, row._fields) for row in _TAKEN]
    packers = [_packer(row.__name__, row._fields, len(row._field_defaults)) for row in _GIVEN]
    return "\n".join(["local read, pack = {}, {}", *readers, *packers])


def _reader(name: str, fields: Sequence[str]) -> str:
    values = [f"{field} = args[at + {place}]" for place, field in enumerate(fields)]
    return f"""\
function read.{_in_lua(name)}(c)
    local args, at = c.args, c.at
    c.at = at + {len(fields)}
    return {{{", ".join(values)}}}
end"""


def _packer(name: str, fields: Sequence[str], optional: int) -> str:
    """Return a function that leaves out the last ones where the first of them is not there."""
    values = [f"row.{field}" for field in fields]
    head = values[: len(values) - optional]
    short = f"if not {values[len(head)]} then return {{{', '.join(head)}}} end" if optional else ""
    return f"""\
function pack.{_in_lua(name)}(row)
    {short}
    return {{{", ".join(values)}}}
end"""


def _in_lua(name: str) -> str:
    return name.removesuffix("Row").lower()
