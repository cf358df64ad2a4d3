"""Wait for a condition, with a deadline: what tests use where others sleep."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, overload

Found = TypeVar("Found")

POLL_S = 0.01
TIMEOUT_S = 30.0
AT_ONCE_S = 8.0  # what does not wait ends by then on any machine; else it would take longer


def wait_until(condition: Callable[[], Found], timeout_s: float = TIMEOUT_S) -> Found:
    """Return what `condition` returns, as soon as that is true.

    Raises:
        TimeoutError: It was false for `timeout_s`; says which condition.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {timeout_s} s: {_name(condition)}")
        time.sleep(POLL_S)
    return found


@overload
async def wait_until_async(
    condition: Callable[[], Coroutine[Any, Any, Found]], timeout_s: float = TIMEOUT_S
) -> Found: ...


@overload
async def wait_until_async(
    condition: Callable[[], Found], timeout_s: float = TIMEOUT_S
) -> Found: ...


async def wait_until_async(condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Do the same in an event loop; the condition may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        outcome = condition()
        found = await outcome if isinstance(outcome, Awaitable) else outcome
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {timeout_s} s: {_name(condition)}")
        await asyncio.sleep(POLL_S)


def _name(condition: Callable[..., object]) -> str:
    return getattr(condition, "__qualname__", repr(condition))
