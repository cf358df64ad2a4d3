"""What a request says, read within bounds: its body as one of our structs, its query, its leaving.

A body is read by whoever wants it, after it is known whose the request is: so a stranger's bytes
are never kept. Compressed ones are refused: nobody can send what is small here and large there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request

from aios_broker.contract.errors import (
    InvalidRequest,
    InvalidSyscall,
    KernelError,
    QueueFull,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedMedia,
)
from aios_broker.contract.json_text import (
    DuplicateKey,
    has_more_values,
    has_nul,
    refuse_duplicate_keys,
)
from aios_broker.contract.names import MAX_TEXT_BYTES
from aios_broker.contract.syscall import (
    KINDS,
    MAX_VALUES,
    decode_failure,
    refuse_nul,
    refuse_shape,
    unknown_kind,
)
from aios_kernel_api.large_work import WorkProgress

MAX_BODY_BYTES = MAX_TEXT_BYTES + 64 * 1024  # one syscall and what stands around it
T = TypeVar("T")
Q = TypeVar("Q", bound=Struct)


class Room:
    """Bytes of bodies that all requests together may hold."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.free_bytes = most_bytes

    @property
    def taken_bytes(self) -> int:
        """How much they hold now."""
        return self._most_bytes - self.free_bytes

    @contextmanager
    def take(self) -> Iterator["Share"]:
        """Hold what one request reads, for as long as it reads."""
        share = Share(self)
        try:
            yield share
        finally:
            self.free_bytes += share.size_bytes

    def grow(self, size_bytes: int) -> None:
        """Take more.

        Raises:
            QueueFull: there is none left.
        """
        if size_bytes > self.free_bytes:
            raise QueueFull(
                "the API reads as much as it may at the moment",
                remedy="send it again later",
                retry_after_s=1.0,
            )
        self.free_bytes -= size_bytes


class Share:
    """What one request holds of the room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Hold more; QueueFull where there is no room."""
        self._room.grow(size_bytes)
        self.size_bytes += size_bytes


async def read_body(
    request: Request, *, most_bytes: int = MAX_BODY_BYTES, within_s: float | None = None
) -> bytes:
    """Return the body of a request.

    Args:
        request: Not read yet.
        most_bytes: A larger one is refused, as soon as that is known.
        within_s: How long it may take to come; None: as the API's settings say.

    Raises:
        InvalidRequest: it is too large, too slow, compressed, or was cut off.
        QueueFull: all requests together are too large at the moment.
    """
    _refuse_encoded(request)
    _refuse_declared(request, most_bytes)
    kernel = request.app.state.kernel
    limit_s = kernel.config.api_slow_client_s if within_s is None else within_s
    parts: list[bytes] = []
    try:
        with kernel.room.take() as share:
            async with asyncio.timeout(limit_s):
                async for part in request.stream():
                    share.grow(len(part))
                    if share.size_bytes > most_bytes:
                        raise _too_large(most_bytes)
                    parts.append(part)
            return b"".join(parts)
    except TimeoutError as error:
        raise RequestTimeout(
            f"the body did not come within {limit_s:g} s", field="body", remedy="send it faster"
        ) from error
    except ClientDisconnect as error:
        raise InvalidRequest("the client left in the middle of its body", field="body") from error


