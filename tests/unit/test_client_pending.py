"""Chunks come again, get lost, come late: the reader sees each character once, in order."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import Cancelled
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.reply import ChatResult, Chunk, EchoResult, Reply, failure
from aios_broker.contract.syscall import Syscall, ToolEcho

ID = "0" * 32
TEXT = "abcdefghijklmnop"
STREAMED = Syscall(ID, "writer", LlmChat((Message("user", "x"),), stream=True))


def spans(length: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    span = st.tuples(st.integers(0, length), st.integers(0, length))
    return st.lists(span.map(lambda ends: (min(ends), max(ends))), max_size=12)


@given(spans(len(TEXT)))
def test_whatever_chunks_come_the_text_is_whole(sent: list[tuple[int, int]]) -> None:
    async def hear() -> list[Chunk]:
        pending = Pending(ID, STREAMED, 0.0)
        for first, last in sent:
            pending.hear(Chunk(ID, first, TEXT[first:last]), 1.0)
        pending.end(Reply(ID, ChatResult(TEXT, "stop", "m")))
        return list(pending.chunks)

    chunks = asyncio.run(hear())
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert all(chunk.text for chunk in chunks)
    for before, after in pairwise(chunks):
        assert after.offset == before.offset + len(before.text)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["chunk", "fill"]), st.integers(0, 15)), max_size=12),
    attached=st.booleans(),
)
def test_what_came_behind_a_hole_is_kept_once_the_hole_is_filled(
    steps: list[tuple[str, int]], *, attached: bool
) -> None:
    """A chunk is of two characters; the kernel has kept all up to where it was asked."""

    async def hear() -> list[Chunk]:
        pending = Pending(ID, None if attached else STREAMED, 0.0)
        for step, at in steps:
            if step == "chunk":
                pending.hear(Chunk(ID, at, TEXT[at : at + 2]), 1.0)
            else:
                have = pending.heard.answer
                pending.fill([Chunk(ID, have, TEXT[have:])], 1.0)
                assert not pending.has_hole
                assert "".join(chunk.text for chunk in pending.chunks) == TEXT
        return list(pending.chunks)

    chunks = asyncio.run(hear())
    assert "".join(chunk.text for chunk in chunks) == TEXT[: sum(len(c.text) for c in chunks)]


async def test_what_came_ahead_of_what_was_missing_follows_it() -> None:
    pending = Pending(ID, None, 0.0)
    pending.hear(Chunk(ID, 4, "efg"), 1.0)
    assert pending.has_hole
    assert not pending.chunks
    pending.fill([Chunk(ID, 0, "abcd")], 1.0)
    assert [chunk.text for chunk in pending.chunks] == ["abcd", "efg"]
    assert not pending.has_hole


async def test_a_hole_that_nobody_can_fill_is_asked_for_once() -> None:
    pending = Pending(ID, STREAMED, 0.0)
    pending.hear(Chunk(ID, 4, "efg"), 1.0)
    pending.fill([], 1.0)
    pending.hear(Chunk(ID, 7, "hij"), 1.0)
    assert not pending.has_hole
    pending.end(Reply(ID, ChatResult(TEXT, "stop", "m")))
    assert [chunk.text for chunk in pending.chunks] == [TEXT]


async def test_what_is_not_streamed_has_no_chunks() -> None:
    pending = Pending(ID, Syscall(ID, "writer", ToolEcho("x")), 0.0)
    pending.end(Reply(ID, EchoResult("x")))
    assert not pending.chunks


async def test_it_ends_once() -> None:
    pending = Pending(ID, STREAMED, 0.0)
    news = pending.news()
    pending.end(failure(ID, Cancelled("first")), "lose")
    with pytest.raises(AssertionError, match="that is refused cannot reply"):
        pending.end(Reply(ID, ChatResult(TEXT, "stop", "m")))
    assert pending.reply is not None
    assert pending.reply.error is not None
    assert news.done()
    assert pending.ended.done()
    assert pending.accepted.done()
    assert not pending.was_accepted


async def test_a_reply_that_overtakes_its_acknowledgement_was_accepted() -> None:
    pending = Pending(ID, STREAMED, 0.0)
    pending.send()
    pending.end(Reply(ID, ChatResult(TEXT, "stop", "m")))
    assert pending.was_accepted
    assert pending.state == "ended"
