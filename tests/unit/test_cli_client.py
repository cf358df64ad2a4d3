"""A syscall that is waited for: its text in order, each character once, then its reply."""

import asyncio

import pytest

from aios_broker.cli.client import KernelClient, Pending, submission
from aios_broker.contract.errors import RedisUnavailable, WaitTimeout
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.needs import Need
from aios_broker.contract.reply import ChatResult, Chunk, Reply
from aios_broker.contract.syscall import Syscall

ID = "ab" * 16


async def test_text_that_comes_again_after_a_crash_is_heard_once() -> None:
    pending = Pending(ID, "llm")
    for offset, text in ((0, "One "), (4, "two "), (0, "One two thr"), (11, "ee"), (40, "lost")):
        pending.hear(Chunk(ID, offset, text))
    pending.hear(Reply(ID, result=ChatResult("One two three", "stop", "m")))

    assert [piece async for piece in pending.pieces()] == ["One two three"]
    assert (await pending.reply(1.0)).result == ChatResult("One two three", "stop", "m")


async def test_pieces_come_while_it_runs() -> None:
    pending = Pending(ID, "llm")
    heard: list[str] = []

    async def listen() -> None:
        async for piece in pending.pieces():
            heard.append(piece)
            if len(heard) == 1:
                pending.hear(Chunk(ID, 1, "b"))
            else:
                pending.hear(Reply(ID, result=ChatResult("ab", "stop", "m")))

    pending.hear(Chunk(ID, 0, "a"))
    await asyncio.wait_for(listen(), 5)
    assert heard == ["a", "b"]


async def test_a_caller_that_stops_waiting_is_told_how_to_wait_again() -> None:
    with pytest.raises(WaitTimeout) as caught:
        await Pending(ID, "llm").reply(0.01)
    assert caught.value.syscall_id == ID
    assert f"--attach {ID}" in str(caught.value)


def test_a_submission_carries_what_the_scheduler_needs() -> None:
    syscall = Syscall(
        id=ID, agent="writer", program="novel", tenant="acme", nice=5, deadline_s=30.0,
        body=LlmChat(messages=(Message("user", "hi"),), core="small"),
    )  # fmt: skip
    job = submission(syscall, "client-1")
    assert (job.job_id, job.client, job.deadline_s) == (ID, "client-1", 30.0)
    assert job.needs == (Need("core", "small"),)
    facts = job.facts
    assert (facts.agent, facts.program, facts.tenant, facts.nice, facts.kind) == (
        "writer", "novel", "acme", 5, "llm.chat",
    )  # fmt: skip


async def test_a_redis_that_stays_away_is_told_to_who_waits() -> None:
    async with KernelClient("redis://127.0.0.1:1/0", patience_s=0.1) as client:
        pending = Pending(ID, "llm")
        client._await_replies([pending])

        with pytest.raises(RedisUnavailable):
            await pending.reply(10.0)
