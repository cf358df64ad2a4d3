"""What the gateway of one process remembers: sessions' places in their trees, cores, quotas."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field

from starlette.requests import Request

from aios_kernel_api.gateway.cores import Cores
from aios_kernel_api.gateway.labels import Trees
from aios_kernel_api.gateway.limits import Standings
from aios_kernel_api.kernel import Kernel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """One process's gateway; nothing of it has to outlive the process."""

    kernel: Kernel
    cores: Cores
    trees: Trees
    standings: Standings
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def go_on(self, work: Coroutine[object, object, None]) -> None:
        """Do what no request waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._retire)

    def _retire(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("what no request waited for has failed: %s", error)


def open_gateway(kernel: Kernel) -> Gateway:
    """Return the gateway of a kernel that is open."""
    now_s = kernel.session.now_s
    cores = Cores(kernel, kernel.config.api_default_core, now_s)
    return Gateway(kernel, cores, Trees(), Standings(kernel, now_s))


def gateway_of(request: Request) -> Gateway:
    """Return the gateway that a request is for."""
    gateway: Gateway = request.app.state.gateway
    return gateway
