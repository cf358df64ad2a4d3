"""The head line of every page: whether the kernel runs, and how busy it is."""

from collections.abc import Mapping
from dataclasses import dataclass

from aios_broker.views.live import read_queues
from aios_broker.views.words import plural
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.operations import NoQuery
from aios_kernel_api.page.parts import Part


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the kernel is."""

    running: int
    slots: int
    waiting: int
    parked: int


async def head(kernel: Kernel, caller: Caller, _query: NoQuery) -> Mapping[str, object]:
    """Return the state and the load; the load is the operator's business."""
    workers = await kernel.fleet.live_workers()
    state = await _state(kernel, len(workers))
    if caller.scope != "operator":
        return {"state": state, "load": None}
    queues = await read_queues(kernel.control)
    return {
        "state": state,
        "load": Load(
            sum(queue.running for queue in queues),
            sum(worker.slots for worker in workers),
            sum(queue.waiting for queue in queues),
            sum(queue.parked for queue in queues),
        ),
    }


async def _state(kernel: Kernel, workers: int) -> str:
    if await kernel.fleet.suspended():
        return "the fleet is suspended: workers take nothing new"
    if not workers:
        return "no worker lives"
    if await kernel.fleet.leading_scheduler() is None:
        return f"{plural(workers, 'worker')}, no scheduler leads"
    return f"runs, {plural(workers, 'worker')}"


PART = Part("head", "head.html", head)
