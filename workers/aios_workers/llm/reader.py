"""Reading long conversations in a thread: the worker's loop goes on meanwhile.

A core turns text into tokens at some 10 MB/s, and a context may hold 4 MiB: in the loop that would
hold up every other syscall of the worker, and the renewal of its leases. Tokenizers work without
Python's lock, so a thread is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from aios_broker.contract.llm import Message

T = TypeVar("T")

SHORT_CHARACTERS = 16_384  # read in the loop: under 2 ms; a thread costs 0.1 ms more


class Reader:
    """Reads for one core, one conversation at a time: a tokenizer is no friend of two threads."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aios-reader")
        self._last: Future[Any] | None = None

    async def read(self, characters: int, work: Callable[[], T]) -> T:
        """Return what `work` does with so many characters of text.

        If the caller is cancelled the thread ends what it has begun, for nobody.
        """
        idle = self._last is None or self._last.done()
        if characters <= SHORT_CHARACTERS and idle:
            return work()
        future = self._thread.submit(work)
        self._last = future
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Return when nothing is read any more: the core may free its tokenizer."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)


def characters_of(messages: Sequence[Message]) -> int:
    """Return how much there is to read in a conversation."""
    return sum(
        len(message.content) + sum(len(call.arguments) for call in message.tool_calls)
        for message in messages
    )
