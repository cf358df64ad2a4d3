"""A reply is waited for with a time limit, and its text printed in order, each character once."""

from __future__ import annotations

import asyncio

import pytest

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import Cancelled, ModuleError, QueueFull, WaitTimeout
from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.reply import ChatResult, Chunk, Reply, failure
from aios_broker.contract.syscall import Syscall
from aios_cli.submit import Printed

ID = "ab" * 16
TEXT = "One two three"
STREAMED = Syscall(ID, "writer", LlmChat((Message("user", "x"),), stream=True))


def submitted() -> Pending:
    pending = Pending(ID, STREAMED, 0.0)
    pending.send()
    return pending


async def test_a_caller_that_stops_waiting_is_told_how_to_wait_again() -> None:
    pending = submitted()
    with pytest.raises(WaitTimeout) as caught:
        await pending.reply_within(0.01)
    assert caught.value.syscall_id == ID
    assert f"--attach {ID}" in str(caught.value)
    pending.accept(1.0)
    pending.end(Reply(ID, ChatResult(TEXT, "stop", "m")))  # it went on
    assert (await pending.reply_within(0.01)).result == ChatResult(TEXT, "stop", "m")


async def test_what_the_kernel_did_not_take_is_an_error() -> None:
    pending = submitted()
    pending.end(failure(ID, QueueFull("no room", retry_after_s=2.0)), "refuse")
    for waiting in (pending.reply_within(1.0), pending.taken()):
        with pytest.raises(QueueFull) as caught:
            await waiting
        assert caught.value.retry_after_s == 2.0


async def test_what_the_kernel_took_and_failed_is_a_reply() -> None:
    pending = submitted()
    pending.accept(1.0)
    await pending.taken()
    pending.end(failure(ID, ModuleError("it broke")))
    reply = await pending.reply_within(1.0)
    assert reply.error is not None
    assert reply.error.code == "module-error"
    await pending.taken()


async def test_who_stops_waiting_does_not_end_the_syscall() -> None:
    pending = submitted()
    waiting = asyncio.create_task(pending.reply_within(60.0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not pending.ended.done()


async def printed(pending: Pending, *messages: Chunk | Reply) -> int:
    """Follow a syscall while messages come, one at a time; return how many characters."""
    out = Printed()
    following = asyncio.create_task(out.follow(pending))
    for message in messages:
        await asyncio.sleep(0)
        if isinstance(message, Reply):
            pending.end(message)
        else:
            pending.hear(message, 1.0)
    await asyncio.wait_for(following, 5)
    return out.characters


async def test_text_is_printed_once_though_it_comes_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spans = ((0, "One "), (4, "two "), (0, "One two thr"), (11, "ee"), (40, "lost"))
    chunks = (Chunk(ID, offset, text) for offset, text in spans)
    count = await printed(submitted(), *chunks, Reply(ID, ChatResult(TEXT, "stop", "m")))
    assert (count, capsys.readouterr().out) == (len(TEXT), TEXT)


async def test_who_attaches_in_the_middle_gets_the_whole_text_with_the_reply(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reply = Reply(ID, ChatResult(TEXT, "stop", "m"))
    count = await printed(Pending(ID, None, 0.0), Chunk(ID, 4, "two "), reply)
    assert (count, capsys.readouterr().out) == (0, "")


async def test_a_failure_ends_the_printing(capsys: pytest.CaptureFixture[str]) -> None:
    failed = failure(ID, Cancelled("an operator cancelled it"))
    count = await printed(submitted(), Chunk(ID, 0, "One "), failed)
    assert (count, capsys.readouterr().out) == (4, "One ")
