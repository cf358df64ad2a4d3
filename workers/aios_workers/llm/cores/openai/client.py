"""Talks to one OpenAI-compatible endpoint: requests out, events in, errors by their kind.

Nothing that an endpoint sends is trusted: every line, event and body has a limit, every wait ends.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from aios_broker.contract.errors import (
    CoreAccountExhausted,
    CoreBusy,
    CoreError,
    CoreKeyRefused,
    UnsupportedOption,
)
from aios_broker.http_client import HttpClient

MAX_EVENT_BYTES = 8 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024  # of an answer that is no stream
MAX_WORDS = 300  # characters of an endpoint's own words in an error
LONGEST_PAUSE_S = 3_600.0  # that an endpoint may ask for
DEFAULT_PAUSE_S = 5.0  # where it asks for one and does not say how long
KEPT_CONNECTIONS = 32
_EVENT_STREAM = "text/event-stream"
Event = dict[str, Any]
END: Event = {}  # the endpoint says that there is nothing more

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an endpoint is waited for."""

    connect_s: float
    first_event_s: float
    stall_s: float  # between two events


class Client:
    """One endpoint, for one event loop."""

    def __init__(self, core: str, url: str, key: str | None, limits: Limits) -> None:
        self._core = core
        self._limits = limits
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        self._http = HttpClient(
            base_url=url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(limits.first_event_s, connect=limits.connect_s),
            # As many as generations: slots are what bounds them.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS),
            follow_redirects=False,  # a key goes where its owner sent it, and nowhere else
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def answers(self) -> bool:
        """Whether anybody is there, whatever he says."""
        try:
            async with self._http.stream("GET", "models", headers={"Connection": "close"}):
                return True
        except (httpx.HTTPError, httpx.StreamError):
            return False

    async def get(self, path: str) -> Event:
        """Return the JSON object that a path answers with.

        Raises:
            CoreError: it does not answer, or with something else.
        """
        async with self._opened("GET", path, None) as answer:
            return self._object(await self._body(answer))

    async def post(self, path: str, content: Mapping[str, object]) -> Event:
        """Return the JSON object that it answers with; errors as `get`."""
        async with self._opened("POST", path, content) as answer:
            return self._object(await self._body(answer))

    async def stream(self, path: str, content: Mapping[str, object]) -> AsyncGenerator[Event, None]:
        """Yield the events of an answer, and END where it says that there are no more.

        An endpoint that does not stream yields its one answer.

        Raises:
            CoreError: what it sends is no such stream, or stalls.
        """
        async with self._opened("POST", path, content) as answer:
            kind = answer.headers.get("content-type", "")
            if not kind.startswith(_EVENT_STREAM):
                yield self._checked(self._object(await self._body(answer)))
                return
            wait = _Wait(self._limits)
            async for data in self._events(answer, wait):
                if data == b"[DONE]":
                    yield END
                    return
                event = self._checked(self._object(data))
                wait.heard(event)
                yield event

    def _checked(self, event: Event) -> Event:
        if event.get("error"):
            raise self._error_of(200, event["error"], {})
        return event

    async def _events(self, answer: httpx.Response, wait: "_Wait") -> AsyncIterator[bytes]:
        """Yield the data of server-sent events; comments and names are passed over."""
        rest = b""
        async for piece in self._pieces(answer, wait):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > MAX_EVENT_BYTES:
                raise CoreError(f"core {self._core!r}: its endpoint sends an event without an end")
            for line in lines:
                if data := _data(line):
                    yield data
        if data := _data(rest):  # its last line has no end
            yield data

    async def _pieces(self, answer: httpx.Response, wait: "_Wait") -> AsyncIterator[bytes]:
        """Yield what comes, as long as events come in time: comments do not count."""
        pieces = answer.aiter_bytes()
        while True:
            try:
                async with asyncio.timeout(wait.left_s):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise self._late(f"nothing was said for {wait.limit_s:g} s") from error
            yield piece

    @asynccontextmanager
    async def _opened(
        self, method: str, path: str, content: Mapping[str, object] | None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; give the answer when its head is there, if it is a good one."""
        try:
            answer = await self._answer(method, path, content)
            async with aclosing(answer):
                if not answer.is_success:
                    raise self._refusal(answer, await self._body(answer))
                yield answer
        except httpx.TimeoutException as error:
            raise self._late(type(error).__name__) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            words = str(error) or type(error).__name__
            raise CoreError(
                f"core {self._core!r}: its endpoint cannot be used: {words[:MAX_WORDS]}",
                remedy="see whether it runs at the address of its core",
            ) from error

    async def _answer(
        self, method: str, path: str, content: Mapping[str, object] | None
    ) -> httpx.Response:
        """Send a request; return the answer when its head is there.

        A server may close a connection that was kept just when it is used again (llama.cpp's does
        after a hundred requests, and earlier). Before the head of an answer that says nothing of
        its health: it is asked once more, on a connection of its own.
        """
        request = self._http.build_request(method, path, json=content)
        try:
            return await self._http.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            again = self._http.build_request(
                method, path, json=content, headers={"Connection": "close"}
            )
            return await self._http.send(again, stream=True)

    def _late(self, how: str) -> CoreError:
        return CoreError(
            f"core {self._core!r}: its endpoint did not go on in time ({how})",
            remedy="see whether it is well",
        )

    async def _body(self, answer: httpx.Response) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in answer.aiter_bytes():
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise CoreError(f"core {self._core!r}: its endpoint's answer does not end")
            pieces.append(piece)
        return b"".join(pieces)

    def _object(self, data: bytes) -> Event:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            shown = data[:80].decode("utf-8", "replace")
            raise CoreError(
                f"core {self._core!r}: its endpoint answers what is no JSON: {shown!r}",
                remedy="see that the core's url is that of its API, up to /v1",
            ) from error
        if not isinstance(found, dict):
            raise CoreError(f"core {self._core!r}: its endpoint answers no JSON object")
        return found

    def _refusal(self, answer: httpx.Response, body: bytes) -> CoreError | UnsupportedOption:
        try:
            found = json.loads(body)
            said = found.get("error", found) if isinstance(found, dict) else {}
        except (ValueError, RecursionError):
            said = {}
        return self._error_of(answer.status_code, said, answer.headers)

    def _error_of(
        self, status: int, said: object, headers: Mapping[str, str]
    ) -> CoreError | UnsupportedOption:
        """Return an endpoint's refusal as the error that it is."""
        fields = said if isinstance(said, dict) else {"message": said}
        words = " ".join(_clean(fields.get("message") or fields.get("detail") or "").split())
        code = _clean(fields.get("code") or fields.get("type") or "")
        if status == 200 and code.isdecimal():  # an error behind a good head says its status itself
            status = int(code[:3])
        text = f"core {self._core!r}: its endpoint answers {status}"
        text += f": {words[:MAX_WORDS]}" if words else ""
        if status in (401, 403):
            return CoreKeyRefused(text, remedy="see what its api_key_env or api_key_file names")
        if status == 402 or code == "insufficient_quota":
            return CoreAccountExhausted(text, remedy="fill up the account, or use another core")
        if status == 429 or code == "rate_limit_exceeded":
            return CoreBusy(text, remedy="wait", retry_after_s=_pause_s(headers))
        if status == 503 and "retry-after" in headers:
            return CoreBusy(text, remedy="wait", retry_after_s=_pause_s(headers))
        if status in (400, 422):
            param = fields.get("param")
            return UnsupportedOption(
                text,
                field=f"body.{_clean(param)}" if isinstance(param, str) and param else "body",
                remedy="leave out what it does not know, or use another core",
            )
        return CoreError(text)


class _Wait:
    """How long is left until the endpoint has to say something: more for the first time."""

    def __init__(self, limits: Limits) -> None:
        self._stall_s = limits.stall_s
        self._clock = asyncio.get_running_loop().time
        self._begun = False
        self._renew(limits.first_event_s)

    @property
    def left_s(self) -> float:
        return self._until_s - self._clock()

    def heard(self, event: Event) -> None:
        """Note an event. Until one says something, the answer has not begun."""
        self._begun = self._begun or _says_something(event)
        if self._begun:
            self._renew(self._stall_s)

    def _renew(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._until_s = self._clock() + limit_s


def _says_something(event: Event) -> bool:
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = first.get("delta") if isinstance(first, dict) else None
    said = {name for name, value in delta.items() if value} if isinstance(delta, dict) else set()
    return not said <= {"role"}


def _data(line: bytes) -> bytes:
    return line[5:].strip() if line.startswith(b"data:") else b""


def _clean(value: object) -> str:
    """Return a text of the endpoint's that can be written: half a surrogate pair cannot."""
    return str(value).encode("utf-8", "replace").decode()


def _pause_s(headers: Mapping[str, str]) -> float:
    """Return how long an endpoint asks to be left alone: seconds in `Retry-After`, or a guess."""
    try:
        pause_s = float(headers.get("retry-after", ""))
    except ValueError:
        return DEFAULT_PAUSE_S
    return min(max(0.0, pause_s), LONGEST_PAUSE_S) if pause_s == pause_s else DEFAULT_PAUSE_S
