"""What is done beside a generation: its end is waited for, on every Python."""

import asyncio

import pytest

from aios_workers.runtime.executor import BackgroundTasks

LIMIT_S = 5.0  # a wait that spins never lets a time-out of the loop come


@pytest.mark.timeout(LIMIT_S)
async def test_tasks_that_have_ended_are_not_waited_for() -> None:
    tasks, done = BackgroundTasks(), asyncio.Event()

    async def task() -> None:
        done.set()

    tasks.start(task())
    await done.wait()  # the task has ended, its callbacks have not run
    await tasks.finish()


@pytest.mark.timeout(LIMIT_S)
async def test_tasks_that_tasks_start_are_waited_for() -> None:
    tasks, ended = BackgroundTasks(), list[str]()

    async def second() -> None:
        await asyncio.sleep(0)
        ended.append("second")

    async def first() -> None:
        await asyncio.sleep(0)
        tasks.start(second())
        ended.append("first")

    tasks.start(first())
    await tasks.finish()
    assert ended == ["first", "second"]


@pytest.mark.timeout(LIMIT_S)
async def test_the_failure_of_a_task_is_heard_and_the_others_can_be_dropped() -> None:
    tasks = BackgroundTasks()

    async def fails() -> None:
        raise ValueError("a task's")

    async def hangs() -> None:
        await asyncio.Event().wait()

    failed, hanging = tasks.start(fails()), tasks.start(hangs())
    with pytest.raises(ValueError, match="a task's"):
        await tasks.finish()
    tasks.drop()
    await asyncio.wait([hanging])
    assert failed.done()
    assert hanging.cancelled()
    await tasks.finish()