async def read_json(
    request: Request,
    decoder: msgspec.json.Decoder[T],
    *,
    most_bytes: int = MAX_BODY_BYTES,
    within_s: float | None = None,
) -> T:
    """Return the body of a request as what the decoder is of.

    Raises:
        InvalidRequest: see `read_body`.
        InvalidSyscall: it is none; `field` is the path of what is wrong.
    """
    return decode(await read_body(request, most_bytes=most_bytes, within_s=within_s), decoder)


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read JSON from outside as one of our types; all at once: a large list is `decode_each`'s.

    Raises:
        InvalidSyscall: it is none: nested too deeply, too many values, a NUL character, a wrong or
            unknown field, an object with a key twice.
    """
    refuse_shape(data)
    refuse_ambiguous(data)
    try:
        if has_nul(data):
            refuse_nul(msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _explained(data, error) from error
    return decode_again(data, decoder)


def refuse_ambiguous(data: bytes) -> None:
    """Return when no object of a JSON text has a key twice; its depth is known to be bounded.

    Raises:
        InvalidSyscall: one has; `field` is the key. Of two readers, each could take another one.
    """
    try:
        refuse_duplicate_keys(data)
    except DuplicateKey as error:
        raise InvalidSyscall(
            f"the body is ambiguous: {error}", field=error.key, remedy="send each key once"
        ) from error


async def decode_each(
    data: bytes, decoder: msgspec.json.Decoder[T], progress: WorkProgress
) -> AsyncIterator[tuple[T, int]]:
    """Yield what stands in a list in JSON from outside, and how many bytes it has there.

    Raises:
        InvalidSyscall: as `decode` does; `field` begins with the place in the list. What comes
            before that was yielded.
    """
    await progress.before(len(data))
    if has_more_values(data, MAX_VALUES):
        refuse_shape(data)
    try:
        # Brackets that are nested too deeply to be walked through: `refuse_shape` says so.
        items = msgspec.json.decode(data, type=list[msgspec.Raw])
    except RecursionError:
        refuse_shape(data)
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _explained(data, error) from error
    for place, item in enumerate(items):
        await progress.before(len(item))
        try:
            found = decode(bytes(item), decoder)
        except KernelError as error:
            error.field = f"[{place}].{error.field or ''}".removesuffix(".")
            raise
        yield found, len(item)


def decode_again(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read JSON that was read once, as another of our types.

    Raises:
        InvalidSyscall: it has a wrong or unknown field.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _explained(data, error) from error


def query_of(request: Request, kind: type[Q]) -> Q:
    """Return the query of a request as a struct of ours.

    Raises:
        InvalidRequest: a parameter is unknown, stands there twice, or has a wrong value.
    """
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    for name in names:
        if name not in kind.__struct_fields__ or names.count(name) > 1:
            known = ", ".join(kind.__struct_fields__) or "none"
            raise InvalidRequest(
                "this parameter stands there twice"
                if name in kind.__struct_fields__
                else "the route has no such parameter",
                field=f"query.{name[:64]}",
                remedy=f"each of these once at most: {known}",
            )
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        message, field = decode_failure(error)
        raise InvalidRequest(
            message, field=f"query.{field}".rstrip("."), remedy="correct it, or leave it out"
        ) from error


class ClientGone(Exception):
    """The client has left: nobody reads an answer."""


async def left(request: Request) -> None:
    """Return when the client is gone; only once its body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """Return what comes of `work`, which ends when the client leaves.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _refuse_encoded(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(
            "a compressed body is not read",
            field="content-encoding",
            remedy="send it as it is, without Content-Encoding",
        )


def _refuse_declared(request: Request, most_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:32]) > most_bytes:
        raise _too_large(most_bytes)


def _too_large(most_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"the body has more than {most_bytes} bytes",
        field="body",
        remedy="shorten it, or keep large content in storage and name it",
    )


def _explained(data: bytes, error: Exception) -> KernelError:
    message, field = decode_failure(error)
    if field.endswith("type") and (kind := _kind_at(data, field)) is not None:
        return unknown_kind(kind)
    return InvalidSyscall(
        message,
        field=field or "body",
        remedy="see its type and range in /openapi.json"
        if field
        else "send JSON as the route's description in /openapi.json has it",
    )


def _kind_at(data: bytes, field: str) -> str | None:
    """Return the kind of syscall that stands at a path, where it is none that we know."""
    place: object = msgspec.json.decode(data)
    for step in field.replace("[", ".").replace("]", "").split("."):
        if isinstance(place, dict):
            place = place.get(step)
        elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
    return place if isinstance(place, str) and place not in KINDS else None
