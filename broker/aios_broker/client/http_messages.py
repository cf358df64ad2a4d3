"""What the HTTP transport and the API say to each other: JSON, a struct for each message.

A client opens a session: one answer that goes on (`EVENTS`), whose first event is a `Hello` and
whose others are replies and chunks, as workers wrote them. Beside it it submits, attaches and
cancels, many syscalls in one request; each names the session, so that what comes of them is sent
there.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from aios_broker.contract.errors import ErrorBody
from aios_broker.contract.names import Module, SyscallId
from aios_broker.contract.reply import Chunk
from aios_broker.contract.syscall import State

EVENTS = "/v1/session/events"
SUBMIT = "/v1/session/submit"
ATTACH = "/v1/session/attach"
CANCEL = "/v1/session/cancel"
STATUS = "/v1/session/status"

KEEP_ALIVE_S = 10.0  # between comments on a stream that has nothing to say
MOST_ASKED = 500  # syscalls in one request
MOST_REASON = 500  # characters

NOTHING = msgspec.Raw()

Count = Annotated[int, Meta(ge=0, le=2**40)]


class Hello(Struct, frozen=True, forbid_unknown_fields=False):
    """Who the client is, and what it needs to submit."""

    session: str
    tenant: str
    agent: str
    ids_key: str  # in hex: what makes the ids of this agent's syscalls
    result_ttl_s: float
    max_body_bytes: int


class Submit(Struct, frozen=True, forbid_unknown_fields=True):
    """Syscalls of one module; their ids are the agent's own."""

    session: str
    syscalls: tuple[msgspec.Raw, ...]


class Ask(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One syscall that a client wants to hear of. `heard`: of its text; none: it wants none."""

    id: SyscallId
    module: Module | None = None
    heard: tuple[Count, Count] | None = None  # characters of the answer, and of the reasoning


class Attach(Struct, frozen=True, forbid_unknown_fields=True):
    """Syscalls that a client wants to hear of."""

    session: str
    asks: tuple[Ask, ...]


class Standing(Struct, frozen=True, omit_defaults=True):
    """How a syscall stands."""

    state: State | None = None  # None: the kernel knows none of this agent's
    module: Module | None = None
    reply: msgspec.Raw = NOTHING  # once it has ended
    missing: tuple[Chunk, ...] = ()


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What came of a submission: an error, or how it stood already; neither: it was taken."""

    error: ErrorBody | None = None
    standing: Standing | None = None


class Outcomes(Struct, frozen=True):
    """Of each syscall of a `Submit`, in its order."""

    outcomes: tuple[Outcome, ...]


class Standings(Struct, frozen=True):
    """Of the first syscalls of an `Attach`, in its order: as many as an answer may hold.

    One at least; the rest is asked for anew.
    """

    standings: tuple[Standing, ...]


class Cancel(Struct, frozen=True, forbid_unknown_fields=True):
    """Syscalls of one module that are to end."""

    ids: tuple[SyscallId, ...]
    module: Module
    reason: Annotated[str, Meta(max_length=MOST_REASON)] = ""


class Cancellations(Struct, frozen=True):
    """Of each syscall of a `Cancel`: False: it had ended, or was never known."""

    done: tuple[bool, ...]
