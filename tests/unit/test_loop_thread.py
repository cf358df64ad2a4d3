"""A synchronous agent's thread: whoever is interrupted leaves nothing running there."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from aios_broker.contract.errors import Cancelled, KernelError
from aios_sdk.loop_thread import LoopThread
from tests.waiting import wait_until

BLOCKED_S = 0.5  # then it waits for the answer, and no step of ours is left to interrupt


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    thread.start("test")
    yield thread
    thread.stop()


class Interrupts:
    """Ctrl-C at the n-th step of the calling thread: a function's beginning or end."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Interrupts | None:
        if not any(room in frame.f_code.co_filename for room in ("loop_thread", "asyncio")):
            return None  # the garbage collector's calls, say
        self._left -= event in ("call", "return")  # where Python looks whether there is a signal
        if self._left == 0:
            raise KeyboardInterrupt
        return self


def interrupted(thread: LoopThread, at: int) -> bool:
    """Have `run` interrupted at a step, and see that nothing goes on; False: it has fewer."""
    release = asyncio.Event()

    async def wait() -> None:
        await release.wait()

    def nothing_runs() -> bool:
        return thread.call(lambda: len(asyncio.all_tasks())) == 1  # the one that looks

    let_go = threading.Timer(BLOCKED_S, lambda: thread.call(release.set))
    let_go.start()
    before, work = sys.gettrace(), wait()
    sys.settrace(Interrupts(at))
    try:
        thread.run(work)
    except KeyboardInterrupt:
        sys.settrace(before)
        let_go.cancel()
        wait_until(nothing_runs)
        return True
    finally:
        sys.settrace(before)
        let_go.cancel()
        let_go.join()
        work.close()
    return False


def test_an_interrupt_at_any_step_leaves_nothing_running(thread: LoopThread) -> None:
    steps = 0
    while interrupted(thread, steps + 1):
        steps += 1
    assert steps > 10, "it was hardly interrupted"


def test_what_it_raises_is_raised_here(thread: LoopThread) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        thread.run(fails())


def test_stopping_ends_the_waiting(thread: LoopThread) -> None:
    began = threading.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    def stop() -> None:
        began.wait(10)
        thread.stop()

    stops = threading.Thread(target=stop)
    stops.start()
    with pytest.raises(Cancelled, match="closed meanwhile"):
        thread.run(work())
    stops.join()
    with pytest.raises(KernelError, match="not open"):
        thread.call(lambda: None)
