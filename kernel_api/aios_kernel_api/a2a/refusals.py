"""Errors as A2A says them by JSON-RPC: one table from the kernel's errors to the protocol's codes.

An error of the protocol has its code and its reason. Every other error of the kernel keeps its own
code as the reason, under the domain `aios`, with all that it says: field, remedy, whether and when
to send it again.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.responses import Response

from aios_broker.contract.errors import InvalidSyscall, KernelError, UnknownSyscall
from aios_kernel_api.openapi import Json
from aios_kernel_api.problems import headers_of, retry_after_s, status_of

Reason = Literal[
    "TASK_NOT_FOUND",
    "TASK_NOT_CANCELABLE",
    "PUSH_NOTIFICATION_NOT_SUPPORTED",
    "UNSUPPORTED_OPERATION",
    "CONTENT_TYPE_NOT_SUPPORTED",
    "VERSION_NOT_SUPPORTED",
    "JSON_PARSE",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
]
CODES: dict[Reason, int] = {
    "TASK_NOT_FOUND": -32001,
    "TASK_NOT_CANCELABLE": -32002,
    "PUSH_NOTIFICATION_NOT_SUPPORTED": -32003,
    "UNSUPPORTED_OPERATION": -32004,
    "CONTENT_TYPE_NOT_SUPPORTED": -32005,
    "VERSION_NOT_SUPPORTED": -32009,
    "JSON_PARSE": -32700,
    "INVALID_REQUEST": -32600,
    "METHOD_NOT_FOUND": -32601,
}
INVALID_PARAMS = -32602
INTERNAL = -32603
REFUSED = -32000  # by a rule of the kernel's: a right, a quota, a conflict
DOMAIN = "a2a-protocol.org"
OWN_DOMAIN = "aios"
_TYPE = "type.googleapis.com/google.rpc."


@dataclass(eq=False)
class Refusal(Exception):
    """What the protocol has an error of its own for."""

    reason: Reason
    message: str
    remedy: str = ""
    field: str = ""


class RpcError(Struct, frozen=True):
    """An error of JSON-RPC, with what A2A says beside it."""

    code: int
    message: str
    data: list[Json]


class RpcFailure(Struct, frozen=True):
    """The answer to a call that failed; `id` is null where it could not be read."""

    error: RpcError
    id: str | int | float | None = None
    jsonrpc: Literal["2.0"] = "2.0"


def invalid(field: str, message: str, remedy: str) -> InvalidSyscall:
    """Return the error of parameters that will not do."""
    return InvalidSyscall(message, field=field, remedy=remedy)


def unknown_task(task_id: str) -> Refusal:
    """Return the error of a task that is nobody's, or another agent's."""
    return Refusal(
        "TASK_NOT_FOUND",
        f"there is no task {task_id[:64]!r}, or its result is no longer kept",
        "results are kept for a minute; send the message anew, under a new messageId",
    )


def rpc_error_of(error: Refusal | KernelError) -> RpcError:
    """Return an error as JSON-RPC and A2A say it."""
    if isinstance(error, UnknownSyscall):
        error = unknown_task(error.syscall_id or "")
    if isinstance(error, Refusal):
        said = {"remedy": error.remedy, "field": error.field}
        return _error(CODES[error.reason], error.message, error.reason, DOMAIN, said)
    wait_s = retry_after_s(error)
    said = {
        "code": error.code,
        "field": error.field or "",
        "remedy": error.remedy or "",
        "retryable": "true" if error.retryable else "false",
        "retryAfterS": "" if wait_s is None else f"{wait_s:g}",
        "taskId": error.syscall_id or "",
    }
    reason = error.code.replace("-", "_").upper()
    return _error(_code_of(error), error.message, reason, OWN_DOMAIN, said)


def rpc_error(error: KernelError) -> Response:
    """Return the answer to a request that never came to be a call: it has a status of HTTP, too."""
    body = msgspec.json.encode(RpcFailure(rpc_error_of(error)))
    return Response(body, status_of(error), headers_of(error), "application/json")


def _code_of(error: KernelError) -> int:
    status = status_of(error)
    if status >= 500:
        return INTERNAL
    return INVALID_PARAMS if status in (400, 408, 413, 415, 416) else REFUSED


def _error(code: int, message: str, reason: str, domain: str, said: dict[str, str]) -> RpcError:
    told = {name: value for name, value in said.items() if value}
    data: list[Json] = [
        {"@type": f"{_TYPE}ErrorInfo", "reason": reason, "domain": domain, "metadata": told}
    ]
    if told.get("field"):
        violation = {"field": told["field"], "description": message}
        data.append({"@type": f"{_TYPE}BadRequest", "fieldViolations": [violation]})
    remedy = told.get("remedy")
    shown = f"{message.removesuffix('.')}: {remedy}" if remedy else message
    return RpcError(code, shown, data)
