"""Every way a syscall, or a process of the kernel, can fail.

    KernelError
    ├── Rejected                 refused at a border; nothing ran
    │   ├── InvalidSyscall           malformed, unknown field, or out of range
    │   │   ├── UnknownModule            no such module, or one that is not built yet
    │   │   ├── UnknownCore              no worker serves the core that was named
    │   │   ├── UnsupportedOption        this core cannot keep an option that was asked for
    │   │   ├── ContextTooLong           prompt and answer do not fit the core's context
    │   │   ├── UnknownTool              no tool, or no version of it, has that name
    │   │   └── InvalidArguments         a tool's schema does not allow them; `faults` says where
    │   ├── InvalidRequest           an HTTP request that the API cannot serve
    │   │   ├── RequestTooLarge          its body is over the limit
    │   │   ├── RequestTimeout           it did not come in time
    │   │   ├── UnsupportedMedia         its body is compressed, or of another type
    │   │   ├── InvalidRange             the range of a file lies behind its end
    │   │   └── MethodNotAllowed         the route does not take this method
    │   ├── UnsupportedVersion       written by another version of the contract
    │   ├── AccessDenied             the token is missing, wrong, or not this agent's
    │   │   └── Unauthenticated          the API was not told who asks
    │   ├── AgentSuspended           an operator has suspended the agent, or its tenant
    │   ├── ForeignJob               a job that names code outside the closed table
    │   ├── QueueFull                wait `retry_after_s`, then send it again
    │   ├── QuotaExceeded            the agent or its tenant is at a limit of its own
    │   ├── UnknownSyscall           no syscall of that id, or its reply has expired
    │   ├── UnknownAgent             the tenant has no agent, or no group, of that name
    │   ├── NotFound                 no such note, file, version or link, or none that one may see
    │   ├── AlreadyExists            something of that name is there already
    │   ├── KeyConflict              its key stands for another syscall already
    │   ├── VersionConflict          it is of another version by now than was asked for
    │   ├── ObjectLocked             another agent has locked it
    │   ├── InvalidPath              a path that leads outside, or cannot be a name
    │   ├── NotConfigured            this kernel was started without what it would need
    │   ├── ToolUnavailable          a tool cannot be loaded here; nothing of it ran
    │   ├── UnknownSession           the agent has no exec session of that id
    │   ├── SessionBusy              too many runs wait for the exec session
    │   ├── WorkspaceLimit           a workspace has more files or bytes than it may
    │   ├── SandboxUnavailable       this machine cannot keep in what was to run
    │   ├── ApprovalDenied           a person refused it
    │   └── ApprovalExpired          nobody decided in time, or it has ended
    ├── Failed                   a worker took it, and it did not succeed
    │   ├── ModuleError              the module raised
    │   ├── CoreError                the core answered wrongly, hung or died
    │   │   ├── CoreKeyRefused           its endpoint refuses its key
    │   │   ├── CoreAccountExhausted     its account has no money or quota left
    │   │   └── CoreBusy                 its endpoint asks for a pause, again and again
    │   ├── ToolFailed               a tool raised, died, or returned what is no JSON
    │   │   ├── ToolTimeout              it ran for longer than it may
    │   │   └── ToolLimit                it used more than it may; `field` names the limit
    │   ├── SessionLost              the exec session is gone, with what it held; says why
    │   ├── FormNotKept              the answer breaks its form, or was cut before its end
    │   ├── DeadlineExceeded         it outlived its `deadline_s`
    │   ├── Cancelled                somebody cancelled it
    │   ├── ContextChanged           another syscall rewrote the context meanwhile
    │   └── WorkerLost               its workers died as often as it may be tried
    ├── SnapshotError            a suspended generation cannot be read back
    │   ├── SnapshotCorrupt          its checksum is wrong, or it is cut short
    │   └── SnapshotForeign          another version, another model
    ├── Unavailable              a server of the kernel does not answer
    │   ├── RedisUnavailable         nothing was changed unless the message says so
    │   ├── RedisFull                it has used up its memory; nothing was changed
    │   ├── DatabaseUnavailable      Postgres does not answer
    │   ├── ApiUnavailable           the kernel's API does not answer
    │   └── KernelNotRunning         no kernel was found
    ├── DownloadFailed           a file cannot be fetched, or is not what it should be
    ├── WaitTimeout              the caller stopped waiting; the syscall itself goes on
    ├── ClientFailed             the client itself failed; the syscall may go on
    ├── ForkedAgent              it was opened in the process that this one was forked from
    └── InvalidConfig            a setting is missing, unknown or out of range

`code` names the error on the wire and its section in docs/errors.md.
`retryable` promises that sending the same syscall (same id) again is safe and may succeed.
`retry_after_s` is set where the kernel knows how long to wait.
"""

import re
from typing import Any, ClassVar

