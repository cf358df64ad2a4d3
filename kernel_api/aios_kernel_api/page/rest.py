"""What the page shows and does is what the REST operations answer and do: one function for both.

So an operation's scope, and the types of its query and body, hold here as they do there.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.syscall import decode_failure, refuse_nul
from aios_kernel_api.identity import Caller, require
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.operations import Asked, Handler, Operation
from aios_kernel_api.page.parts import query_from
from aios_kernel_api.rest import access, rights, settings, tools, views

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
_OPERATION_OF: dict[Handler, Operation] = {
    handler: operation
    for operation, handler in (
        *views.OPERATIONS,
        *settings.OPERATIONS,
        *access.OPERATIONS,
        *rights.OPERATIONS,
        *tools.OPERATIONS,
    )
}
_NOTHING: Mapping[str, str] = {}


async def ask(
    kernel: Kernel,
    caller: Caller,
    handler: Callable[[Asked[Any, Any]], Awaitable[T]],
    *,
    query: Mapping[str, str] = _NOTHING,
    body: Mapping[str, object] | None = None,
    path: Mapping[str, str] = _NOTHING,
) -> T:
    """Return what an operation answers to who looks at the page.

    Args:
        kernel: The kernel.
        caller: Who looks.
        handler: One of the REST operations' functions.
        query: Texts, as they stand in an address; empty ones are left out.
        body: Values or texts, as a form sends them.
        path: What stands in the operation's path.

    Raises:
        AccessDenied: the operation is for a wider scope.
        InvalidRequest, InvalidSyscall: a value is wrong; `field` names it.
    """
    operation = _OPERATION_OF[handler]
    assert operation.scope is not None, "none of these is for everybody"
    require(caller, operation.scope)
    asked: Asked[Any, Any] = Asked(
        kernel,
        caller,
        query_from(query, operation.query),
        None if body is None else read_body(body, operation.body),
        path,
    )
    refuse_nul(dict(path))
    return await handler(asked)


def read_body(given: Mapping[str, object], kind: type[S]) -> S:
    """Return what a form gives as what is asked for.

    Raises:
        InvalidSyscall: a value is wrong, or missing; `field` names it.
    """
    refuse_nul(dict(given))
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        message, field = decode_failure(error)
        raise InvalidSyscall(message, field=field, remedy="correct it, or leave it out") from error
