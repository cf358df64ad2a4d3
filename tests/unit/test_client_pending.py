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


async def test_one_who_attaches_hears_from_where_he_came_in() -> None:
    pending = Pending(ID, None, 0.0)
    pending.hear(Chunk(ID, 4, "efg"), 1.0)
    pending.end(Reply(ID, ChatResult(TEXT, "stop", "m")))
    assert [chunk.offset for chunk in pending.chunks] == [4, 7]


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
