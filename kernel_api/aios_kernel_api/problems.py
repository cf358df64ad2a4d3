"""Errors as HTTP says them: one table from code to status, and `application/problem+json`.

What goes out names no server of the kernel: where an error would say an address, the client hears
that something does not answer, and the log has the rest.
"""

import math
from collections.abc import Callable

import msgspec
from msgspec import Struct
from starlette.responses import Response

from aios_broker.contract import errors
from aios_broker.contract.errors import ErrorBody, KernelError, Unavailable, all_errors, from_wire
from aios_broker.contract.reply import Reply

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1.0  # where an error that passes does not say when to come again

STATUS: dict[type[KernelError], int] = {
    errors.KernelError: 500,
    errors.Rejected: 400,
    errors.InvalidSyscall: 400,
    errors.UnknownModule: 400,
    errors.UnknownCore: 400,
    errors.UnsupportedOption: 400,
    errors.ContextTooLong: 400,
    errors.UnknownTool: 404,
    errors.InvalidArguments: 422,
    errors.InvalidRequest: 400,
    errors.RequestTooLarge: 413,
    errors.RequestTimeout: 408,
    errors.UnsupportedMedia: 415,
    errors.InvalidRange: 416,
    errors.MethodNotAllowed: 405,
    errors.UnsupportedVersion: 400,
    errors.AccessDenied: 403,
    errors.Unauthenticated: 401,
    errors.AgentSuspended: 403,
    errors.ForeignJob: 400,
    errors.QueueFull: 503,
    errors.QuotaExceeded: 429,
    errors.UnknownSyscall: 404,
    errors.UnknownAgent: 404,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.KeyConflict: 409,
    errors.VersionConflict: 412,
    errors.ObjectLocked: 423,
    errors.InvalidPath: 400,
    errors.NotConfigured: 501,
    errors.ToolUnavailable: 503,
    errors.SandboxUnavailable: 501,
    errors.ApprovalDenied: 403,
    errors.ApprovalExpired: 403,
    errors.Failed: 500,
    errors.ModuleError: 500,
    errors.CoreError: 502,
    errors.CoreKeyRefused: 502,
    errors.CoreAccountExhausted: 502,
    errors.CoreBusy: 503,
    errors.UnknownSession: 404,
    errors.SessionBusy: 429,
    errors.SessionLost: 410,
    errors.WorkspaceLimit: 413,
    errors.ToolFailed: 502,
    errors.ToolTimeout: 504,
    errors.ToolLimit: 502,
    errors.FormNotKept: 502,
    errors.DeadlineExceeded: 504,
    errors.Cancelled: 409,
    errors.ContextChanged: 409,
    errors.WorkerLost: 502,
    errors.SnapshotError: 500,
    errors.SnapshotCorrupt: 500,
    errors.SnapshotForeign: 500,
    errors.Unavailable: 503,
    errors.RedisUnavailable: 503,
    errors.RedisFull: 503,
    errors.DatabaseUnavailable: 503,
    errors.ApiUnavailable: 503,
    errors.KernelNotRunning: 503,
    errors.DownloadFailed: 502,
    errors.WaitTimeout: 504,
    errors.ClientFailed: 503,
    errors.ForkedAgent: 500,
    errors.InvalidConfig: 500,
}

# How a route says an error: the kernel's own way, or that of the API that it stands in for.
ErrorShape = Callable[[KernelError], Response]


class Problem(Struct, frozen=True, omit_defaults=True):
    """An error, as RFC 9457 has it, with what the kernel says of each."""

    type: str
    title: str
    status: int
    code: str  # its section in docs/errors.md
    detail: str
    retryable: bool  # sending the same request again, with its key, is safe and may succeed
    field: str | None = None  # what of the request was wrong
    remedy: str | None = None
    retry_after_s: float | None = None
    syscall_id: str | None = None
    faults: tuple[errors.Fault, ...] = ()  # of the arguments of a tool


def status_of(error: KernelError) -> int:
    """Return the HTTP status of an error."""
    return STATUS[type(error)]


def told(error: KernelError) -> KernelError:
    """Return an error as a client may hear it: without the addresses of the kernel's servers."""
    if not isinstance(error, Unavailable):
        return error
    hidden = type(error)(
        (type(error).__doc__ or "").strip().partition("\n")[0],
        remedy="send it again, under the same key",
        retry_after_s=error.retry_after_s,
        syscall_id=error.syscall_id,
    )
    hidden.retryable = error.retryable
    return hidden


_HIDDEN = {code for code, error in all_errors().items() if issubclass(error, Unavailable)}


def is_hidden(code: str) -> bool:
    """Tell whether clients hear of an error without what it says of servers."""
    return code in _HIDDEN


def told_body(body: ErrorBody) -> ErrorBody:
    """Return the error of a reply as a client may hear it."""
    return told(from_wire(body)).to_wire() if is_hidden(body.code) else body


def told_reply(reply: Reply) -> Reply:
    """Return a reply as a client may hear it."""
    if reply.error is None or not is_hidden(reply.error.code):
        return reply
    return msgspec.structs.replace(reply, error=told_body(reply.error))


def retry_after_s(error: KernelError) -> float | None:
    """Return when to come again, where coming again may help."""
    if error.retry_after_s is None and status_of(error) in (429, 503):
        return RETRY_AFTER_S
    return error.retry_after_s


def headers_of(error: KernelError) -> dict[str, str]:
    """Return the headers that go with an error, in whatever shape it is told."""
    headers = {}
    if (wait_s := retry_after_s(error)) is not None:
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
    if status_of(error) == 401:
        headers["www-authenticate"] = 'Bearer realm="aios"'
    return headers


def problem_of(error: KernelError) -> Problem:
    """Return an error as a problem."""
    return Problem(
        type=f"urn:aios:error:{error.code}",
        title=error.code.replace("-", " "),
        status=status_of(error),
        code=error.code,
        detail=error.message,
        retryable=error.retryable,
        field=error.field,
        remedy=error.remedy,
        retry_after_s=retry_after_s(error),
        syscall_id=error.syscall_id,
        faults=error.faults,
    )


def problem(error: KernelError) -> Response:
    """Return the answer that tells of an error, in the kernel's own shape."""
    return Response(
        msgspec.json.encode(problem_of(error)),
        status_of(error),
        headers_of(error),
        PROBLEM_TYPE,
    )
