"""Programs: where each stands, what it waits for and why, what it has used; ending them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from msgspec import Meta, Struct, structs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from aios_broker.contract.errors import Cancelled, InvalidRequest
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.quota import Subject
from aios_broker.queues.records import JobView
from aios_broker.views.live import owned_jobs
from aios_broker.views.programs import Key, ProgramReader, ProgramState, Wanted
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.forms import Form, changes, shows
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.pages import live_page, page
from aios_kernel_api.page.parts import Part, address_of
from aios_kernel_api.rest.views import Who, whose_of

PAGE_LENGTH = 50
CANCELLED_AT_ONCE = 500
MAX_PAGES = 200  # of an agent's syscalls, in one request
STATES: tuple[ProgramState, ...] = ("parked", "running", "waiting", "held", "failed", "done")
NAMES_OF_A_PROGRAM = 3
# What an agent is told of why it waits: the numbers name others.
WORDS_OF_RULES = {
    "held": "an operator holds it",
    "parked": "it waits for a person's approval",
    "fleet-suspended": "the fleet is suspended",
    "no-worker": "no worker of its module lives",
    "no-core": "no worker serves its core",
    "program": "the policy admits other programs first",
    "quota": "a quota is used up",
    "rate": "the core's endpoint takes no more at the moment",
    "resource": "what it needs is taken",
    "next": "a worker is about to take it",
    "order": "others go before it",
}


class ProgramQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which programs."""

    state: ProgramState | None = None
    failed: bool = False
    tenant: Who | None = None
    agent: Who | None = None
    program: Annotated[str, Meta(max_length=256)] | None = None
    core: Annotated[str, Meta(max_length=128)] | None = None
    page: Annotated[int, Meta(ge=1, le=10_000)] = 1

    def with_(self, **changed: object) -> str:
        """Return the address of the same view with something changed; from its first page on."""
        return self._address(page=1, **changed)

    def at(self, page: int) -> str:
        """Return the address of another page of the same view."""
        return self._address(page=page)

    def _address(self, **changed: object) -> str:
        return address_of("/", structs.replace(self, **changed))


async def programs(kernel: Kernel, caller: Caller, query: ProgramQuery) -> Mapping[str, object]:
    """Return a page of programs."""
    reader = ProgramReader(kernel.functions, kernel.keys, kernel.database)
    wanted = Wanted(
        whose_of(caller, query.tenant, query.agent),
        query.state,
        query.program,
        query.core,
        query.failed,
    )
    found = await reader.page(wanted, (query.page - 1) * PAGE_LENGTH, PAGE_LENGTH)
    return {
        "found": found,
        "words_of_rules": WORDS_OF_RULES,
        "states": STATES,
        "pages": -(-found.total // PAGE_LENGTH),
    }


async def view(request: Request) -> Response:
    """Show them."""
    return await live_page(request, "programs.html", PART, states=STATES)


async def cancel(request: Request, form: Form) -> Response:
    """Ask how many syscalls would end; end them once that is confirmed."""
    kernel, caller = kernel_of(request), caller_of(request)
    names = [each for each in form.all("program") if each]
    keys = [_key(name) for name in names]
    jobs = await _alive(kernel, caller, keys)
    if form.one("confirm") != "yes":
        count = len(jobs)
        return await page(request, "cancel.html", names=names, count=count, back=_back(form))
    await _cancel(kernel, caller, jobs)
    return RedirectResponse(_back(form), 303, HEADERS)


def _back(form: Form) -> str:
    place = form.one("back")
    return place if place.startswith("/?") else "/"


def _key(name: str) -> Key:
    parts = name.split(" ")
    if len(parts) != NAMES_OF_A_PROGRAM:
        raise InvalidRequest(
            "it is no program's name", field="program", remedy="tick programs of the list"
        )
    return parts[0], parts[1], parts[2]


async def _alive(kernel: Kernel, caller: Caller, keys: Iterable[Key]) -> list[JobView]:
    """Return what is alive of programs that the caller may see."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for tenant, agent, program in keys:
        whose_of(caller, tenant, agent)
        wanted.setdefault((tenant, agent), set()).add(program)
    found: dict[str, JobView] = {}
    for (tenant, agent), its in wanted.items():
        for job in await _of_agent(kernel, Subject.of_agent(agent, tenant)):
            if job.metadata.tree in its:
                found[job.job_id] = job
    return list(found.values())


async def _of_agent(kernel: Kernel, subject: Subject) -> Sequence[JobView]:
    found: list[JobView] = []
    after: str | None = ""
    for _ in range(MAX_PAGES):
        if after is None:
            break
        owned = await owned_jobs(kernel.control, subject, MODULES, PAGE_LENGTH, after)
        found += owned.jobs
        after = owned.after
    return found


async def _cancel(kernel: Kernel, caller: Caller, jobs: Sequence[JobView]) -> Counter[str]:
    reason = Cancelled(f"{caller.agent} cancelled its program on the page")
    outcomes: Counter[str] = Counter()
    for module in MODULES:
        ids = [job.job_id for job in jobs if job.module == module]
        for first in range(0, len(ids), CANCELLED_AT_ONCE):
            part = ids[first : first + CANCELLED_AT_ONCE]
            outcomes.update(await kernel.control.cancel(part, reason, module=module))
    return outcomes


PART = Part("programs", "programs_part.html", programs, ProgramQuery)
ROUTES = [shows("/", view), changes("/programs/cancel", cancel)]
