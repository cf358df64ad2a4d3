"""What a request says, read within bounds: its body as one of our structs, its query, its leaving.

A body is read by whoever wants it, after it is known whose the request is: so a stranger's bytes
are never kept. Compressed ones are refused: nobody can send what is small here and large there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request

from aios_broker.contract.errors import (
    InvalidRequest,
    InvalidSyscall,
    KernelError,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedMedia,
)
from aios_broker.contract.json_text import (
    DuplicateKey,
    has_more_values,
    has_nul,
    read_once_each,
)
from aios_broker.contract.names import MAX_TEXT_BYTES, Owner
from aios_broker.contract.syscall import (
    KINDS,
    MAX_VALUES,
    decode_failure,
    refuse_nul,
    refuse_shape,
    unknown_kind,
)
from aios_kernel_api.large_work import WorkProgress, weight_of

MAX_BODY_BYTES = MAX_TEXT_BYTES + 64 * 1024  # one syscall and what stands around it
NOBODY = Owner("", "")  # whoever has no token
T = TypeVar("T")
Q = TypeVar("Q", bound=Struct)


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
        with kernel.room.take(_owner(request).tenant) as share:
            async with asyncio.timeout(limit_s):
                async for part in request.stream():
                    share.grow(len(part))
                    if share.size_bytes > most_bytes:
                        raise _too_large(most_bytes)
                    parts.append(part)
            data = b"".join(parts)
            request.state.weight = weight_of(data)
            return data
    except TimeoutError as error:
        raise RequestTimeout(
            f"the body did not come within {limit_s:g} s", field="body", remedy="send it faster"
        ) from error
    except ClientDisconnect as error:
        raise InvalidRequest("the client left in the middle of its body", field="body") from error


@asynccontextmanager
async def in_turn(request: Request, times: int = 1) -> AsyncIterator[WorkProgress]:
    """Do for a request, in a block, what takes as long as to read its body: in its tenant's turn.

    Args:
        request: Its body was read.
        times: What each of its bytes counts.
    """
    async with request.app.state.kernel.large_work.of(_owner(request)) as progress:
        await progress.before(times * getattr(request.state, "weight", 0))
        yield progress


def _owner(request: Request) -> Owner:
    caller = getattr(request.state, "caller", None)
    return NOBODY if caller is None else caller.owner


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
    data = await read_body(request, most_bytes=most_bytes, within_s=within_s)
    async with in_turn(request):
        return decode(data, decoder)


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read JSON from outside as one of our types; all at once: a large list is `decode_each`'s.

    Raises:
        InvalidSyscall: it is none: nested too deeply, too many values, a NUL character, a wrong or
            unknown field, an object with a key twice.
    """
    try:
        read_plain(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        decode_again(data, decoder)  # raises, as a rule, and says more of where
        raise _explained(data, error) from error
    return decode_again(data, decoder)


def read_plain(data: bytes) -> Any:  # noqa: ANN401 - whatever JSON may be
    """Return what JSON from outside says, as plain values.

    Raises:
        InvalidSyscall: it is nested too deeply, has too many values, a NUL character, or an object
            with a key twice; `field` is the key, or the path.
        msgspec.DecodeError, UnicodeDecodeError: it is no JSON.
    """
    refuse_shape(data)
    try:
        value = read_once_each(data)
    except DuplicateKey as error:
        raise ambiguous(error) from error
    if has_nul(data):
        refuse_nul(value)
    return value


def ambiguous(error: DuplicateKey) -> InvalidSyscall:
    """Return the error of an object that has a key twice: each reader could take another one."""
    return InvalidSyscall(
        f"the body is ambiguous: {error}", field=error.key, remedy="send each key once"
    )


async def decode_each(
    data: bytes, decoder: msgspec.json.Decoder[T], progress: WorkProgress
) -> AsyncIterator[tuple[T, int]]:
    """Yield what stands in a list in JSON from outside, and what it weighs there.

    Raises:
        InvalidSyscall: as `decode` does; `field` begins with the place in the list. What comes
            before that was yielded.
    """
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
        weight = weight_of(bytes(item))
        await progress.before(weight)
        try:
            found = decode(bytes(item), decoder)
        except KernelError as error:
            error.field = f"[{place}].{error.field or ''}".removesuffix(".")
            raise
        yield found, weight


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