from msgspec import Struct


class Fault(Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong with the arguments of a call."""

    path: str  # a JSON pointer, such as `/items/2/price`; empty: the arguments as a whole
    fault: str
    example: Any = None  # what would be right there


class ErrorBody(Struct, frozen=True, omit_defaults=True):
    """An error on the wire. Unknown fields are ignored: a newer kernel may say more."""

    code: str
    message: str
    field: str | None = None
    remedy: str | None = None
    retryable: bool = False
    retry_after_s: float | None = None
    syscall_id: str | None = None
    faults: tuple[Fault, ...] = ()  # of `invalid-arguments`, all of them


class KernelError(Exception):
    """The root of the tree; also any code of a newer kernel that this version does not know."""

    code: ClassVar[str] = "kernel-error"  # of each class: its name in small letters
    retryable: bool = False
    faults: tuple[Fault, ...] = ()

    def __init_subclass__(cls) -> None:
        """Give the class its code: `QueueFull` is `queue-full`."""
        cls.code = re.sub("(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        retry_after_s: float | None = None,
        syscall_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy
        self.retry_after_s = retry_after_s
        self.syscall_id = syscall_id

    def __str__(self) -> str:
        """Return the message, with the field and the remedy where there are any."""
        text = f"{self.field}: {self.message}" if self.field else self.message
        return f"{text} ({self.remedy})" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling (multiprocessing, test runners) with all attributes."""
        return (from_wire, (self.to_wire(),))

    def to_wire(self) -> ErrorBody:
        """Return the form that travels in a reply."""
        return ErrorBody(
            code=self.code,
            message=self.message,
            field=self.field,
            remedy=self.remedy,
            retryable=self.retryable,
            retry_after_s=self.retry_after_s,
            syscall_id=self.syscall_id,
            faults=self.faults,
        )


class Rejected(KernelError):
    """Refused at a border; nothing ran."""


class InvalidSyscall(Rejected):
    """Malformed, an unknown field, or a value out of its range."""


class UnknownModule(InvalidSyscall):
    """No module of that name takes syscalls in this version."""


class UnknownCore(InvalidSyscall):
    """No worker of the fleet serves the core that the syscall names."""


class UnsupportedOption(InvalidSyscall):
    """The core that would run it cannot keep an option that was asked for."""


class ContextTooLong(InvalidSyscall):
    """The prompt and the answer asked for do not fit the core's context; both are named."""


class UnknownTool(InvalidSyscall):
    """The kernel has no tool, or no version of one, of that name."""


class InvalidArguments(InvalidSyscall):
    """The schema of a tool does not allow the arguments of a call; `faults` has each fault."""


class InvalidRequest(Rejected):
    """An HTTP request that the API cannot read, or that asks for what a route does not have."""


class RequestTooLarge(InvalidRequest):
    """The body of a request is over the limit of its route."""


class RequestTimeout(InvalidRequest):
    """A request did not come in time; its client is too slow, or has stopped."""

    retryable = True


class UnsupportedMedia(InvalidRequest):
    """The body of a request is compressed, or of a type that the route does not read."""


class InvalidRange(InvalidRequest):
    """A request asks for bytes of a file that lie behind its end."""


class MethodNotAllowed(InvalidRequest):
    """The route does not take requests of this method."""


class UnsupportedVersion(Rejected):
    """Written by a version of the contract that this process does not read."""


class AccessDenied(Rejected):
    """The token is missing, wrong, or belongs to another agent."""


class Unauthenticated(AccessDenied):
    """A request to the API has no token, or one that is unknown, revoked or expired."""


class AgentSuspended(Rejected):
    """An operator has suspended the agent or its tenant: its syscalls are refused and ended."""


class ForeignJob(Rejected):
    """A job that names code outside the closed table; it was quarantined, nothing was imported."""


class QueueFull(Rejected):
    """The module's queue is at its limit; try again after `retry_after_s`."""

    retryable = True


class QuotaExceeded(Rejected):
    """The agent or its tenant is at its limit; `field` names it."""

    retryable = True


class KeyConflict(Rejected):
    """Its key, or its id, stands for another syscall; the message names both and what differs."""


class UnknownSyscall(Rejected):
    """No syscall of that id is known, or its reply has expired."""


class UnknownAgent(Rejected):
    """The tenant has no agent, or no privilege group, of that name."""


class NotFound(Rejected):
    """No such note, file, version, link or approval; or none that the agent may know of."""


class AlreadyExists(Rejected):
    """Something of that name is there already; it was left as it is."""


class VersionConflict(Rejected):
    """It is of another version by now than `if_version` says; nothing was changed."""


class ObjectLocked(Rejected):
    """Another agent has locked it; the message says who and until when."""

    retryable = True


class InvalidPath(Rejected):
    """A path that leads outside the namespace, or that cannot be a name in it."""


class NotConfigured(Rejected):
    """This kernel was started without what it would need; `field` is the setting."""


class ToolUnavailable(Rejected):
    """A tool cannot be loaded: its code, its schema or a dependency; nothing of the call ran."""


class UnknownSession(Rejected):
    """The agent has no exec session of that id: it was closed, or never was."""


class SessionBusy(Rejected):
    """So many runs wait for this exec session that no other is taken."""

    retryable = True


class WorkspaceLimit(Rejected):
    """More files or bytes than a workspace, or one commit of it, may have; both are told."""


class SandboxUnavailable(Rejected):
    """This machine has no sandbox for what was to run, and the operator allows nothing less."""


class ApprovalDenied(Rejected):
    """It needs a person's approval, and the person refused it; nothing was changed."""


class ApprovalExpired(Rejected):
    """It needs a person's approval: nobody decided in time, or it ended; nothing was changed."""


class Failed(KernelError):
    """A worker took it, and it did not succeed."""


class ModuleError(Failed):
    """The module raised; the message has the cause's class, the worker's log its text."""


class CoreError(Failed):
    """The core answered wrongly, hung or died, more often than may be retried.

    Its id keeps this failure for an hour: send the request again under a new one.
    """


class CoreKeyRefused(CoreError):
    """The endpoint of a remote core refuses its key: an operator has to see to it."""


class CoreAccountExhausted(CoreError):
    """The account behind a remote core has no money or quota left."""


class CoreBusy(CoreError):
    """The endpoint of a remote core asks for a pause, again and again; `retry_after_s` is set."""


class ToolFailed(Failed):
    """The tool raised, its process died, or it returned what is no JSON."""


class ToolTimeout(ToolFailed):
    """The tool ran for longer than it may; it was ended, with all that it began."""


class ToolLimit(ToolFailed):
    """The tool used more than it may, and was ended; `field` names the limit."""


class SessionLost(Failed):
    """The exec session is gone, and what it held with it; the message says why."""


class FormNotKept(Failed):
    """The answer breaks the form that was asked for, or was cut before its end; it is told."""


class DeadlineExceeded(Failed):
    """It outlived its `deadline_s`, counted from submission."""


class Cancelled(Failed):
    """Somebody cancelled it: its agent, an operator, or a stock RQ tool."""


class ContextChanged(Failed):
    """A stored context was rewritten while this syscall worked on it; nothing was changed."""


class WorkerLost(Failed):
    """Its workers died as often as it may be tried; it is quarantined as a poison job."""


class SnapshotError(KernelError):
    """A suspended generation cannot be read back."""


class SnapshotCorrupt(SnapshotError):
    """The checksum is wrong or bytes are missing."""


class SnapshotForeign(SnapshotError):
    """Written by another snapshot version or for another model."""


class Unavailable(KernelError):
    """A server of the kernel does not answer."""

    retryable = True


class RedisUnavailable(Unavailable):
    """Redis does not answer."""


class RedisFull(Unavailable):
    """Redis has used up its memory: nothing new is taken until something ends; nothing changed."""


class DatabaseUnavailable(Unavailable):
    """Postgres does not answer."""


class ApiUnavailable(Unavailable):
    """The kernel's API does not answer, or broke off; what was sent may have been taken."""


class KernelNotRunning(Unavailable):
    """No kernel was found where it was looked for."""


class DownloadFailed(KernelError):
    """A file could not be fetched whole, or is not the one that was published."""

    retryable = True


class WaitTimeout(KernelError):
    """The caller stopped waiting; the syscall itself goes on and can be attached to again."""

    retryable = True


class ClientFailed(KernelError):
    """The client itself failed while it waited: a fault of ours, or a Redis that refuses it.

    The syscall may go on. The next call of the agent begins anew.
    """

    retryable = True


class ForkedAgent(KernelError):
    """The agent was opened before a `fork()`, and belongs to the parent; open one in the child."""


class InvalidConfig(KernelError):
    """A setting is missing, unknown or out of range; `field` is the variable's name."""


def all_errors() -> dict[str, type[KernelError]]:
    """Return every class of the tree by its code."""
    found: dict[str, type[KernelError]] = {}
    pending: list[type[KernelError]] = [KernelError]
    while pending:
        error = pending.pop()
        found[error.code] = error
        pending.extend(error.__subclasses__())
    return found


def from_wire(body: ErrorBody) -> KernelError:
    """Rebuild the error; a code of a newer kernel becomes a plain `KernelError`."""
    known = all_errors().get(body.code)
    error = (known or KernelError)(
        body.message if known else f"{body.code}: {body.message}",
        field=body.field,
        remedy=body.remedy,
        retry_after_s=body.retry_after_s,
        syscall_id=body.syscall_id,
    )
    error.retryable = body.retryable
    if body.faults:
        error.faults = body.faults
    return error
