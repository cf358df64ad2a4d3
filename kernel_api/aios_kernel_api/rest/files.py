"""Files as bytes: read in ranges, written under a condition, and read by whoever has a link.

    GET /v1/files/reports/q3.pdf      Range, If-None-Match, If-Range; the ETag names the content
    PUT /v1/files/reports/q3.pdf      If-Match, If-None-Match: *; Content-Range: the next piece
    GET /v1/links/SECRET              no token: who has the link may read the file until it expires

Reading and writing are syscalls of the agent, so rights, quotas, locks and approvals are those of
the storage module. A link stands for no agent, and is looked up here.
"""

import base64
from collections.abc import AsyncIterator

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.access.links import linked_file, linked_part
from aios_broker.contract.errors import InvalidRequest, NotFound, VersionConflict, WaitTimeout
from aios_broker.contract.names import AgentName
from aios_broker.contract.storage import (
    Content,
    Entry,
    StorageAppend,
    StorageRead,
    StorageStat,
    StorageWrite,
)
from aios_kernel_api.bodies import in_turn, query_of, read_body
from aios_kernel_api.byte_ranges import ByteSource, answer, names, sent_piece
from aios_kernel_api.calls import call
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.operations import (
    Answer,
    NoQuery,
    Operation,
    json_response,
    path_of,
)
from aios_kernel_api.rest.syscalls import WaitS

PIECE_BYTES = 1024 * 1024  # of a file, read at a time
# Of one request: in base64 it fits a syscall. What is larger is sent in pieces.
MOST_PUT_BYTES = 3_000_000


class FileQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """In whose namespace the path is; none: in the agent's own."""

    owner: AgentName | None = None


class WriteQuery(FileQuery, frozen=True):
    """In whose namespace, and how long the answer waits for what a person has to allow."""

    wait_s: WaitS = 30.0


class Accepted(Struct, frozen=True):
    """It has not ended: it waits for a person's approval, or for a worker."""

    syscall_id: str


async def get_file(request: Request) -> Response:
    """Return a file's content, or a range of it."""
    caller, kernel = caller_of(request), kernel_of(request)
    path = path_of(request)["path"]
    owner = query_of(request, FileQuery).owner
    entry = await _stat(kernel, caller, path, owner)

    async def pieces(first: int, end: int) -> AsyncIterator[bytes]:
        at = first
        while at < end:
            part = StorageRead(
                path=path,
                owner=owner,
                version=entry.version or None,
                offset=at,
                max_bytes=min(PIECE_BYTES, end - at),
            )
            content = await call(kernel, caller, part)
            assert isinstance(content, Content)
            if not content.data:  # a mounted file that has become shorter
                raise NotFound(f"{path} ends at byte {at}", field="path", remedy="read it again")
            yield content.data
            at += len(content.data)

    return await answer(
        request.headers,
        ByteSource(entry.size_bytes, tag_of(entry), pieces),
        only_head=request.method == "HEAD",
    )


async def get_link(request: Request) -> Response:
    """Return the content of the file that a link points to, or a range of it."""
    kernel, link = kernel_of(request), request.path_params["link"]
    query_of(request, NoQuery)
    async with kernel.link_places, kernel.needed_store.as_steward() as cursor:
        file = await linked_file(cursor, link)

    async def pieces(first: int, end: int) -> AsyncIterator[bytes]:
        for at in range(first, end, PIECE_BYTES):
            async with kernel.link_places, kernel.needed_store.as_steward() as cursor:
                part = await linked_part(cursor, file, at, min(PIECE_BYTES, end - at))
            yield part

    tag = f'"{file.version}-{file.sha256[:32]}"'
    stored = ByteSource(file.size_bytes, tag, pieces)
    return await answer(request.headers, stored, only_head=request.method == "HEAD")


async def put_file(request: Request) -> Response:
    """Write a file, or add the next piece to it."""
    caller, kernel = caller_of(request), kernel_of(request)
    path, query = path_of(request)["path"], query_of(request, WriteQuery)
    owner = query.owner
    data = await read_body(request, most_bytes=MOST_PUT_BYTES)
    first = _first_byte(request, len(data))
    version = await _wanted_version(request, caller, owner, first)
    try:
        async with in_turn(request):
            content = base64.b64encode(data).decode()
        body: StorageAppend | StorageWrite
        if first:
            body = StorageAppend(path, content, "base64", version, owner=owner)
        else:
            body = StorageWrite(path, content, "base64", version, owner=owner)
        key = request.headers.get("idempotency-key")
        entry = await call(kernel, caller, body, key=key, wait_s=query.wait_s)
    except WaitTimeout as error:
        under_way = json_response(Accepted(error.syscall_id or ""), 202)
        under_way.headers["location"] = f"/v1/syscalls/{error.syscall_id}"
        return under_way
    assert isinstance(entry, Entry)
    written = json_response(entry, 201 if entry.version == 1 else 200)
    written.headers["etag"] = tag_of(entry)
    return written


