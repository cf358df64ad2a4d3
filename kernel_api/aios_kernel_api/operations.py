"""A route as data: who may call it, what it takes and what it answers.

Those that look at the kernel, or set something in it, are made of that. The reference describes
all of them by it (`reference.py`), and a test tries each by its scope.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.syscall import refuse_nul
from aios_kernel_api.bodies import query_of, read_json
from aios_kernel_api.identity import Caller, Scope, caller_of, require
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.problems import PROBLEM_TYPE, Problem

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
Query = TypeVar("Query", bound=Struct)
Body = TypeVar("Body")


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing may stand behind the question mark."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[Query, Body]):
    """One request, read and checked."""

    kernel: Kernel
    caller: Caller
    query: Query
    body: Body
    path: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What comes back with one status."""

    words: str
    kind: object = None  # its type, where it is JSON
    media: str = "application/json"
    streams: bool = False  # or as server-sent events, where the request says so
    example: object = None
    headers: Mapping[str, str] = field(default_factory=dict)  # by name: what it says


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: Method
    path: str  # as Starlette writes it
    tag: str
    words: str  # one line
    scope: Scope | None  # the least that may call it; None: it needs no token
    more: str = ""  # what else there is to know
    query: type[Struct] = NoQuery
    body: Any = None  # the type of its JSON; None: it has none
    body_media: str = "application/json"
    body_example: object = None
    headers: Mapping[str, str] = field(default_factory=dict)  # of the request, by name
    answers: Mapping[int, Answer]
    errors: tuple[int, ...] = ()  # beside those that any request may meet
    error: Any = Problem  # how it says an error
    error_media: str = PROBLEM_TYPE

    @property
    def name(self) -> str:
        """Return it as people write it."""
        return f"{self.method} {self.path}"


Handler = Callable[[Asked[Any, Any]], Awaitable[object]]


def route_of(operation: Operation, handler: Handler) -> Route:
    """Return the route of an operation whose answer is JSON."""
    [status] = operation.answers
    scope = operation.scope
    assert scope is not None, "who needs no token is read by a route of its own"
    body: msgspec.json.Decoder[Any] | None = None
    if operation.body is not None:
        body = msgspec.json.Decoder(operation.body)

    async def endpoint(request: Request) -> Response:
        caller = caller_of(request)
        require(caller, scope)
        refuse_nul(dict(request.query_params))
        asked = Asked(
            kernel_of(request),
            caller,
            query_of(request, operation.query),
            None if body is None else await read_json(request, body),
            path_of(request),
        )
        return json_response(await handler(asked), status)

    return Route(operation.path, endpoint, methods=[operation.method])


def path_of(request: Request) -> dict[str, str]:
    """Return what stands in the path; raise InvalidSyscall where that has a NUL character."""
    found = {name: str(value) for name, value in request.path_params.items()}
    refuse_nul(found)
    return found


def json_response(value: object, status: int = 200) -> Response:
    """Return a value as JSON; nobody keeps it but who asked."""
    return Response(
        msgspec.json.encode(value), status, {"cache-control": "no-store"}, "application/json"
    )
