"""Whether the process lives, and whether the kernel behind it can answer.

GET /healthz    it lives: nothing else is asked
GET /readyz     Redis, Postgres, a scheduler that leads, workers of each module
"""

import asyncio
from collections.abc import Awaitable, Callable

import hiredis
import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.errors import KernelError
from aios_broker.contract.syscall import MODULES
from aios_broker.retry import now_s
from aios_kernel_api.kernel import Kernel, kernel_of

ANSWER_TIMEOUT_S = 3.0
RECENT_S = 1.0


class Health(Struct, frozen=True):
    """The process lives."""

    status: str = "ok"


class Readiness(Struct, frozen=True):
    """Each part, in a word: `ok`, or what is wrong."""

    ready: bool
    parts: dict[str, str]


async def healthz(_request: Request) -> Response:
    """Tell that the process answers."""
    return Response(msgspec.json.encode(Health()), media_type="application/json")


async def readyz(request: Request) -> Response:
    """Tell whether the kernel can answer; 503 where a part of it cannot."""
    found = await request.app.state.readiness.now(kernel_of(request))
    status = 200 if found.ready else 503
    headers = {} if found.ready else {"retry-after": "1"}
    return Response(msgspec.json.encode(found), status, headers, "application/json")


class RecentReadiness:
    """What was found a moment ago: strangers ask as often as they like, the servers hear of one."""

    def __init__(self) -> None:
        self._found: Readiness | None = None
        self._found_at_s = 0.0
        self._asking = asyncio.Lock()

    async def now(self, kernel: Kernel) -> Readiness:
        """Return how it is, or was a second ago at most."""
        async with self._asking:
            is_stopping = kernel.stopping.is_set()
            if self._found is None or is_stopping or now_s() - self._found_at_s >= RECENT_S:
                self._found = await readiness(kernel)
                self._found_at_s = now_s()
            return self._found


async def readiness(kernel: Kernel) -> Readiness:
    """Ask each part, at once."""
    checks: dict[str, Callable[[Kernel], Awaitable[str]]] = {
        "redis": _redis,
        "postgres": _postgres,
        "scheduler": _scheduler,
        "workers": _workers,
    }
    words = await asyncio.gather(*(_word(check(kernel)) for check in checks.values()))
    parts = dict(zip(checks, words, strict=True))
    if kernel.stopping.is_set():
        parts["api"] = "stopping"
    return Readiness(all(word in ("ok", "none") for word in parts.values()), parts)


async def _word(asked: Awaitable[str]) -> str:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await asked
    except (KernelError, TimeoutError, hiredis.ReplyError):
        return "does not answer"


async def _redis(kernel: Kernel) -> str:
    await kernel.connection.execute("PING")
    return "ok"


async def _postgres(kernel: Kernel) -> str:
    if kernel.store is None:
        return "none"
    async with kernel.store.as_steward() as cursor:
        await cursor.execute("SELECT 1")
    return "ok"


async def _scheduler(kernel: Kernel) -> str:
    return "ok" if await kernel.fleet.leading_scheduler() else "none leads"


async def _workers(kernel: Kernel) -> str:
    served = {
        module for one in await kernel.fleet.live_workers() for module in one.module.split(",")
    }
    lacking = [module for module in MODULES if module not in served]
    return f"none serves {', '.join(lacking)}" if lacking else "ok"


ROUTES = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
]
