"""The transport for everybody else: the kernel's API, with a token. Needs `aios-broker[http]`.

Messages come on one long answer, a session's; all else is a request of its own. When the session
breaks off, a new one begins, and what was missed is asked for by id: `Session` does that. So it
loses nothing, whichever process of the API answers.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from aios_broker.client import http_messages as wire
from aios_broker.client.transport import Attached, CallStatus, Outcome
from aios_broker.contract.errors import (
    AccessDenied,
    ApiUnavailable,
    ErrorBody,
    InvalidConfig,
    InvalidSyscall,
    KernelError,
    Rejected,
    from_wire,
)
from aios_broker.contract.ids import Ids
from aios_broker.contract.job import without_tokens
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import Heard
from aios_broker.contract.syscall import Syscall, encode_syscall
from aios_broker.contract.urls import without_password
from aios_broker.http_client import HttpClient

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 15.0
SILENCE_S = 2.5 * wire.KEEP_ALIVE_S  # of a session: then it is dead
MOST_EVENT_BYTES = 64 * 1024 * 1024  # of one message: a reply with a large file
AROUND_BYTES = 256  # of a request, around its syscalls

Answer = TypeVar("Answer")
_DATA, _END = b"data: ", b"\n\n"
_encoder = msgspec.json.Encoder()


class _Problem(msgspec.Struct):
    """An error of the API, `application/problem+json`; fields that are not needed are skipped."""

    code: str
    detail: str = ""
    field: str | None = None
    remedy: str | None = None
    retryable: bool = False
    retry_after_s: float | None = None
    syscall_id: str | None = None


class HttpTransport:
    """One client of the API: its session, and requests beside it."""

    def __init__(self, url: str, name: str, token: str) -> None:
        """Make a client of the API at `url`; `name` is what the API's log shows."""
        self._url = url.rstrip("/")
        self._shown = without_password(self._url)
        headers = {"User-Agent": f"aios-sdk ({name})", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            if not urlsplit(self._url).hostname or urlsplit(self._url).port == 0:
                raise ValueError("it names no server")
            self._http = HttpClient(
                base_url=self._url,
                headers=headers,
                timeout=httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
                # A proxy of the environment's has no way to this machine's own addresses.
                trust_env=not _is_local(self._url),
            )
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise InvalidConfig(
                f"{self._shown!r} is not the URL of an API: {error}",
                field="url",
                remedy="such as http://127.0.0.1:7070, see `aios status`",
            ) from error
        self._hello: wire.Hello | None = None
        self._stream: httpx.Response | None = None
        self._events: AsyncIterator[list[bytes]] | None = None
        self._early: list[bytes] = []  # messages that came together with the hello
        self._ids: Ids | None = None
        self._asked: list[tuple[wire.Ask, asyncio.Future[Attached]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def result_ttl_s(self) -> float:
        """How long the kernel keeps a reply."""
        return self._greeted().result_ttl_s

    async def open(self) -> None:
        """Begin a session, or raise at once."""
        if self._is_closed:
            raise ApiUnavailable("this client was closed", remedy="open a new one")
        await self._leave()
        limit = httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S, pool=None)
        request = self._http.build_request("GET", wire.EVENTS, timeout=limit)
        try:
            self._stream = await self._http.send(request, stream=True)
            if self._stream.status_code != httpx.codes.OK:
                await self._stream.aread()
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._away(error) from error
        if self._stream.status_code != httpx.codes.OK:
            raise self._refusal(self._stream)
        self._events = _events(self._stream)
        hello, *self._early = await self._next(self._events)
        self._hello = self._read(hello, wire.Hello)
        self._ids = Ids.of_key(bytes.fromhex(self._hello.ids_key))

    def ids(self, owner: Owner) -> Ids:
        """Return what makes the ids of the agent whose token this is.

        Raises:
            AccessDenied: that is another one.
        """
        hello = self._greeted()
        if owner != (hello.tenant, hello.agent):
            raise AccessDenied(
                f"the token is one of agent {hello.agent!r} of tenant {hello.tenant!r}, "
                f"not of {owner.agent!r} of {owner.tenant!r}",
                field="token",
                remedy="name that agent, or use a token of the other one",
            )
        assert self._ids is not None  # it comes with the hello
        return self._ids

    async def submit(self, syscalls: Sequence[Syscall]) -> list[Outcome]:
        """Publish syscalls of one module, in as few requests as their size allows."""
        found: list[Outcome] = [None] * len(syscalls)
        batch: dict[int, bytes] = {}  # by place
        size_bytes = 0
        most_bytes = self._greeted().max_body_bytes - AROUND_BYTES
        for place, syscall in enumerate(syscalls):
            try:
                data = encode_syscall(without_tokens(syscall))
            except InvalidSyscall as error:
                found[place] = error
                continue
            if batch and (size_bytes + len(data) > most_bytes or len(batch) >= wire.MOST_ASKED):
                await self._publish(batch, found)
                batch, size_bytes = {}, 0
            batch[place] = data
            size_bytes += len(data) + 1
        if batch:
            await self._publish(batch, found)
        return found

    async def _publish(self, batch: dict[int, bytes], found: list[Outcome]) -> None:
        """Publish a batch, and write down what came of each at its place."""
        raws = tuple(map(msgspec.Raw, batch.values()))
        asked = wire.Submit(self._greeted().session, raws)
        try:
            answer = await self._post(wire.SUBMIT, asked, wire.Outcomes)
        except Rejected as error:  # the request as such: nothing of it runs
            found[:] = [error if place in batch else each for place, each in enumerate(found)]
            return
        for place, outcome in zip(batch, answer.outcomes, strict=True):
            if outcome.error is not None:
                found[place] = from_wire(outcome.error)
            elif outcome.standing is not None:
                found[place] = _attached(outcome.standing)

    async def cancel(
        self, ids: Sequence[str], module: Module, error: KernelError, owner: Owner | None
    ) -> list[bool]:
        """End syscalls of one module."""
        done: list[bool] = []
        for first in range(0, len(ids), wire.MOST_ASKED):
            part = tuple(ids[first : first + wire.MOST_ASKED])
            asked = wire.Cancel(part, module, error.message[: wire.MOST_REASON])
            done += (await self._post(wire.CANCEL, asked, wire.Cancellations)).done
        return done

    async def attach(
        self,
        syscall_id: str,
        module: Module | None,
        owner: Owner | None,
        heard: Heard | None = None,
    ) -> Attached:
        """Hear of a syscall; all that are asked for in this loop tick go in one request."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Attached] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._send_asked)
        ask = wire.Ask(
            syscall_id, module, None if heard is None else (heard.answer, heard.reasoning)
        )
        self._asked.append((ask, future))
        return await future

    def _send_asked(self) -> None:
        asked, self._asked = self._asked, []
        for first in range(0, len(asked), wire.MOST_ASKED):
            task = asyncio.create_task(self._ask(asked[first : first + wire.MOST_ASKED]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, asked: Sequence[tuple[wire.Ask, asyncio.Future[Attached]]]) -> None:
        """Ask until all are answered: one answer holds as many as are not too large for it."""
        left = asked
        try:
            while left:
                message = wire.Attach(self._greeted().session, tuple(ask for ask, _ in left))
                answer = await self._post(wire.ATTACH, message, wire.Standings)
                if not 1 <= len(answer.standings) <= len(left):
                    raise self._stranger("it answers what was not asked")
                for (_, future), standing in zip(left, answer.standings, strict=False):
                    if not future.done():
                        future.set_result(_attached(standing))
                left = left[len(answer.standings) :]
        except KernelError as error:
            for _, future in left:
                if not future.done():
                    future.set_exception(error)
        except asyncio.CancelledError:
            for _, future in left:
                future.cancel()
            raise

    async def status(self, syscall_id: str, owner: Owner | None) -> CallStatus | None:
        """Look at one syscall that has not ended."""
        response = await self._request("GET", wire.STATUS, params={"id": syscall_id})
        found: CallStatus | None = self._read(response.content, CallStatus | None)  # type: ignore[arg-type]
        return found

    async def messages(self) -> list[bytes]:
        """Return what has come of the session; wait a while for the first message."""
        if self._early:
            early, self._early = self._early, []
            return early
        if self._events is None:
            raise ApiUnavailable("no session is open", remedy="it is begun anew")
        return await self._next(self._events)

    async def aclose(self) -> None:
        """Close the session and all connections."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._leave()
        finally:
            await self._http.aclose()

    # What stands behind them.

    async def _next(self, events: AsyncIterator[list[bytes]]) -> list[bytes]:
        try:
            return await anext(events)
        except StopAsyncIteration as error:
            self._events = None
            raise ApiUnavailable(
                f"the API at {self._shown} broke off the session", remedy="it is begun anew"
            ) from error
        except httpx.TransportError as error:
            self._events = None
            raise self._away(error) from error

    async def _leave(self) -> None:
        stream, self._stream, self._events, self._early = self._stream, None, None, []
        if stream is not None:
            with contextlib.suppress(httpx.TransportError):  # it is broken: nothing is left of it
                await stream.aclose()

    async def _post(self, path: str, message: msgspec.Struct, answer: type[Answer]) -> Answer:
        data = _encoder.encode(message)
        headers = {"Content-Type": "application/json"}
        response = await self._request("POST", path, content=data, headers=headers)
        return self._read(response.content, answer)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> httpx.Response:
        if self._is_closed:
            raise ApiUnavailable("this client was closed", remedy="open a new one")
        try:
            response = await self._http.request(
                method, path, content=content, headers=headers, params=params
            )
        except httpx.TransportError as error:
            raise self._away(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refusal(response)
        return response

    def _read(self, data: bytes, answer: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(data, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._stranger(f"its answer cannot be read: {error}") from error

    def _refusal(self, response: httpx.Response) -> KernelError:
        """Return the error that an answer holds."""
        try:
            said = msgspec.json.decode(response.content, type=_Problem)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if response.is_server_error:  # a proxy before it, as a rule
                return self._away(f"it answers {response.status_code}")
            return self._stranger(f"it answers {response.status_code}")
        return from_wire(
            ErrorBody(
                code=said.code,
                message=said.detail,
                field=said.field,
                remedy=said.remedy,
                retryable=said.retryable,
                retry_after_s=said.retry_after_s,
                syscall_id=said.syscall_id,
            )
        )

    def _away(self, why: object) -> ApiUnavailable:
        return ApiUnavailable(
            f"no API at {self._shown}: {str(why) or type(why).__name__}",
            field="url",
            remedy="start it, or correct the URL",
            retry_after_s=1.0,
        )

    def _stranger(self, why: str) -> InvalidConfig:
        return InvalidConfig(
            f"what answers at {self._shown} is not the kernel's API: {why}",
            field="url",
            remedy="use the API's address, see `aios status`",
        )

    def _greeted(self) -> wire.Hello:
        assert self._hello is not None, "it is not open"
        return self._hello


async def _events(stream: httpx.Response) -> AsyncIterator[list[bytes]]:
    """Yield the data of a stream's events, as many at a time as have come; no comments."""
    parts: list[bytes] = []  # of an event that is not whole yet
    size_bytes = 0
    async for data in stream.aiter_bytes():
        before = parts[-1][-1:] if parts else b""
        parts.append(data)
        size_bytes += len(data)
        if size_bytes > MOST_EVENT_BYTES:
            return
        if _END not in before + data:
            continue
        *whole, rest = b"".join(parts).split(_END)
        parts, size_bytes = [rest], len(rest)
        if found := [each.removeprefix(_DATA) for each in whole if each.startswith(_DATA)]:
            yield found


def _attached(standing: wire.Standing) -> Attached:
    reply = bytes(standing.reply) or None
    return Attached(standing.state, standing.module, reply, standing.missing)


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
