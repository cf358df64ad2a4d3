"""A stream of the page: what has changed, told for as long as the login is good.

`beat` comes every few seconds, `trouble` when the kernel does not answer (empty: it does again),
`over` when the token is no longer good; what else comes is the view's own.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec
from starlette.requests import Request

from aios_broker.contract.errors import KernelError, Unauthenticated
from aios_broker.retry import now_s
from aios_kernel_api.events import RETRY, event
from aios_kernel_api.identity import Caller, with_rights
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.login import who_looks
from aios_kernel_api.problems import told

BEAT_S = 5.0  # so often it says that it lives, and looks whether the token still does

News = Callable[[Caller], AsyncGenerator[bytes, None]]


async def follow(request: Request, news: News, every_s: float) -> AsyncGenerator[bytes, None]:
    """Yield the events of `news` again and again, until the process stops or the login is over."""
    kernel = kernel_of(request)
    trouble, beat_s = "", 0.0
    yield RETRY
    while not kernel.stopping.is_set():
        try:
            if now_s() >= beat_s:
                caller = await with_rights(await who_looks(request.headers, kernel), kernel)
                beat_s = now_s() + BEAT_S
                yield page_event("beat", None)
            async with aclosing(news(caller)) as events:
                async for each in events:
                    yield each
            if trouble:
                trouble = ""
                yield page_event("trouble", "")
        except Unauthenticated:
            yield page_event("over", None)
            return
        except KernelError as error:
            if (said := str(told(error))) != trouble:
                trouble = said
                yield page_event("trouble", said)
        await _pause(kernel, every_s)


async def _pause(kernel: Kernel, length_s: float) -> None:
    """Wait a moment, or until the process is told to stop."""
    try:
        async with asyncio.timeout(length_s):
            await kernel.stopping.wait()
    except TimeoutError:
        return


def page_event(name: str, data: object) -> bytes:
    """Return an event with its data as JSON."""
    return event(msgspec.json.encode(data), name)
