"""Ranges, tags and pieces of content as HTTP has them."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from aios_broker.contract.errors import InvalidRange
from aios_kernel_api.byte_ranges import ByteSource, Part, answer, asked_part, names, sent_piece

CONTENT = bytes(range(256)) * 4
TAG = '"7-abc"'
sizes = st.integers(0, 3_000)


def stored(content: bytes = CONTENT) -> ByteSource:
    async def pieces(first: int, end: int) -> AsyncIterator[bytes]:
        for at in range(first, end, 100):
            yield content[at : min(at + 100, end)]

    return ByteSource(len(content), TAG, pieces)


async def body_of(response: Response) -> bytes:
    if not isinstance(response, StreamingResponse):
        return bytes(response.body)
    return b"".join([bytes(each) async for each in response.body_iterator])  # type: ignore[arg-type]


@given(sizes, sizes, sizes)
def test_a_range_is_what_a_slice_would_be(size: int, first: int, last: int) -> None:
    whole = bytes(size)
    if last < first:
        assert asked_part(f"bytes={first}-{last}", size) is None
        return
    wanted = whole[first : last + 1]
    if not wanted:
        with pytest.raises(InvalidRange):
            asked_part(f"bytes={first}-{last}", size)
        return
    part = asked_part(f"bytes={first}-{last}", size)
    assert part is not None
    assert (part.first, part.end - part.first) == (first, len(wanted))


@given(sizes, sizes)
def test_a_range_from_the_end_is_the_last_bytes(size: int, count: int) -> None:
    if not min(size, count):
        with pytest.raises(InvalidRange):
            asked_part(f"bytes=-{count}", size)
        return
    assert asked_part(f"bytes=-{count}", size) == Part(max(0, size - count), size)


@pytest.mark.parametrize(
    "header",
    [
        "bytes=-",
        "bytes=0-1,3-4",
        "items=0-1",
        "bytes=a-b",
        "bytes=+1-2",
        "",
        "bytes=1-2x",
        "bytes=٣-",
    ],
)
def test_what_is_no_single_range_asks_for_all(header: str) -> None:
    assert asked_part(header, 100) is None


@given(st.text(max_size=40))
def test_any_header_is_a_range_all_or_refused(header: str) -> None:
    try:
        part = asked_part(header, 50)
    except InvalidRange:
        return
    assert part is None or 0 <= part.first < part.end <= 50


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes 0-9/*", Part(0, 10)),
        ("bytes 10-19/20", Part(10, 20)),
        ("bytes 5-4/*", None),
        ("bytes */20", None),
        ("0-9/*", None),
    ],
)
def test_a_piece_says_where_it_belongs(header: str, part: Part | None) -> None:
    assert sent_piece(header) == part


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("*", True),
        (TAG, True),
        (f'"x", W/{TAG}', False),
        (f'"x", {TAG}', True),
        ('"7"', False),
        ("7-abc", False),
    ],
)
def test_a_condition_names_a_content(header: str, named: bool) -> None:  # noqa: FBT001
    assert names(header, TAG) is named


async def test_all_of_it_comes_with_its_tag() -> None:
    response = await answer(Headers(), stored(), only_head=False)

    assert response.status_code == 200
    assert await body_of(response) == CONTENT
    assert response.headers["etag"] == TAG
    assert response.headers["content-length"] == str(len(CONTENT))
    assert response.headers["content-type"] == "application/octet-stream"
    assert "sandbox" in response.headers["content-security-policy"]


async def test_a_range_comes_with_where_it_is() -> None:
    response = await answer(Headers({"range": "bytes=250-259"}), stored(), only_head=False)

    assert response.status_code == 206
    assert await body_of(response) == CONTENT[250:260]
    assert response.headers["content-range"] == f"bytes 250-259/{len(CONTENT)}"


async def test_a_range_of_another_content_is_all_of_this_one() -> None:
    headers = Headers({"range": "bytes=0-1", "if-range": '"6-abc"'})

    response = await answer(headers, stored(), only_head=False)

    assert response.status_code == 200
    assert await body_of(response) == CONTENT


async def test_what_is_known_does_not_come_again() -> None:
    response = await answer(Headers({"if-none-match": TAG}), stored(), only_head=False)

    assert response.status_code == 304
    assert not await body_of(response)


async def test_a_head_has_the_length_and_no_body() -> None:
    response = await answer(Headers(), stored(), only_head=True)

    assert response.headers["content-length"] == str(len(CONTENT))
    assert not await body_of(response)


async def test_what_is_empty_is_whole() -> None:
    response = await answer(Headers(), stored(b""), only_head=False)

    assert response.status_code == 200
    assert response.headers["content-length"] == "0"


async def test_what_cannot_be_read_fails_before_anything_is_answered() -> None:
    async def broken(_first: int, _end: int) -> AsyncIterator[bytes]:
        raise InvalidRange("gone")
        yield b""

    with pytest.raises(InvalidRange, match="gone"):
        await answer(Headers(), ByteSource(10, TAG, broken), only_head=False)
