"""Texts that agents wrote are compared in a child: at nobody else's cost, and not for ever."""

from __future__ import annotations

import asyncio
import difflib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_broker.comparing import (
    MAX_COMPARED_BYTES,
    SHORT_LINES,
    Comparer,
    Pair,
    compared,
)
from aios_broker.places import Holder

ONE = Holder("acme", "one")
COMPARER = Comparer()
MOST_PAUSE_S = 3.0  # of the loop meanwhile, on a machine that others use, too


def hostile(seed: int, line_end: str = "\n") -> str:
    """Return a text in which every line is as frequent as the matcher still looks at."""
    draw = random.Random(seed)
    lines = [f"{number:x}{line_end}" for number in range(140)]
    return "".join(draw.choice(lines) for _ in range(MAX_COMPARED_BYTES // 4))


@asynccontextmanager
async def loop_turns() -> AsyncIterator[None]:
    """Fail where the loop stood still within the block."""
    longest = 0.0

    async def turn() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    turning = asyncio.create_task(turn())
    yield
    turning.cancel()
    assert longest < MOST_PAUSE_S


@pytest.mark.parametrize("line_end", ["\n", "\u2028", "\r"])
async def test_texts_that_would_take_minutes_are_given_up_and_hold_nobody_up(line_end: str) -> None:
    pair = Pair(hostile(1, line_end), hostile(2, line_end), "a", "b")
    async with loop_turns():
        assert await Comparer().unified(ONE, pair) is None


async def test_many_lines_that_can_be_compared_are() -> None:
    lines = [f"line {number}\n" for number in range(2_000)]
    pair = Pair("".join(lines), "".join(lines[:1_000] + lines[1_001:]), "/a@1", "/a@2")
    text = await Comparer().unified(ONE, pair)
    assert text == "".join(
        difflib.unified_diff(lines, lines[:1_000] + lines[1_001:], "/a@1", "/a@2")
    )
    assert "-line 1000\n" in text


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_it_is_the_same_in_a_child_and_here(before: str, after: str) -> None:
    filled = "same\n" * (SHORT_LINES + 1)
    pair = Pair(f"{filled}{before}", f"{filled}{after}", "a", "b")
    assert asyncio.run(COMPARER.unified(ONE, pair)) == compared(pair)


async def test_one_tenant_compares_one_at_a_time_and_another_does_not_wait_for_it() -> None:
    comparer, slow = Comparer(), Pair(hostile(1), hostile(2), "a", "b")
    quick = Pair("x\n" * 100, "y\n" * 100, "a", "b")
    flood = [
        asyncio.create_task(comparer.unified(Holder("mallory", f"m{number}"), slow))
        for number in range(4)
    ]
    await asyncio.sleep(0)
    assert await comparer.unified(Holder("victor", "one"), quick)
    assert not any(task.done() for task in flood)
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
