"""Errors as OpenAI's API says them."""

import msgspec
from msgspec import Struct
from starlette.responses import Response

from aios_broker.contract.errors import (
    ContextTooLong,
    KernelError,
    QuotaExceeded,
    Unauthenticated,
    UnknownCore,
    UnsupportedOption,
)
from aios_kernel_api.problems import headers_of, status_of

SYSCALL_HEADER = "x-aios-syscall"

# What clients look for. Every other error has the kernel's own code.
_CODES: dict[type[KernelError], str] = {
    ContextTooLong: "context_length_exceeded",
    QuotaExceeded: "rate_limit_exceeded",
    Unauthenticated: "invalid_api_key",
    UnknownCore: "model_not_found",
    UnsupportedOption: "unsupported_value",
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# What the kernel calls a field, and what it is called here.
_PARAMETERS = {"core": "model", "format": "response_format", "texts": "input"}


class OpenAIErrorBody(Struct, frozen=True):
    """What OpenAI's API says of an error."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Struct, frozen=True):
    """An error of OpenAI's API."""

    error: OpenAIErrorBody


def openai_error(error: KernelError) -> Response:
    """Return the answer that tells of an error."""
    headers = headers_of(error)
    if error.syscall_id:
        headers[SYSCALL_HEADER] = error.syscall_id
    body = msgspec.json.encode(openai_body(error))
    return Response(body, status_of(error), headers, "application/json")


def openai_body(error: KernelError) -> OpenAIError:
    """Return an error in OpenAI's words."""
    status = status_of(error)
    message = f"{error.message}: {error.remedy}" if error.remedy else error.message
    return OpenAIError(
        OpenAIErrorBody(
            message,
            _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error"),
            parameter_of(error),
            _CODES.get(type(error)) or error.code.replace("-", "_"),
        )
    )


def parameter_of(error: KernelError) -> str | None:
    """Return the field of the request that an error is about, as it is called there."""
    if error.field is None:
        return None
    field = error.field.removeprefix("body.")
    first = field.split(".", 1)[0].split("[", 1)[0]
    return _PARAMETERS.get(first, first) + field[len(first) :]
