"""The machine room: queues, who serves them, cores, and who holds which lease."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.syscall import MODULES
from aios_broker.views.live import read_jobs, read_queues, workers_of_cores
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.operations import NoQuery
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.pages import live_page
from aios_kernel_api.page.parts import Part

LEASES_SHOWN = 200  # of each module


async def fleet(kernel: Kernel, _caller: Caller, _query: NoQuery) -> Mapping[str, object]:
    """Return all of it, for an operator."""
    workers = await kernel.fleet.live_workers()
    jobs = await read_jobs(kernel.control, MODULES, limit=LEASES_SHOWN)
    return {
        "queues": await read_queues(kernel.control),
        "suspended": await kernel.fleet.suspended(),
        "scheduler": await kernel.fleet.leading_scheduler(),
        "workers": workers,
        "cores": await kernel.control.cores(),
        "workers_of": workers_of_cores(workers),
        "leases": [job for job in jobs if job.state == "running"],
    }


async def view(request: Request) -> Response:
    """Show it."""
    return await live_page(request, "fleet.html", PART)


PART = Part("fleet", "fleet_part.html", fleet, scope="operator")
ROUTES = [shows("/fleet", view)]
