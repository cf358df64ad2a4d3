"""What stands around each route: who asks, how much it may have open, how an error is told."""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios_broker import log
from aios_broker.contract.errors import (
    InvalidRequest,
    KernelError,
    MethodNotAllowed,
    NotFound,
    QuotaExceeded,
)
from aios_broker.contract.names import Owner
from aios_kernel_api.identity import Caller, identify, with_rights
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.problems import ErrorShape, told
from aios_kernel_api.room import OpenAnswer, OpenAnswers
from aios_kernel_api.stats import Served

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
SENT_BYTES = 64 * 1024  # of an answer, in one turn of the loop
ABORT = "aios.abort"  # an extension of a scope: ends its connection at once


class OpenRequests:
    """How many requests each agent has open; a stream is one for as long as it lasts."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[Owner] = Counter()

    @contextmanager
    def one(self, owner: Owner) -> Iterator[None]:
        """Count one for the length of a block.

        Raises:
            QuotaExceeded: the agent has as many as it may.
        """
        if self._open[owner] >= self._most:
            raise QuotaExceeded(
                f"{owner.agent!r} has {self._most} requests open, as many as it may",
                field="requests",
                remedy="let some of them end",
                retry_after_s=1.0,
            )
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the routes of a door are entered."""

    shape: ErrorShape
    is_public: bool = False  # for whoever comes, without a token
    asks_rights: bool = False  # the caller's scope says whether its agent administers
    identify: Callable[[Headers, Kernel], Awaitable[Caller]] = identify
    is_page: bool = False  # for people, in a browser: described by no operation


class Border:
    """Lets a request through to its route, once its token is good; tells of what goes wrong."""

    def __init__(
        self, app: ASGIApp, *, kernel: Kernel, rules: Rules, open_requests: OpenRequests, route: str
    ) -> None:
        self._app = app
        self._route = route
        self._kernel = kernel
        self._rules = rules
        self._open = open_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self._kernel.stats.request(scope["method"], self._route) as served:
            await self._answered(scope, Answer(scope, receive, send, served, self._kernel.answers))

    async def _answered(self, scope: Scope, answer: "Answer") -> None:
        log.about.set({"request": answer.request_id})
        try:
            await self._serve(scope, answer.receive, answer.send)
        except KernelError as error:
            await answer.tell(error, self._rules.shape)
        except HTTPException as error:
            answer.served.begin(error.status_code)  # told outside of the border
            raise
        except Exception as error:
            logger.exception("request %s failed", answer.request_id)
            if answer.has_begun:
                raise
            await answer.tell(_fault(answer.request_id, error), self._rules.shape)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._rules.is_public:
            await self._app(scope, receive, send)
            return
        caller = await self._caller(scope)
        scope.setdefault("state", {})["caller"] = caller
        names = {"tenant": caller.tenant, "agent": caller.agent}
        log.about.set({**log.about.get(), **names})
        with self._open.one(caller.owner):
            await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        caller = await self._rules.identify(Headers(scope=scope), self._kernel)
        return await with_rights(caller, self._kernel) if self._rules.asks_rights else caller


class Answer:
    """The one answer to a request: it carries an id, under which the log speaks of it."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, served: Served, answers: OpenAnswers
    ) -> None:
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.served = served
        self.has_begun = False
        self._scope, self._receive, self._send = scope, receive, send
        self._answers = answers
        names = {name for name, _ in scope["headers"]}
        self._is_read = names.isdisjoint((b"content-length", b"transfer-encoding"))

    async def receive(self) -> Message:
        """Take the next part of the request."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            self.served.begin(message["status"])
            headers = MutableHeaders(scope=message)
            headers.setdefault(REQUEST_ID, self.request_id)
            headers.setdefault("x-content-type-options", "nosniff")
            headers.setdefault("cache-control", "no-store")
        size_bytes = len(message.get("body", b""))
        if size_bytes <= SENT_BYTES:
            await self._send(message)
            return
        with self._answers.one(self._tenant, size_bytes, self._cut) as answer:
            await self._send_large(message, answer)

    async def _send_large(self, message: Message, answer: OpenAnswer) -> None:
        body, sent = message["body"], 0
        while len(body) - sent > SENT_BYTES and answer.is_read():
            part = body[sent : sent + SENT_BYTES]
            await self._send({**message, "body": part, "more_body": True})  # as fast as it is read
            await asyncio.sleep(0)  # a loopback is never slow: others are served, too
            sent += SENT_BYTES
        await self._send({**message, "body": body[sent : sent + SENT_BYTES]})

    @property
    def _tenant(self) -> str:
        caller: Caller | None = self._scope.get("state", {}).get("caller")
        return "" if caller is None else caller.tenant

    def _cut(self) -> None:
        for abort in self._scope.get("extensions", {}).get(ABORT, {}).values():
            abort()

    async def tell(self, error: KernelError, shape: ErrorShape) -> None:
        """Answer with an error; after the beginning of an answer it can only be cut off.

        Nobody reads what is left of a request that is refused: the connection is closed.
        """
        if told(error) is not error:
            logger.warning("request %s: %s", self.request_id, error)
        if self.has_begun:
            logger.error("request %s: its answer is cut off: %s", self.request_id, error)
            raise error
        response = shape(told(error))
        if not self._is_read:
            response.headers["connection"] = "close"
        await response(self._scope, self._receive, self.send)


def routing_error(status: int, detail: str, headers: Mapping[str, str]) -> KernelError:
    """Return what no route takes as an error of ours."""
    match status:
        case 404:
            return NotFound("there is no such route", field="path", remedy="see /openapi.json")
        case 405:
            allowed = headers.get("Allow", "")
            return MethodNotAllowed(
                "the route does not take this method",
                field="method",
                remedy=f"use {allowed}" if allowed else None,
            )
        case _:
            return InvalidRequest(detail, field="request")


def _fault(request_id: str, error: Exception) -> KernelError:
    return KernelError(
        f"a fault of the kernel's own: {type(error).__name__}",
        remedy=f"its log has more about {request_id}",
    )
