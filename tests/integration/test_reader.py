"""Long conversations are read beside the worker's loop: leases are renewed, other jobs go on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from aios_broker.contract.llm import ContextBody, ContextExpand, LlmChat, Message
from aios_broker.contract.reply import ContextResult
from aios_workers.llm.conversation import counter
from aios_workers.llm.core import SHORT_CHARACTERS, Reader
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, running_worker

LONG = SHORT_CHARACTERS + 1
TEXT = "The fox, it is said, went 12 times to the well of 1734; nobody knows why. "
MESSAGE = Message("user", TEXT * 3_000)  # 220 KB
MESSAGES = 2
PROBE_EVERY_S = 0.005


class Lags:
    """By how much a loop that should have gone on at once was late."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(PROBE_EVERY_S)
            self.longest_s = max(self.longest_s, time.perf_counter() - before_s - PROBE_EVERY_S)


@asynccontextmanager
async def watched_loop() -> AsyncIterator[Lags]:
    lags = Lags()
    watch = asyncio.create_task(lags.watch())
    try:
        yield lags
    finally:
        watch.cancel()


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    yield caller
    await caller.aclose()


async def ask(caller: Caller, body: ContextBody | LlmChat) -> ContextResult:
    [syscall_id] = await caller.submit(body)
    result = (await caller.hear(syscall_id)).unwrap()
    assert isinstance(result, ContextResult)
    return result


def seconds_to_count(core: LlamaCppCore, messages: Sequence[Message]) -> tuple[int, float]:
    began_s = time.perf_counter()
    tokens = counter(core)(messages)
    return tokens, time.perf_counter() - began_s


async def test_a_long_context_is_counted_while_the_loop_goes_on(caller: Caller) -> None:
    core = LlamaCppCore(LlamaCppConfig(context_tokens=512))
    async with running_worker(caller.url, "llm", await llm_module(core)):
        for _ in range(MESSAGES):
            await ask(caller, ContextExpand((MESSAGE,)))
        last = Message("assistant", "I see.")
        tokens, inline_s = seconds_to_count(core, (*[MESSAGE] * MESSAGES, last))
        async with watched_loop() as lags:
            found = await ask(caller, ContextExpand((last,)))

    assert found.tokens == tokens > 20_000
    assert lags.longest_s < inline_s / 3


async def test_what_is_short_is_read_at_once_unless_something_long_is_read() -> None:
    """One tokenizer is never used by two threads at once."""
    reader, begun, go_on = Reader(), threading.Event(), threading.Event()
    threads: list[str] = []

    def long() -> str:
        begun.set()
        assert go_on.wait(10.0)
        return threading.current_thread().name

    def short() -> str:
        return threading.current_thread().name

    assert await reader.read(SHORT_CHARACTERS, short) == "MainThread"
    first = asyncio.create_task(reader.read(LONG, long))
    assert await asyncio.to_thread(begun.wait, 10.0)
    second = asyncio.create_task(reader.read(1, short))
    await asyncio.sleep(0)
    assert not second.done()
    first.cancel()  # its thread goes on all the same
    third = asyncio.create_task(reader.read(1, short))
    await asyncio.sleep(0)
    go_on.set()
    threads += [await second, await third]
    assert all(name.startswith("aios-reader") for name in threads)
    assert await reader.read(1, short) == "MainThread"
    await reader.close()


async def test_a_reader_is_closed_when_nothing_is_read_any_more() -> None:
    reader, begun, ended = Reader(), threading.Event(), threading.Event()
    go_on = threading.Event()

    def long() -> None:
        begun.set()
        assert go_on.wait(10.0)
        ended.set()

    reading = asyncio.create_task(reader.read(LONG, long))
    assert await asyncio.to_thread(begun.wait, 10.0)
    closing = asyncio.create_task(reader.close())
    closed_early, _ = await asyncio.wait({closing}, timeout=0.3)
    assert not closed_early
    go_on.set()
    await closing
    assert ended.is_set()
    await reading


async def test_an_error_of_reading_is_the_callers() -> None:
    reader = Reader()

    def fails() -> None:
        raise ValueError("not that")

    for characters in (1, LONG):
        with pytest.raises(ValueError, match="not that"):
            await reader.read(characters, fails)
    await reader.close()
