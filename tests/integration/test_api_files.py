"""Files over HTTP: bytes in and out, in ranges, under conditions, and by links."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from aios_kernel_api.rest.files import MOST_PUT_BYTES, PIECE_BYTES
from tests.api_scene import ApiScene

_numbers = itertools.count()
BYTES = bytes(range(256)) * 20


@pytest.fixture
def client(api: ApiScene) -> Iterator[httpx.Client]:
    """A client of an agent of the test's own."""
    with api.client(api.token()) as client:
        yield client


def put(client: httpx.Client, path: str, content: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.put(f"/v1/files/{path}", content=content, headers=named)


def syscall(client: httpx.Client, kind: str, **fields: object) -> dict[str, Any]:
    answer = client.post(
        "/v1/syscalls", params={"wait_s": 20}, json={"body": {"type": kind, **fields}}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["result"]
    return found


def test_bytes_come_back_as_they_were_sent(client: httpx.Client) -> None:
    made = put(client, "a/b/data.bin", BYTES)
    assert (made.status_code, made.json()["version"]) == (201, 1)
    read = client.get("/v1/files/a/b/data.bin")
    assert read.content == BYTES
    assert read.headers["etag"] == made.headers["etag"]
    assert read.headers["content-type"] == "application/octet-stream"
    assert read.headers["content-disposition"] == "attachment"
    head = client.head("/v1/files/a/b/data.bin")
    assert (head.headers["content-length"], head.content) == (str(len(BYTES)), b"")


def test_a_file_of_many_pieces_comes_whole_and_in_ranges(client: httpx.Client) -> None:
    content = ("é" * 1_500_000).encode()[: PIECE_BYTES * 2 + 13]  # pieces end within characters
    assert put(client, "long.txt", content).status_code == 201
    assert client.get("/v1/files/long.txt").content == content
    first, last = PIECE_BYTES - 2, PIECE_BYTES * 2 + 1
    part = client.get("/v1/files/long.txt", headers={"range": f"bytes={first}-{last}"})
    assert part.status_code == 206
    assert part.content == content[first : last + 1]
    assert part.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"


def test_a_range_behind_the_end_is_refused(client: httpx.Client) -> None:
    put(client, "short", b"abc")
    answer = client.get("/v1/files/short", headers={"range": "bytes=3-"})
    assert (answer.status_code, answer.json()["code"]) == (416, "invalid-range")


def test_what_is_known_does_not_come_again(client: httpx.Client) -> None:
    tag = put(client, "known", b"abc").headers["etag"]
    answer = client.get("/v1/files/known", headers={"if-none-match": tag})
    assert (answer.status_code, answer.content) == (304, b"")


def test_a_condition_keeps_a_write_from_what_it_does_not_know(client: httpx.Client) -> None:
    first = put(client, "scratch/x", b"1", if_none_match="*")
    assert first.status_code == 201
    assert put(client, "scratch/x", b"2", if_none_match="*").status_code == 412
    second = put(client, "scratch/x", b"2", if_match=first.headers["etag"])
    assert second.status_code == 200, second.text
    assert put(client, "scratch/x", b"3", if_match=first.headers["etag"]).status_code == 412
    assert put(client, "nowhere", b"1", if_match="*").status_code == 412
    assert client.get("/v1/files/scratch/x").content == b"2"


def test_a_large_file_is_sent_in_pieces(client: httpx.Client) -> None:
    pieces = [b"a" * 1_000, b"b" * 500, b"c" * 10]
    at = 0
    for piece in pieces:
        where = f"bytes {at}-{at + len(piece) - 1}/*"
        answer = put(client, "pieces.bin", piece, content_range=where)
        assert answer.status_code in (200, 201), answer.text
        at += len(piece)
    assert client.get("/v1/files/pieces.bin").content == b"".join(pieces)
    late = put(client, "pieces.bin", b"bb", content_range="bytes 1000-1001/*")
    assert (late.status_code, late.json()["field"]) == (412, "content-range")
    wrong = put(client, "pieces.bin", b"bb", content_range="bytes 1510-1519/*")
    assert (wrong.status_code, wrong.json()["field"]) == (400, "content-range")


def test_a_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    assert put(client, "most", b"x" * MOST_PUT_BYTES).status_code == 201
    answer = put(client, "more", b"x" * (MOST_PUT_BYTES + 1))
    assert answer.status_code == 413
    assert client.get("/v1/files/more").status_code == 404


def test_a_write_with_its_key_happens_once(client: httpx.Client) -> None:
    for _ in range(3):
        assert put(client, "once", b"1", idempotency_key="k1").json()["version"] == 1
    other = put(client, "once", b"2", idempotency_key="k1")
    assert (other.status_code, other.json()["code"]) == (409, "key-conflict")


def test_what_is_no_file_is_not_found(client: httpx.Client) -> None:
    put(client, "there/a", b"1")
    for path in ("nothing", "there", "there/a/b"):
        assert client.get(f"/v1/files/{path}").status_code == 404, path


@pytest.mark.parametrize("path", ["a/%2e%2e/%2e%2e/etc", "a%00b", "%2e%2e%2fb", "a//b"])
def test_a_hostile_path_is_refused(client: httpx.Client, path: str) -> None:
    for answer in (client.get(f"/v1/files/{path}"), put(client, path, b"x")):
        assert answer.status_code in (400, 404), answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_file_that_is_shared_is_read_by_its_owners_name(api: ApiScene) -> None:
    name = f"sharer-{next(_numbers)}"
    with api.client(api.token(name)) as owner, api.client(api.colleague) as other:
        put(owner, "shared/a", b"for bob")
        other.get("/v1/agents")  # it is known from its first syscall on
        syscall(other, "access.whoami")
        assert other.get("/v1/files/shared/a", params={"owner": name}).status_code == 404
        syscall(owner, "storage.share", path="shared", agent="bob")
        assert other.get("/v1/files/shared/a", params={"owner": name}).content == b"for bob"


def test_what_a_person_has_to_allow_is_under_way(client: httpx.Client) -> None:
    put(client, "kept.txt", b"first")
    answer = client.put("/v1/files/kept.txt", content=b"second", params={"wait_s": 1})
    assert answer.status_code == 202, answer.text
    syscall_id = answer.json()["syscall_id"]
    assert answer.headers["location"] == f"/v1/syscalls/{syscall_id}"
    assert client.get(answer.headers["location"]).json()["state"] == "parked"
    assert client.get("/v1/files/kept.txt").content == b"first"


def test_a_link_reads_one_file_until_it_expires(api: ApiScene, client: httpx.Client) -> None:
    put(client, "linked.bin", BYTES)
    link = syscall(client, "storage.share", path="linked.bin", link=True, ttl_s=3600)["link"]
    short = syscall(client, "storage.share", path="linked.bin", link=True, ttl_s=0.5)["link"]
    with api.client(None) as anybody:
        read = anybody.get(f"/v1/links/{link}")
        assert read.content == BYTES
        assert read.headers["referrer-policy"] == "no-referrer"
        part = anybody.get(f"/v1/links/{link}", headers={"range": "bytes=-5"})
        assert (part.status_code, part.content) == (206, BYTES[-5:])
        deadline = time.monotonic() + 10
        while anybody.get(f"/v1/links/{short}").status_code != 404:
            assert time.monotonic() < deadline, "it does not expire"
        assert anybody.get(f"/v1/links/{'0' * 64}").status_code == 404
        assert anybody.get(f"/v1/links/{link}", params={"x": "1"}).status_code == 400


def test_an_operator_has_no_files(api: ApiScene) -> None:
    with api.client(api.operator) as operator:
        assert operator.get("/v1/files/a").status_code == 403
        assert put(operator, "a", b"x").status_code == 403