def _first_byte(request: Request, size_bytes: int) -> int:
    """Return where in the file a body belongs."""
    header = request.headers.get("content-range")
    if header is None:
        return 0
    piece = sent_piece(header)
    if piece is None or piece.end - piece.first != size_bytes:
        raise InvalidRequest(
            f"{header!r} does not say which bytes these {size_bytes} are",
            field="content-range",
            remedy="write `bytes FIRST-LAST/*`, both counted from 0",
        )
    return piece.first


async def _wanted_version(
    request: Request, caller: Caller, owner: str | None, first: int
) -> int | None:
    """Return the version that a file must have to be written; 0: there must be none; None: any.

    Raises:
        VersionConflict: it is not of the content that was named, or does not end where this begins.
    """
    match, none = request.headers.get("if-match"), request.headers.get("if-none-match")
    if none is not None and none.strip() != "*":
        raise InvalidRequest(
            "a write takes `*` alone", field="if-none-match", remedy="name a content in If-Match"
        )
    if match is None and not first:
        return None if none is None else 0
    path = request.path_params["path"]
    try:
        entry = await _stat(kernel_of(request), caller, path, owner)
    except NotFound as error:
        raise VersionConflict(f"there is no file {path}", field="path", remedy="make it") from error
    if match is not None and not names(match, tag_of(entry)):
        raise VersionConflict(
            f"{path} has another content: {tag_of(entry)}",
            field="if-match",
            remedy="read it again, and decide anew",
        )
    if first and entry.size_bytes != first:
        raise VersionConflict(
            f"{path} has {entry.size_bytes} bytes: the next piece begins there, not at {first}",
            field="content-range",
            remedy="send what follows",
        )
    return None if entry.mounted else entry.version


async def _stat(kernel: Kernel, caller: Caller, path: str, owner: str | None) -> Entry:
    entry = await call(kernel, caller, StorageStat(path, owner=owner))
    assert isinstance(entry, Entry)
    if entry.kind != "file":
        raise NotFound(f"{path} is a directory", field="path", remedy="list it: storage.list")
    return entry


def tag_of(entry: Entry) -> str:
    """Return the tag of a file's content; of one that is mounted, by its size and its time."""
    if entry.sha256:
        return f'"{entry.version}-{entry.sha256[:32]}"'
    return f'"m{entry.size_bytes}-{entry.updated_at:.6f}"'


_TAG = {"ETag": "Names exactly this content"}
_RANGE = {
    "Range": "One range, such as `bytes=0-1023`, `bytes=1024-`, `bytes=-100`",
    "If-Range": "The ETag that the range is of; of another content all comes",
    "If-None-Match": "The ETag that is known",
}
_READ = {
    200: Answer(words="All of it", media="application/octet-stream", headers=_TAG),
    206: Answer(words="The range", media="application/octet-stream", headers=_TAG),
    304: Answer(words="It is what is known", media="", headers=_TAG),
}
GET_FILE = Operation(
    method="GET",
    path="/v1/files/{path:path}",
    tag="Files",
    words="Read a file of the agent's, or one that it may read",
    scope="agent",
    query=FileQuery,
    headers=_RANGE,
    answers=_READ,
    errors=(404, 416),
)
GET_LINK = Operation(
    method="GET",
    path="/v1/links/{link}",
    tag="Files",
    words="Read the file that a link points to",
    more="Links are made by the syscall `storage.share`. Whoever has one needs no token.",
    scope=None,
    headers=_RANGE,
    answers=_READ,
    errors=(404, 416, 501),
)
PUT_FILE = Operation(
    method="PUT",
    path="/v1/files/{path:path}",
    tag="Files",
    words="Write a file, or add the next piece to it",
    more="Up to 3,000,000 bytes at a time. What is larger is sent in pieces, one after the other: "
    "`Content-Range: bytes 3000000-5999999/*`. Replacing content may wait for a person.",
    scope="agent",
    query=WriteQuery,
    body=bytes,
    body_media="application/octet-stream",
    headers={
        "If-Match": "The ETag of the content that may be replaced",
        "If-None-Match": "`*`: only if there is none",
        "Content-Range": "Which bytes of the file these are, where they are a piece",
        "Idempotency-Key": "Sent again with it, nothing is written twice",
    },
    answers={
        200: Answer(words="It was replaced, or added to", kind=Entry, headers=_TAG),
        201: Answer(words="It was made", kind=Entry, headers=_TAG),
        202: Answer(
            words="It has not ended: it waits for a person or for a worker",
            kind=Accepted,
            headers={"Location": "Where it is looked at"},
        ),
    },
    errors=(404, 409, 412, 423),
)
OPERATIONS = (GET_FILE, PUT_FILE, GET_LINK)
ROUTES = [
    Route(GET_FILE.path, get_file, methods=["GET", "HEAD"]),
    Route(PUT_FILE.path, put_file, methods=["PUT"]),
]
PUBLIC_ROUTES = [Route(GET_LINK.path, get_link, methods=["GET", "HEAD"])]
