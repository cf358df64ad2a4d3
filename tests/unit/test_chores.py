"""What is done beside a generation: its end is waited for, on every Python."""

import asyncio

import pytest

from aios_workers.llm.slicing import Chores

LIMIT_S = 5.0  # a wait that spins never lets a time-out of the loop come


@pytest.mark.timeout(LIMIT_S)
async def test_chores_that_have_ended_are_not_waited_for() -> None:
    chores, done = Chores(), asyncio.Event()

    async def chore() -> None:
        done.set()

    chores.start(chore())
    await done.wait()  # the chore has ended, its callbacks have not run
    await chores.finish()


@pytest.mark.timeout(LIMIT_S)
async def test_chores_that_chores_start_are_waited_for() -> None:
    chores, ended = Chores(), list[str]()

    async def second() -> None:
        await asyncio.sleep(0)
        ended.append("second")

    async def first() -> None:
        await asyncio.sleep(0)
        chores.start(second())
        ended.append("first")

    chores.start(first())
    await chores.finish()
    assert ended == ["first", "second"]


@pytest.mark.timeout(LIMIT_S)
async def test_the_failure_of_a_chore_is_heard_and_the_others_can_be_dropped() -> None:
    chores = Chores()

    async def fails() -> None:
        raise ValueError("a chore's")

    async def hangs() -> None:
        await asyncio.Event().wait()

    failed, hanging = chores.start(fails()), chores.start(hangs())
    with pytest.raises(ValueError, match="a chore's"):
        await chores.finish()
    chores.drop()
    await asyncio.wait([hanging])
    assert failed.done()
    assert hanging.cancelled()
    await chores.finish()
