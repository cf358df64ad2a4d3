"""Long conversations are read beside the worker's loop: leases are renewed, other jobs go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from aios_broker.contract.llm import ContextBody, ContextExpand, LlmChat, Message, Tool
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
TURN_S = 0.002


class WatchedCore(LlamaCppCore):
    """A core that notes how often the loop has turned between its first reading and its last."""

    _turns = 0
    _began: int | None = None
    turns_while_read = 0

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        if self._began is None:
            self._began = self._turns
        try:
            return super().render(messages, tools)
        finally:
            self.turns_while_read = self._turns - self._began

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look at what is read within the block."""
        self._began, self.turns_while_read = None, 0
        turning = asyncio.create_task(self._turn())
        try:
            yield
        finally:
            turning.cancel()

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            self._turns += 1


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


async def test_a_long_context_is_counted_while_the_loop_goes_on(caller: Caller) -> None:
    core = WatchedCore(LlamaCppConfig(context_tokens=512))
    async with running_worker(caller.url, "llm", await llm_module(core)):
        for _ in range(MESSAGES):
            await ask(caller, ContextExpand((MESSAGE,)))
        last = Message("assistant", "I see.")
        async with core.watched():
            tokens = counter(core)((*[MESSAGE] * MESSAGES, last))
        assert core.turns_while_read == 0
        async with core.watched():
            found = await ask(caller, ContextExpand((last,)))

    assert found.tokens == tokens > 20_000
    assert core.turns_while_read >= 5


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
