"""What the gateway of one process remembers: sessions' places in their trees, cores, quotas."""

from dataclasses import dataclass

from starlette.requests import Request

from aios_kernel_api.gateway.cores import Cores
from aios_kernel_api.gateway.labels import Trees
from aios_kernel_api.gateway.limits import Standings
from aios_kernel_api.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Gateway:
    """One process's gateway; nothing of it has to outlive the process."""

    kernel: Kernel
    cores: Cores
    trees: Trees
    standings: Standings


def open_gateway(kernel: Kernel) -> Gateway:
    """Return the gateway of a kernel that is open."""
    now_s = kernel.session.now_s
    cores = Cores(kernel, kernel.config.api_default_core, now_s)
    return Gateway(kernel, cores, Trees(), Standings(kernel, now_s))


def gateway_of(request: Request) -> Gateway:
    """Return the gateway that a request is for."""
    gateway: Gateway = request.app.state.gateway
    return gateway
