"""What is done to many programs at once: asked about with the count first, then done.

POST /programs/cancel    end all that is alive of them
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from aios_broker.contract.errors import Cancelled, InvalidRequest
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.quota import Subject
from aios_broker.queues.records import JobView
from aios_broker.views.live import owned_jobs
from aios_broker.views.programs import Key
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.forms import Form, changes
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.pages import page
from aios_kernel_api.rest.views import whose_of

READ_AT_ONCE = 500
MAX_READS = 400  # of one agent's syscalls
NAMES_OF_A_PROGRAM = 3
Owned = Mapping[tuple[str, str], set[str]]  # by tenant and agent: programs


@dataclass(frozen=True, slots=True)
class Bulk:
    """One thing that is done to many programs."""

    path: str
    verb: str
    warning: str
    find: Callable[[Kernel, Owned], Awaitable[Sequence[JobView]]]
    do: Callable[[Kernel, Caller, Sequence[JobView]], Awaitable[None]]

    def route(self) -> Route:
        """Return the route of its form."""

        async def asked(request: Request, form: Form) -> Response:
            kernel, caller = kernel_of(request), caller_of(request)
            names = [each for each in form.all("program") if each]
            calls = await self.find(kernel, _owned(caller, map(_key, names)))
            back = form.one("back")
            back = back if back.startswith("/?") else "/"
            if form.one("confirm") != "yes":
                return await page(
                    request, "bulk.html", bulk=self, names=names, count=len(calls), back=back
                )
            await self.do(kernel, caller, calls)
            return RedirectResponse(back, 303, HEADERS)

        return changes(self.path, asked)


def _key(name: str) -> Key:
    parts = name.split(" ")
    if len(parts) != NAMES_OF_A_PROGRAM:
        raise InvalidRequest(
            "it is no program's name", field="program", remedy="tick programs of the list"
        )
    return parts[0], parts[1], parts[2]


def _owned(caller: Caller, keys: Iterable[Key]) -> Owned:
    """Return whose the programs are; raise UnknownAgent where one is not the caller's to see."""
    owned: dict[tuple[str, str], set[str]] = {}
    for tenant, agent, program in keys:
        whose_of(caller, tenant, agent)
        owned.setdefault((tenant, agent), set()).add(program)
    return owned


async def _alive(kernel: Kernel, owned: Owned) -> Sequence[JobView]:
    found: dict[str, JobView] = {}
    for (tenant, agent), programs in owned.items():
        after: str | None = ""
        for _ in range(MAX_READS):
            if after is None:
                break
            some = await owned_jobs(
                kernel.control, Subject.of_agent(agent, tenant), MODULES, READ_AT_ONCE, after
            )
            found.update({job.job_id: job for job in some.jobs if job.metadata.tree in programs})
            after = some.after
    return list(found.values())


async def _cancel(kernel: Kernel, caller: Caller, jobs: Sequence[JobView]) -> None:
    reason = Cancelled(f"{caller.agent} cancelled its program on the page")
    for module in MODULES:
        ids = [job.job_id for job in jobs if job.module == module]
        await kernel.control.cancel(ids, reason, module=module)


CANCEL = Bulk(
    "/programs/cancel",
    "Cancel",
    "They end, waiting or running; who waits for them is told. What they have done already stays.",
    _alive,
    _cancel,
)
ROUTES = [CANCEL.route()]
